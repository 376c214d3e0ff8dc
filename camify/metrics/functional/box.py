"""Boxes from maps, compared with ground truth."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...boxes import component_boxes
from ...errors import ConfigError, DataError
from .bins import last_reached
from .level_sets import LevelBoxes, level_set_boxes

__all__ = [
    "best_iou_at_threshold", "best_iou_by_threshold", "best_ious_by_threshold", "center_boxes", "iou_with_best_box",
    "label_ranks", "resize_boxes", "thresholds",
]  # fmt: skip


def thresholds(count: int = 100) -> Tensor:
    """Box thresholds 0, 1/count, ..., 1 - 1/count.

    Example:
        >>> thresholds(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    return torch.arange(count, dtype=torch.float32) / count


def best_iou_by_threshold(
    map_HW: Tensor, boxes: Tensor, count: int = 100, *, largest: bool = False, parity: str | None = None
) -> Tensor:
    """For every threshold the best IoU of the map's boxes with any ground-truth box, (count,) float64.

    The map's boxes at a threshold are the tight boxes of the 8-connected components of ``map >= threshold``;
    with ``largest`` only that of the component of most pixels, those of its holes included. 0 where no pixel reaches
    the threshold.

    With ``parity="wsolevaluation"`` they are those of clovaai/wsolevaluation's code (Choe et al. 2020), whose numbers
    come out bit for bit: the map is cut to 8 bits; pixels above, not at, the whole part of threshold times maximum
    count; holes give boxes too (that of their rim); ``largest`` goes by the area of the polygon through the pixels'
    centers, which a line of one pixel does not have; a box ends at the last but one pixel of the image at most;
    ground truth is cut to whole pixels; corners count as part of a box in the IoU, so that boxes are a pixel larger
    on the right and at the bottom; a map of zeros has the box (0, 0, 0, 0).

    Args:
        map_HW: map in [0, 1], at image size.
        boxes: ground truth (n, 4), n >= 1, xyxy pixels, exclusive.
        count: number of thresholds, from 0 in steps of 1 / count.
        largest: keep the largest component only.
        parity: None or ``"wsolevaluation"``.

    Raises:
        ConfigError: the parity is unknown.

    Example:
        >>> import torch
        >>> heat = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.6], [0.0, 0.6, 0.6]])
        >>> best_iou_by_threshold(heat, torch.tensor([[1, 1, 3, 3]]), count=4).tolist()
        [0.4444444444444444, 1.0, 1.0, 0.25]
    """
    _check_parity(parity)
    truth = _numpy(boxes)
    heat = map_HW.detach().cpu()
    if parity is None:
        return torch.from_numpy(_best_iou(heat.float().numpy(), truth, count, largest))
    return torch.from_numpy(_best_iou_wsolevaluation(heat.double().numpy(), truth, count, largest))


def best_ious_by_threshold(map_HW: Tensor, boxes: Tensor, count: int = 100) -> tuple[Tensor, Tensor]:
    """`best_iou_by_threshold` of all components, and of the largest, for little more than one of them costs.

    Example:
        >>> heat = torch.tensor([[1.0, 0.0, 0.5, 0.5]])  # two components from 0.5 on, the second is larger
        >>> best_ious_by_threshold(heat, torch.tensor([[0, 0, 1, 1]]), count=2)
        (tensor([0.2500, 1.0000], dtype=torch.float64), tensor([0.2500, 0.0000], dtype=torch.float64))
    """
    heat, truth = map_HW.detach().cpu().float().numpy(), _numpy(boxes)
    levels, largest = _level_boxes(heat, count, largest=True)
    of_all, of_largest = (
        torch.from_numpy(_best_per_level(level_boxes, _iou_with_best(level_boxes.boxes, truth), count))
        for level_boxes in (levels, largest)
    )
    return of_all, of_largest


def best_iou_at_threshold(
    map_HW: Tensor, boxes: Tensor, threshold: float, *, largest: bool = False, parity: str | None = None
) -> float:
    """The best IoU of the map's boxes at one threshold in [0, 1]; else as in `best_iou_by_threshold`.

    Example:
        >>> heat, truth = torch.tensor([[1.0, 0.0, 0.5, 0.5]]), torch.tensor([[0, 0, 1, 1]])
        >>> best_iou_at_threshold(heat, truth, 0.5), best_iou_at_threshold(heat, truth, 0.5, largest=True)
        (1.0, 0.0)
    """
    _check_parity(parity)
    truth = _numpy(boxes)
    heat = map_HW.detach().cpu()
    if parity is None:
        predicted = component_boxes(heat.float().numpy() >= np.float32(threshold), largest=largest)
        return float(_iou_with_best(predicted, truth).max(initial=0.0))
    level = (heat.double().numpy() * 255).astype(np.uint8)
    outlines, _ = cv2.findContours(
        (level > int(threshold * int(level.max()))).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
    )
    chosen = [max(outlines, key=cv2.contourArea)] if largest and outlines else outlines
    predicted = np.array([cv2.boundingRect(outline) for outline in chosen] or [(0, 0, 0, 0)])
    predicted[:, 2:] += predicted[:, :2]
    return float(_iou_with_best(_cut(predicted, *level.shape), np.trunc(truth), corner=1).max())


def _numpy(boxes: Tensor) -> NDArray[np.float64]:
    return boxes.detach().cpu().double().numpy()


def _check_parity(parity: str | None) -> None:
    if parity not in (None, "wsolevaluation"):
        raise ConfigError(f'parity={parity!r} is unknown. Choose None or "wsolevaluation".')


def _cut(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    cut: np.ndarray = np.minimum(boxes, (width, height, width - 1, height - 1))
    return cut


def _best_iou(heat: np.ndarray, truth: np.ndarray, count: int, largest: bool) -> NDArray[np.float64]:
    levels = _level_boxes(heat, count, largest=largest)[int(largest)]
    return _best_per_level(levels, _iou_with_best(levels.boxes, truth), count)


def _level_boxes(heat: np.ndarray, count: int, *, largest: bool) -> tuple[LevelBoxes, LevelBoxes]:
    """Boxes of all components at every threshold, and those of the largest, where they are asked for."""
    level = last_reached(heat, np.append(thresholds(count).numpy(), (np.float32(2), np.float32(3))))
    levels = level_set_boxes(heat, level, count, units_HW=level if largest else None)
    if not largest:
        return levels, levels
    return levels, _largest_per_level(
        levels, level, np.arange(count), 0, lambda mask: component_boxes(mask, largest=True)[0]
    )


def _best_iou_wsolevaluation(heat: np.ndarray, truth: np.ndarray, count: int, largest: bool) -> NDArray[np.float64]:
    truth = np.trunc(truth)
    level = (heat * 255).astype(np.uint8).astype(np.intp)
    highest = int(level.max())
    if highest == 0:
        return np.full(count, _iou_with_best(np.zeros((1, 4)), truth, corner=1)[0])
    asked = (np.arange(count) * (1 / count) * highest).astype(np.intp) + 1
    squares = cv2.erode(level.astype(np.uint8), np.ones((2, 2), np.uint8), anchor=(0, 0), borderValue=0).astype(np.intp)
    levels = level_set_boxes(heat, level, highest + 1, units_HW=squares if largest else None, holes=not largest)
    if largest:
        levels = _largest_per_level(levels, level, np.unique(asked), 1, _largest_polygon)
    iou = _iou_with_best(_cut(levels.boxes, *heat.shape), truth, corner=1)
    return _best_per_level(levels, iou, highest + 1)[asked]


def _largest_per_level(
    level_boxes: LevelBoxes, level: NDArray[np.intp], asked: NDArray[np.intp], corner: int,
    choose: Callable[[np.ndarray], np.ndarray],
) -> LevelBoxes:  # fmt: skip
    """The box of the largest component of each level that is asked for.

    A component is at least as large as the units in it and at most as large as its box, less ``corner`` on each
    side. Where this leaves no doubt about the largest, it is taken; else it is chosen from the level's mask.
    """
    order = np.lexsort((-level_boxes.units, level_boxes.levels))
    boxes, levels, units = (part[order] for part in level_boxes)
    most = np.prod(boxes[:, 2:] - boxes[:, :2] - corner, axis=1)
    first = np.flatnonzero(np.diff(levels, prepend=-1))
    best_units = np.append(most, 0)
    best_units[first] = 0
    doubtful = np.maximum.reduceat(best_units, first) >= units[first]
    several = np.diff(np.append(first, len(levels))) > 1
    open_levels = np.intersect1d(levels[first[doubtful & several]], asked)
    chosen = [choose(level >= number) for number in open_levels]
    sure = first[~(doubtful & several)]
    all_boxes = np.concatenate([boxes[sure], np.reshape(chosen, (-1, 4)).astype(np.intp)])
    return LevelBoxes(all_boxes, np.concatenate([levels[sure], open_levels]), np.zeros(len(all_boxes), np.intp))


def _largest_polygon(mask: np.ndarray) -> np.ndarray:
    """The box of the border, a component's or a hole's, that encloses most; the first in OpenCV's order of equals."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    x, y, width, height = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    return np.array((x, y, x + width, y + height))


def _best_per_level(levels: LevelBoxes, iou: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    best = np.zeros(count)
    np.maximum.at(best, levels.levels, iou)
    return best


def _iou_with_best(boxes: np.ndarray, truth: np.ndarray, corner: int = 0) -> NDArray[np.float64]:
    """IoU of every box (m, 4) with the best of the truth (n, 4). ``corner`` 1: the corner pixels belong to a box."""
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    area = (x1 - x0 + corner) * (y1 - y0 + corner)
    best = np.zeros(len(boxes))
    for left, top, right, bottom in truth.tolist():
        width = np.minimum(x1, right) - np.maximum(x0, left) + corner
        height = np.minimum(y1, bottom) - np.maximum(y0, top) + corner
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        np.maximum(best, overlap / (area + (right - left + corner) * (bottom - top + corner) - overlap), out=best)
    return best


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


def iou_with_best_box(candidates: Tensor, boxes: Tensor) -> Tensor:
    """For every candidate (m, 4) its IoU with the best of the boxes (n, 4), n >= 1; shape (m,) float64.

    Raises:
        DataError: there is no box.

    Example:
        >>> candidates = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]])
        >>> iou_with_best_box(candidates, torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    if len(boxes) == 0:
        raise DataError("An image without boxes has no IoU; leave it out.")
    return torch.from_numpy(_iou_with_best(_numpy(candidates), _numpy(boxes)))


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


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """The place (N,) of the label among the scores (N, K), from 0; of equals the lower class comes first.

    Example:
        >>> label_ranks(torch.tensor([[0.2, 0.7, 0.1], [0.4, 0.4, 0.2]]), torch.tensor([0, 1]))
        tensor([1, 1])
    """
    label_scores = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > label_scores) | ((scores == label_scores) & earlier)).sum(dim=1)
