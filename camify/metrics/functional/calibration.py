"""From raw maps to boxes: the normalizer and the threshold that a split with boxes asks for.

The choice is worth more than most training tricks: on CUB, IVR instead of min-max 3.2 points of MaxBoxAccV2 (Kim et
al. 2021), an uncalibrated threshold 35 points (Murtaza et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...boxes import otsu_thresholds, percentile_of_sorted
from ...errors import DataError
from ...normalizers import NORMALIZERS, Normalizer, limits, normalize_maps, scale_maps
from .box_curves import best_iou_at_threshold, best_iou_by_threshold, thresholds

__all__ = ["Calibration", "box_ious", "calibrate", "calibrated_accuracy"]

_CUTS = 200  # of a map's range, to which thresholds are rounded


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
    """The normalizer and the threshold with which most maps give the object's box; the first of equals.

    Args:
        maps: (N, H, W) raw maps of the true classes, of image size.
        boxes: N tensors (n, 4), xyxy pixels, exclusive; images without boxes are left out.
        normalizers: to choose from.
        iou_thresholds: an image counts with the share of these that its box reaches.
        largest: the box of the largest component, else the best of all.
        count: number of thresholds, from 0 in steps of 1 / count.

    Raises:
        DataError: maps and boxes differ in number, or no image has a box.

    Example:
        >>> maps, boxes = torch.tensor([[[0.0, 0.0, 0.0, 2.0]]]), [torch.tensor([[3, 0, 4, 1]])]
        >>> calibration = calibrate(maps, boxes, count=4)
        >>> calibration.normalizer.name, calibration.threshold, calibration.accuracy
        ('minmax', 0.25, 1.0)
    """
    maps, truths = _with_boxes(maps, boxes)
    bounds = torch.tensor(list(iou_thresholds), dtype=torch.float64)[:, None]
    curves = {}
    for normalizer in normalizers:
        heats = normalize_maps(maps, *normalizer)
        ious_NT = best_iou_by_threshold(heats, truths, count, largest=largest)
        curves[normalizer] = (ious_NT[:, None] >= bounds).double().mean(dim=1).mean(dim=0)
    best = max(curves, key=lambda normalizer: float(curves[normalizer].max()))
    place = int(curves[best].argmax())
    return Calibration(best, float(thresholds(count)[place]), float(curves[best][place]), curves)


def box_ious(
    maps: Tensor, boxes: Sequence[Tensor], *, normalizers: Sequence[Normalizer] = NORMALIZERS, count: int = 100
) -> dict[Normalizer, Tensor]:
    """The IoU (N, count + 1) of each map's box with the best true one, at every threshold; last at Otsu's.

    The box is that of the largest component. Every normalizer orders pixels alike: a map is cut once at 200 levels of
    its range, to the nearest of which all thresholds are rounded, which makes 7 normalizers about as fast as one.

    Args:
        maps: (N, H, W) raw maps of image size.
        boxes: N tensors (n, 4), n >= 1, xyxy pixels, exclusive.
        normalizers: to cut by.
        count: thresholds 0, 1/count, ...

    Example:
        >>> maps, boxes = torch.tensor([[[0.0, 0.0, 1.0, 2.0]]]), [torch.tensor([[3, 0, 4, 1]])]
        >>> box_ious(maps, boxes, normalizers=[Normalizer("minmax")], count=4)
        {Normalizer(name='minmax', percentile=None): tensor([[0.2500, 0.5000, 0.5000, 1.0000, 0.5000]])}
    """
    unit = scale_maps(maps, "minmax", None)
    by_level = best_iou_by_threshold(unit, boxes, _CUTS, largest=True).float()
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    span = (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    ordered = maps.flatten(1).sort(dim=1).values

    def find(_: Tensor, share: float) -> Tensor:
        return percentile_of_sorted(ordered, share)

    ious = {}
    for normalizer in normalizers:
        heat = scale_maps(maps, *normalizer, find)
        first, last = (limit[:, 0, 0] for limit in limits(maps, *normalizer, find))
        cuts = torch.cat([thresholds(count).to(maps).expand(len(maps), -1), otsu_thresholds(heat)[:, :, 0]], dim=1)
        share = (first[:, None] + cuts * (last - first)[:, None] - low[:, None]) / span[:, None]
        level = (share * _CUTS).round().clamp(1, _CUTS - 1).where((cuts > 0) & (share > 0), 0)
        some = heat.amax((1, 2)) > 0
        ious[normalizer] = torch.where(some[:, None], by_level.gather(1, level.long()), 0)
    return ious


def calibrated_accuracy(
    calibration: Calibration, maps: Tensor, boxes: Sequence[Tensor], *,
    iou_thresholds: Sequence[float] = (0.5,), largest: bool = True,
) -> Tensor:  # fmt: skip
    """Share (n,) float64 of the IoUs that each image with boxes reaches with a calibration, such as other images'.

    The mean is the figure to report; `bootstrap_interval` takes the values. Arguments as in `calibrate`.

    Example:
        >>> calibration = Calibration(Normalizer("minmax"), threshold=0.5, accuracy=1.0, curves={})
        >>> maps, boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]]), [torch.tensor([[3, 0, 4, 1]])]
        >>> calibrated_accuracy(calibration, maps, boxes, iou_thresholds=(0.3, 0.5, 0.7))  # the IoU is 0.5
        tensor([0.6667], dtype=torch.float64)
    """
    maps, truths = _with_boxes(maps, boxes)
    bounds = torch.tensor(list(iou_thresholds), dtype=torch.float64)
    ious = [
        best_iou_at_threshold(heat, truth, calibration.threshold, largest=largest)
        for heat, truth in zip(normalize_maps(maps, *calibration.normalizer), truths, strict=True)
    ]
    return (torch.tensor(ious, dtype=torch.float64)[:, None] >= bounds).double().mean(dim=1)


def _with_boxes(maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    if maps.dim() != 3 or len(maps) != len(boxes):
        raise DataError(f"maps {tuple(maps.shape)} must be (N, H, W) for {len(boxes)} box lists.")
    with_boxes = [index for index, truth in enumerate(boxes) if len(truth)]
    if not with_boxes:
        raise DataError("No image has a box: there is nothing to calibrate to. Give a split with boxes.")
    return maps[with_boxes], [boxes[index] for index in with_boxes]
