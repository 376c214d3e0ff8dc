"""Noise that methods add to images and masks: the same in every run, for every image and on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["check_noise", "noise"]


def noise(count: int, shape: tuple[int, ...], sigma: float, seed: int) -> Tensor:
    """Normal noise (count, ...) of mean 0, the same for a seed on every device."""
    return sigma * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def check_noise(method: str, samples: int, sigma: float) -> None:
    """Refuse what is no number of samples, or no deviation.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"{method}: samples={samples!r}: must be a whole number of at least 1.")
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < math.inf:
        raise ConfigError(f"{method}: sigma={sigma!r} must be a number that is not negative.")
