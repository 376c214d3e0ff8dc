"""From raw maps to boxes: the normaliser and the threshold that a split with boxes asks for.

The choice is worth more than most training tricks: on CUB, IVR instead of min-max 3.2 points of MaxBoxAccV2 (Kim et
al. 2021), an uncalibrated threshold 35 points (Murtaza et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigError, DataError
from ...maps import normalize
from .box import best_iou_at_threshold, best_iou_by_threshold, thresholds

__all__ = [
    "NORMALIZERS",
    "Calibration",
    "Normalizer",
    "calibrate",
    "calibrated_accuracy",
    "normalize_maps",
    "scale_maps",
]


class Normalizer(NamedTuple):
    """A name of `normalize_maps` and its percentile, None where it has none."""

    name: str
    percentile: float | None = None


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
    """
    if name not in {known.name for known in NORMALIZERS}:
        raise ConfigError(f'normalizer {name!r} is unknown. Choose "minmax", "max", "pas" or "ivr".')
    if (percentile is None) == (name in ("pas", "ivr")) or not 0 <= (percentile or 0) <= 100:
        raise ConfigError(f'percentile={percentile} does not fit {name!r}: "pas" and "ivr" take one in 0..100.')
    if not bool(torch.isfinite(maps).all()):
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
    return torch.stack([one.flatten().quantile(percentile / 100) for one in maps])[:, None, None]


class Calibration(NamedTuple):
    """What was chosen and what it was chosen from."""

    normalizer: Normalizer
    threshold: float
    accuracy: float
    """Share of the images hit at the chosen point, mean over the IoUs: on the maps that it was fitted to."""
    curves: dict[Normalizer, Tensor]
    """(count,) float64 each: the accuracy at thresholds 0, 1/count, ..."""


def calibrate(
    maps: Tensor, boxes: Sequence[Tensor], *, normalizers: Sequence[Normalizer] = NORMALIZERS,
    iou_thresholds: Sequence[float] = (0.5,), largest: bool = True, count: int = 100,
) -> Calibration:  # fmt: skip
    """The normaliser and the threshold with which most maps give the object's box; the first of equals.

    Args:
        maps: (N, H, W) raw maps of the true classes, of image size.
        boxes: N tensors (n, 4), xyxy pixels, exclusive; images without boxes are left out.
        normalizers: to choose from.
        iou_thresholds: an image counts with the share of these that its box reaches.
        largest: the box of the largest component, else the best of all.
        count: number of thresholds, from 0 in steps of 1 / count.

    Raises:
        DataError: maps and boxes differ in number, or no image has a box.
    """
    maps, truths = _with_boxes(maps, boxes)
    bounds = torch.tensor(list(iou_thresholds), dtype=torch.float64)[:, None]
    curves = {}
    for normalizer in normalizers:
        heat = normalize_maps(maps, *normalizer)
        hits = [
            (best_iou_by_threshold(one, truth, count, largest=largest) >= bounds).double().mean(dim=0)
            for one, truth in zip(heat, truths, strict=True)
        ]
        curves[normalizer] = torch.stack(hits).mean(dim=0)
    best = max(curves, key=lambda normalizer: float(curves[normalizer].max()))
    place = int(curves[best].argmax())
    return Calibration(best, float(thresholds(count)[place]), float(curves[best][place]), curves)


def calibrated_accuracy(
    calibration: Calibration, maps: Tensor, boxes: Sequence[Tensor], *,
    iou_thresholds: Sequence[float] = (0.5,), largest: bool = True,
) -> Tensor:  # fmt: skip
    """Share (n,) float64 of the IoUs that each image with boxes reaches with a calibration, such as other images'.

    The mean is the figure to report; `bootstrap_interval` takes the values. Arguments as in `calibrate`.
    """
    maps, truths = _with_boxes(maps, boxes)
    bounds = torch.tensor(list(iou_thresholds), dtype=torch.float64)
    ious = [
        best_iou_at_threshold(one, truth, calibration.threshold, largest=largest)
        for one, truth in zip(normalize_maps(maps, *calibration.normalizer), truths, strict=True)
    ]
    return (torch.tensor(ious, dtype=torch.float64)[:, None] >= bounds).double().mean(dim=1)


def _with_boxes(maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    if maps.dim() != 3 or len(maps) != len(boxes):
        raise DataError(f"maps {tuple(maps.shape)} must be (N, H, W) for {len(boxes)} box lists.")
    kept = [index for index, truth in enumerate(boxes) if len(truth)]
    if not kept:
        raise DataError("No image has a box: there is nothing to calibrate to. Give a split with boxes.")
    return maps[kept], [boxes[index] for index in kept]
