"""Recipro-CAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .base import Method, register
from .forward_pass import ForwardPass
from .single_cell import cell_logits

__all__ = ["ReciproCAM"]

_VARIANTS = ("softmax", "logits")


@register("reciprocam")
class ReciproCAM(Method):
    """Recipro-CAM, R(x, y) = p_c(head(F^xy)), F^xy the map with all cells but (x, y) set to zero.

    Byun & Lee 2022, "Recipro-CAM: Gradient-free reciprocal class activation map", section 3 and their code. Gradient
    free; only the head is run, and of that no more than it takes (see ``cells``).

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"softmax"`` (paper; a sigmoid where the task has one) or ``"logits"``
            (OpenVINO XAI for models without softmax); with global average
            pooling and a linear head the latter is CAM / (h w) + b_c.
        gaussian: the cell's vector also stands in its neighbors, weighted by [1 2 1; 2 4 2; 1 2 1] / 16.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> ReciproCAM(network, variant="logits")(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # CAM / 4 + 1
        tensor([[[1.2500, 1.5000],
                 [1.7500, 2.0000]]])
    """

    relu = False

    def __init__(
        self, model: nn.Module, layer: str | None = None, *, variant: str = "softmax", gaussian: bool = False
    ) -> None:
        super().__init__(model, layer)
        if variant not in _VARIANTS:
            raise ConfigError(f"ReciproCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.variant, self.gaussian = variant, gaussian

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w)."""
        height, width = forward.activations.shape[-2:]
        masks = torch.eye(height * width, dtype=torch.float32).reshape(-1, height, width).to(forward.activations)
        if self.gaussian:
            line = masks.new_tensor([1.0, 2.0, 1.0])
            kernel = line[:, None] * line / 16
            masks = F.conv2d(masks[:, None], kernel[None, None], padding=1)[:, 0]
        logits_NPK = cell_logits(forward, masks)
        scores = forward.classes.probabilities(logits_NPK, 2) if self.variant == "softmax" else logits_NPK
        chosen = targets_N[:, None, None].expand(-1, height * width, 1)
        return scores.gather(2, chosen).reshape(-1, height, width)
