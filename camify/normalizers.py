"""From a raw map to one in [0, 1]: the normalizers of the literature, which decide where a threshold cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ConfigError, DataError
from .maps import extremes, normalize, normalized_between

__all__ = ["NORMALIZERS", "Normalizer", "check_normalizer", "limits", "normalize_maps", "scale_maps"]


class Normalizer(NamedTuple):
    """A name of `normalize_maps` and its percentile, None where it has none."""

    name: str
    percentile: float | None = None

    @classmethod
    def published(cls, name: str, percentile: float | None = None) -> Normalizer:
        """The normalizer with its published percentile where none is given.

        Raises:
            ConfigError: the name is unknown, or the percentile does not fit.
        """
        chosen = cls(name, {"pas": 90.0, "ivr": 45.0}.get(name) if percentile is None else percentile)
        check_normalizer(*chosen)
        return chosen


NORMALIZERS = (
    Normalizer("minmax"),
    Normalizer("max"),
    Normalizer("pas", 90.0),
    *(Normalizer("ivr", percentile) for percentile in (25.0, 35.0, 45.0, 55.0)),
)


def check_normalizer(name: str, percentile: float | None = None) -> None:
    """Refuse what ``normalize_maps`` does not know.

    Raises:
        ConfigError: the name is unknown, or the percentile is missing, given where there is none, or not in 0..100.
    """
    if not isinstance(name, str) or name not in {known.name for known in NORMALIZERS}:
        raise ConfigError(f'normalizer {str(name)[:80]!r} is unknown. Choose "minmax", "max", "pas" or "ivr".')
    needed, number = name in ("pas", "ivr"), isinstance(percentile, int | float)
    if needed != (percentile is not None) or (needed and not (number and 0 <= (percentile or 0) <= 100)):
        raise ConfigError(
            f'percentile={str(percentile)[:80]} does not fit {name!r}: "pas" and "ivr" take one in 0..100.'
        )


def normalize_maps(maps: Tensor, name: str = "minmax", percentile: float | None = None) -> Tensor:
    """Raw maps (N, H, W) of image size in [0, 1]; a map without contrast, or without positive evidence, gives zeros.

    - ``"minmax"``: (m - min) / (max - min).
    - ``"max"``: ReLU(m) / max. Zhou et al. 2016.
    - ``"pas"``: (m - min) / percentile of (m - min), cut at 1. Bae et al. 2020, there 90. Where the percentile is the
      minimum, as heat covers less of the image, the maximum takes its place.
    - ``"ivr"``: ReLU(m - percentile) / max of that. Kim et al. 2021, "Normalization Matters in WSOL".

    Raises:
        ConfigError: the name is unknown, or the percentile is missing, given where there is none, or not in 0..100.
        DataError: maps hold NaN or infinity.

    Example:
        >>> normalize_maps(torch.tensor([[[-1.0, 0.0, 1.0, 3.0]]]))
        tensor([[[0.0000, 0.2500, 0.5000, 1.0000]]])
        >>> normalize_maps(torch.tensor([[[-1.0, 0.0, 1.0, 4.0]]]), "max")
        tensor([[[0.0000, 0.0000, 0.2500, 1.0000]]])
    """
    check_normalizer(name, percentile)
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    low, high = extremes(maps)
    if not bool(torch.isfinite(low + high).all()):  # both carry NaN over
        raise DataError("maps hold NaN or infinity. Find the image that causes it.")
    return normalized_between(maps, low, high) if name == "minmax" else scale_maps(maps, name, percentile)


def scale_maps(maps: Tensor, name: str, percentile: float | None, find: Callable[..., Tensor] | None = None) -> Tensor:
    """``normalize_maps`` without its checks: tensor steps alone, where ``find(maps, percentile)`` is so (N, 1, 1)."""
    if name == "minmax":
        return normalize(maps)
    low, high = limits(maps, name, percentile, find)
    usable = (normalize(maps).amax((-2, -1), keepdim=True) > 0) & (high > low)
    return torch.where(usable, ((maps - low) / torch.where(usable, high - low, 1)).clamp(0, 1), 0)


def limits(
    maps: Tensor, name: str, percentile: float | None, find: Callable[..., Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The raw values (N, 1, 1) that become 0 and 1; a map whose limits do not differ has no heat."""
    find = find or _percentile
    low, high = extremes(maps)
    if name == "max":
        low = torch.zeros_like(low)
    elif name == "pas":
        cut = find(maps, percentile or 0)
        high = torch.where(cut > low, cut, high)
    elif name == "ivr":
        low = find(maps, percentile or 0)
    return low, high


def _percentile(maps: Tensor, percentile: float) -> Tensor:
    return maps.flatten(1).quantile(percentile / 100, dim=1)[:, None, None]
