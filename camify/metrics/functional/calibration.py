"""From raw maps to boxes: the normalizer and the threshold that a split with boxes asks for.

The choice is worth more than most training tricks: on CUB, IVR instead of min-max 3.2 points of MaxBoxAccV2 (Kim et
al. 2021), an uncalibrated threshold 35 points (Murtaza et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import DataError
from ...normalizers import NORMALIZERS, Normalizer, normalize_maps
from .box import best_iou_at_threshold, best_iou_by_threshold, thresholds

__all__ = ["Calibration", "calibrate", "calibrated_accuracy"]


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
        hits = [
            (best_iou_by_threshold(heat, truth, count, largest=largest) >= bounds).double().mean(dim=0)
            for heat, truth in zip(heats, truths, strict=True)
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
