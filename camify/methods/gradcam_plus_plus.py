"""Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["GradCAMPlusPlus"]

_VARIANTS = ("paper", "authors", "pytorch-grad-cam", "torch-cam")


@register("gradcam++")
class GradCAMPlusPlus(Method):
    """Grad-CAM++, sum_k w_k A_k(x, y) with w_k = sum_xy alpha_k(x, y) ReLU(g_k(x, y)); heat is its ReLU.

    Chattopadhay et al. 2018, "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", eq. 5 and
    19. There alpha = g^2 / (2 g^2 + S_k g^3), with g = dy_c / dA_k and S_k the sum of A_k, which is
    1 / (2 + S_k g) where g is not 0: so computed, it neither over- nor underflows.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"paper"``: eq. 19. ``"authors"``: their code, which divides alpha by its sum over the positions of a
            channel. ``"pytorch-grad-cam"`` (1.5): adds 1e-6 to the denominator, which is more than g^2 of a GAP head.
            ``"torch-cam"`` (0.5): g^2 in the place of alpha, as its division is lost.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> GradCAMPlusPlus(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # 4 / (2 + 10 / 4) / 4
        tensor([[[0.2222, 0.4444],
                 [0.6667, 0.8889]]])
    """

    uses_gradients = True

    def __init__(self, model: nn.Module, layer: str | None = None, *, variant: str = "paper") -> None:
        super().__init__(model, layer)
        if variant not in _VARIANTS:
            raise ConfigError(f"GradCAMPlusPlus: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.variant = variant

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        gradients, positions = forward.gradients(targets_N), 1
        if forward.weight is not None:  # then they are the same everywhere
            gradients, positions = gradients[..., :1, :1], forward.activations.shape[-2:].numel()
        alpha = self._alpha(gradients, forward.activations.sum((2, 3), keepdim=True), positions)
        weights = positions * (alpha * gradients.relu()).sum((2, 3))
        return weighted_maps(forward.activations, weights)

    def _alpha(self, gradients: Tensor, sums: Tensor, positions: int) -> Tensor:
        """Of gradients (N, C, h, w), each of which stands for so many positions; sums (N, C, 1, 1) of the channels."""
        if self.variant == "torch-cam":
            return gradients.square()
        if self.variant == "pytorch-grad-cam":
            square = gradients.square()
            return square / (2 * square + sums * square * gradients + 1e-6)
        denominator = 2 + sums * gradients
        alpha = torch.where(gradients == 0, 0, 1 / torch.where(denominator == 0, 1, denominator))
        if self.variant == "paper":
            return alpha
        total = positions * alpha.sum((2, 3), keepdim=True)
        return alpha / torch.where(total == 0, 1, total)
