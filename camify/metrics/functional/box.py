"""Boxes, and how well they fit the true ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from .level_sets import LevelBoxes
from .merge_tree import Ints

__all__ = ["center_box_ious", "center_boxes", "iou_with_best_box", "resize_boxes"]

_ROWS = 1 << 14  # boxes that are compared at once: more would not stay in the cache


def center_boxes(height: int, width: int, steps: int = 20) -> Tensor:
    """Boxes (steps^2, 4) float64 around the center, with sides of 1/steps ... 1 of the image, xyxy pixels.

    Example:
        >>> center_boxes(4, 4)[-1]  # the largest is the image
        tensor([0., 0., 4., 4.], dtype=torch.float64)
    """
    sides = torch.arange(1, steps + 1, dtype=torch.float64) / (2 * steps)
    half_h, half_w = torch.meshgrid(sides * height, sides * width, indexing="ij")
    x, y = width / 2, height / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1).reshape(-1, 4)


def center_box_ious(boxes: Sequence[Tensor], height: int, width: int, steps: int = 20) -> Tensor:
    """`iou_with_best_box` of the `center_boxes` (N, steps^2): each width and each height is compared once.

    Example:
        >>> center_box_ious([torch.tensor([[0, 0, 4, 4]])], 4, 4, steps=2)  # a quarter, two halves, the whole image
        tensor([[0.2500, 0.5000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    truths = [box_numbers(own) for own in boxes]
    boxed = [place for place, own in enumerate(truths) if len(own)]
    rows = torch.full((len(boxes), steps * steps), torch.nan, dtype=torch.float64)
    if not boxed:
        return rows
    sides = box_numbers(center_boxes(height, width, steps)).reshape(steps, steps, 4)
    left, top, right, bottom = sides.transpose(2, 0, 1)
    (left, right), (top, bottom) = (left[0], right[0]), (top[:, 0], bottom[:, 0])  # widths along a row, heights down
    areas, best = np.multiply.outer(bottom - top, right - left), np.zeros((len(boxed), steps, steps))
    for own in _filled([truths[place] for place in boxed]).transpose(1, 2, 0)[..., None]:
        across = np.maximum(np.minimum(right, own[2]) - np.maximum(left, own[0]), 0)
        down = np.maximum(np.minimum(bottom, own[3]) - np.maximum(top, own[1]), 0)
        overlap = down[:, :, None] * across[:, None]
        area = ((own[2] - own[0]) * (own[3] - own[1]))[:, :, None]
        best = np.maximum(best, overlap / (areas + area - overlap))
    rows[boxed] = torch.from_numpy(best.reshape(len(boxed), -1))
    return rows


def iou_with_best_box(candidates: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """For every candidate (m, 4) its IoU with the best of the boxes (n, 4), n >= 1; shape (m,) float64.

    Of several images' boxes, N tensors (n, 4) or one (N, n, 4), it is (N, m); n may be 0, whose rows are NaN.

    Raises:
        DataError: one image has no box.

    Example:
        >>> candidates = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]])
        >>> iou_with_best_box(candidates, torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    if isinstance(boxes, Tensor) and boxes.dim() == 2:
        if len(boxes) == 0:
            raise DataError("An image without boxes has no IoU; leave it out.")
        return iou_with_best_box(candidates, [boxes])[0]
    truths, tried = [box_numbers(own) for own in boxes], box_numbers(candidates)
    boxed = [place for place, own in enumerate(truths) if len(own)]
    rows = torch.full((len(boxes), len(tried)), torch.nan, dtype=torch.float64)
    at_once = max(_ROWS // max(len(tried), 1), 1)
    for first in range(0, len(boxed), at_once):
        places = boxed[first : first + at_once]
        filled = _filled([truths[place] for place in places])
        rows[places] = torch.from_numpy(iou_with_best(tried, filled.transpose(1, 2, 0)[..., None]))
    return rows


def resize_boxes(boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4), xyxy pixels, of an image (height, width) in the pixels of its copy of another size, float64.

    Example:
        >>> import torch
        >>> resize_boxes(torch.tensor([[1, 2, 4, 3]]), (20, 10), (10, 35)).tolist()
        [[3.5, 1.0, 14.0, 1.5]]
    """
    (height, width), (new_height, new_width) = image_size, size
    new_sides = torch.tensor([new_width, new_height] * 2, dtype=torch.float64)
    return boxes.double() * new_sides / torch.tensor([width, height] * 2, dtype=torch.float64)


def best_per_level(
    level_boxes: LevelBoxes, truths: list[np.ndarray], count: int, corner: int = 0
) -> NDArray[np.float64]:
    """The best IoU with the truth of the map (N, count); 0 where there is no box."""
    first, best = firsts(level_boxes.levels), np.zeros(len(truths) * count)
    best[level_boxes.levels[first]] = np.maximum.reduceat(level_ious(level_boxes, truths, count, corner), first)
    return best.reshape(len(truths), count)


def level_ious(level_boxes: LevelBoxes, truths: list[np.ndarray], count: int, corner: int = 0) -> NDArray[np.float64]:
    """The IoU of each box with the best of the truth of its map."""
    filled, ious = _filled(truths), np.empty(len(level_boxes.boxes))
    for start in range(0, len(ious), _ROWS):
        rows = slice(start, start + _ROWS)
        own = filled[level_boxes.levels[rows] // count] if len(truths) > 1 else filled
        ious[rows] = iou_with_best(level_boxes.boxes[rows], own.transpose(1, 2, 0), corner)
    return ious


def firsts(levels: Ints) -> Ints:
    """The places of the first of each level of a sorted row."""
    return np.flatnonzero(np.concatenate([[True], levels[1:] != levels[:-1]]))


def _filled(truths: list[np.ndarray]) -> NDArray[np.float64]:
    """Boxes of images as one (N, n, 4); where an image has fewer the first one again."""
    counts = np.array([len(own) for own in truths])
    number, first = np.arange(counts.max()), np.cumsum(counts) - counts
    filled: NDArray[np.float64] = np.concatenate(truths)[first[:, None] + number * (number < counts[:, None])]
    return filled


def iou_with_best(boxes: np.ndarray, truths: Iterable[np.ndarray], corner: int = 0) -> NDArray[np.float64]:
    """IoU of every box (m, 4) with the best of the truth. ``corner`` 1: the corner pixels belong to a box.

    Args:
        boxes: xyxy pixels.
        truths: the numbers of a true box, (4,), (4, m), of each box another, or (4, N, 1), which gives (N, m).
        corner: 0 or 1.
    """
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    area = (x1 - x0 + corner) * (y1 - y0 + corner)
    best = np.zeros(len(boxes))
    for left, top, right, bottom in truths:
        width = np.minimum(x1, right) - np.maximum(x0, left) + corner
        height = np.minimum(y1, bottom) - np.maximum(y0, top) + corner
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        best = np.maximum(best, overlap / (area + (right - left + corner) * (bottom - top + corner) - overlap))
    return best


def box_pixels(boxes: Ints, corner: int = 0) -> Ints:
    """The pixels of each box; with ``corner`` 1 without those of its last row and column."""
    pixels: Ints = (boxes[:, 2] - boxes[:, 0] - corner) * (boxes[:, 3] - boxes[:, 1] - corner)
    return pixels


def box_numbers(boxes: Tensor) -> NDArray[np.float64]:
    """Boxes as NumPy has them."""
    return boxes.detach().cpu().double().numpy()
