"""Boxes from maps, compared with ground truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ...errors import DataError
from ...maps import component_boxes

__all__ = ["best_iou_by_threshold", "centre_boxes", "iou_with_best_box", "thresholds"]


def thresholds(count: int = 100) -> Tensor:
    """Box thresholds 0, 1/count, ..., 1 - 1/count."""
    return torch.arange(count) / count


def best_iou_by_threshold(map_HW: Tensor, boxes: Tensor, count: int = 100, *, largest: bool = False) -> Tensor:
    """For every threshold the best IoU of the map's boxes with any ground-truth box, (count,) float64.

    The map's boxes at a threshold are the tight boxes of the 8-connected components of ``map >= threshold``;
    with ``largest`` only that of the component of most pixels. 0 where no pixel reaches the threshold.

    Args:
        map_HW: map in [0, 1], at image size.
        boxes: ground truth (n, 4), n >= 1, xyxy pixels, exclusive.
        count: number of thresholds, from 0 in steps of 1 / count; at most 255.
        largest: keep the largest component only.
    """
    # The level of a pixel is the last threshold that it reaches; between levels nothing changes.
    heat = map_HW.detach().float().cpu().numpy()  # numpy: the tensors are too small for torch's threads
    levels = (np.searchsorted(thresholds(count).numpy(), heat, side="right") - 1).astype(np.uint8)
    truth = boxes.detach().cpu().double()
    present = np.bincount(levels.ravel()).nonzero()[0].astype(np.uint8)
    found = [component_boxes(levels >= level, largest=largest) for level in present]
    per_box = box_iou(torch.from_numpy(np.concatenate(found)).double(), truth).amax(dim=1).numpy()
    starts = np.cumsum([0, *map(len, found[:-1])])
    per_level = np.append(np.maximum.reduceat(per_box, starts), 0.0)  # 0 above the highest level
    return torch.from_numpy(per_level[np.searchsorted(present, np.arange(count))])


def centre_boxes(height: int, width: int, steps: int = 20) -> Tensor:
    """Boxes (steps^2, 4) float64 around the centre, with sides of 1/steps ... 1 of the image, xyxy pixels."""
    sides = torch.arange(1, steps + 1, dtype=torch.float64) / (2 * steps)
    half_h, half_w = torch.meshgrid(sides * height, sides * width, indexing="ij")
    x, y = width / 2, height / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1).reshape(-1, 4)


def iou_with_best_box(candidates: Tensor, boxes: Tensor) -> Tensor:
    """For every candidate (m, 4) its IoU with the best of the boxes (n, 4), n >= 1; shape (m,)."""
    if len(boxes) == 0:
        raise DataError("An image without boxes has no IoU; leave it out.")
    best: Tensor = box_iou(candidates, boxes.to(candidates)).amax(dim=1)
    return best
