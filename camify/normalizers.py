"""From a raw map to one in [0, 1]: the normalizers of the literature, which decide where a threshold cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ConfigError, DataError
from .maps import normalize

__all__ = ["NORMALIZERS", "Normalizer", "normalize_maps", "scale_maps"]


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
        normalize_maps(torch.zeros(1, 2, 2, dtype=torch.float32), *chosen)
        return chosen


NORMALIZERS = (
    Normalizer("minmax"),
    Normalizer("max"),
    Normalizer("pas", 90.0),
    *(Normalizer("ivr", percentile) for percentile in (25.0, 35.0, 45.0, 55.0)),
)


def normalize_maps(maps: Tensor, name: str = "minmax", percentile: float | None = None) -> Tensor:
    """Raw maps (N, H, W) of image size in [0, 1]; a map without contrast, or without positive evidence, gives zeros.

    - ``"minmax"``: (m - min) / (max - min).
    - ``"max"``: ReLU(m) / max. Zhou et al. 2016.
    - ``"pas"``: (m - min) / percentile of (m - min), cut at 1. Bae et al. 2020, there 90.
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
    if name not in {known.name for known in NORMALIZERS}:
        raise ConfigError(f'normalizer {name!r} is unknown. Choose "minmax", "max", "pas" or "ivr".')
    if (percentile is None) == (name in ("pas", "ivr")) or not 0 <= (percentile or 0) <= 100:
        raise ConfigError(f'percentile={percentile} does not fit {name!r}: "pas" and "ivr" take one in 0..100.')
    if maps.numel() and not bool(torch.isfinite(maps.amin() + maps.amax())):  # both carry NaN over
        raise DataError("maps hold NaN or infinity. Find the image that causes it.")
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    return scale_maps(maps, name, percentile)


def scale_maps(maps: Tensor, name: str, percentile: float | None, find: Callable[..., Tensor] | None = None) -> Tensor:
    """``normalize_maps`` without its checks: tensor steps alone, where ``find(maps, percentile)`` is so (N, 1, 1)."""
    if name == "minmax":
        return normalize(maps)
    find = find or _percentile
    varies = normalize(maps).amax((-2, -1), keepdim=True) > 0
    if name == "max":
        low, high = torch.zeros_like(maps), maps.amax((-2, -1), keepdim=True)
    elif name == "pas":
        low = maps.amin((-2, -1), keepdim=True)
        high = find(maps, percentile or 0)
    else:
        low, high = find(maps, percentile or 0), maps.amax((-2, -1), keepdim=True)
    usable = varies & (high > low)
    return torch.where(usable, ((maps - low) / torch.where(usable, high - low, 1)).clamp(0, 1), 0)


def _percentile(maps: Tensor, percentile: float) -> Tensor:
    return torch.stack([map_HW.flatten().quantile(percentile / 100) for map_HW in maps])[:, None, None]
