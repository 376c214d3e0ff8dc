"""Ablation-CAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["AblationCAM"]


@register("ablationcam")
class AblationCAM(Method):
    """Ablation-CAM, sum_k w_k A_k(x, y) with w_k = (y_c - y_c without A_k) / abs(y_c); heat is its ReLU.

    Desai & Ramaswamy 2020, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization"; without A_k is: with that channel set to zero. Class-discriminative, no gradients: one forward, and
    one of the head for every channel.

    The paper divides by y_c, which is taken for positive; by a negative one the map would be turned around, so its size
    alone is used. With global average pooling and a linear head w_k is w_kc mean(A_k) / abs(y_c), and the head is not
    run.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        chunk: maps without a channel in one run of the head; memory grows with it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> AblationCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0) * 3.5  # weight 2.5 / 3.5
        tensor([[[ 2.5000,  5.0000],
                 [ 7.5000, 10.0000]]])
    """

    def __init__(self, model: nn.Module, layer: str | None = None, *, chunk: int = 32) -> None:
        super().__init__(model, layer)
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ConfigError(f"AblationCAM: chunk={chunk!r}: must be a whole number of at least 1.")
        self.chunk = chunk

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        activations = forward.activations
        scores_N1 = forward.logits.gather(1, targets_N[:, None])
        if forward.weight is not None:
            drops_NC = forward.weight[targets_N] * activations.mean((2, 3))
        else:
            drops_NC = scores_N1 - self._scores_without(forward, targets_N)
        weights_NC = drops_NC / torch.where(scores_N1 == 0, 1, scores_N1.abs())
        return weighted_maps(activations, weights_NC)

    def _scores_without(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """The class's logit (N, C) without each channel."""
        activations = forward.activations
        count, channels = activations.shape[:2]
        at_once = max(self.chunk // count, 1) if forward.takes_any_batch else 1  # what flows past is one per image
        scores = []
        for part in torch.split(torch.arange(channels, device=activations.device), at_once):
            kept_MC = (torch.arange(channels, device=activations.device) != part[:, None]).to(activations)
            without = activations * kept_MC[:, None, :, None, None]  # (M, N, C, h, w)
            logits = forward.head(without.flatten(0, 1)).reshape(len(part), count, -1)
            scores.append(logits.gather(2, targets_N[None, :, None].expand(len(part), -1, 1))[:, :, 0].T)
        return torch.cat(scores, dim=1)
