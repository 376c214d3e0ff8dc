"""Pooling of the last spatial map: what decides how a map becomes a logit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["POOLS", "LogSumExpPool2d", "ThresholdedAveragePool2d"]


class LogSumExpPool2d(nn.Module):
    """Soft maximum over positions, ``log(mean(exp(r x))) / r``: mean for r -> 0, maximum for r -> infinity.

    Pinheiro & Collobert 2015, "From Image-level to Pixel-level Labeling with Convolutional Networks", eq. 2.
    """

    def __init__(self, r: float = 4.0) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, 1, 1)."""
        positions = x.shape[-2] * x.shape[-1]
        pooled = torch.logsumexp(self.r * x, dim=(-2, -1), keepdim=True)
        return (pooled - torch.log(torch.tensor(float(positions), dtype=x.dtype, device=x.device))) / self.r


class ThresholdedAveragePool2d(nn.Module):
    """Mean of the positions whose value exceeds ``threshold`` times the channel's largest: small objects count in full.

    Bae et al. 2020, "Rethinking Class Activation Mapping for Weakly Supervised Object Localization", section 3.1, there
    0.1. A channel without a positive value, in which no position exceeds that, gives 0.
    """

    def __init__(self, threshold: float = 0.1) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, 1, 1)."""
        above = x > self.threshold * x.detach().amax((-2, -1), keepdim=True).clamp(min=0)
        total = (x * above).sum((-2, -1), keepdim=True)
        return total / above.sum((-2, -1), keepdim=True).clamp(min=1)


POOLS: dict[str, Callable[[], nn.Module]] = {
    "gap": lambda: nn.AdaptiveAvgPool2d(1),
    "gmp": lambda: nn.AdaptiveMaxPool2d(1),
    "lse": LogSumExpPool2d,
    "tap": ThresholdedAveragePool2d,
}
