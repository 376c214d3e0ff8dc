"""Boxes from maps, compared with ground truth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...boxes import component_boxes, filled_pixels
from ...errors import ConfigError, DataError
from .bilinear_level_sets import bilinear_level_boxes, has_few_cells
from .bins import Steps
from .level_sets import LevelBoxes, level_set_boxes
from .merge_tree import Ints

__all__ = [
    "best_iou_at_threshold", "best_iou_by_threshold", "best_ious_by_threshold", "center_boxes", "iou_with_best_box",
    "ious_reached_by_threshold", "resize_boxes", "thresholds",
]  # fmt: skip


_STACK, _STACKED = 8, 1 << 26
"""Most maps, and most pixels times levels, that share every step: more would not stay in the cache."""
_STACKED_CELLS = 1 << 12
"""Most cells of maps of few cells that share every step: most of the time lies in beginning steps, not in numbers."""
_ROWS = 1 << 14  # boxes that are compared at once, for the same reason


def thresholds(count: int = 100) -> Tensor:
    """Box thresholds 0, 1/count, ..., 1 - 1/count.

    Example:
        >>> thresholds(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    return torch.arange(count, dtype=torch.float32) / count


def best_iou_by_threshold(
    maps: Tensor,
    boxes: Tensor | Sequence[Tensor],
    count: int = 100,
    *,
    largest: bool = False,
    parity: str | None = None,
) -> Tensor:
    """For every threshold the best IoU of a map's boxes with any ground-truth box, (count,) or (N, count) float64.

    The map's boxes at a threshold are the tight boxes of the 8-connected components of ``map >= threshold``;
    with ``largest`` only that of the component of most pixels, those of its holes included. 0 where no pixel reaches
    the threshold. Several maps at once take less time than one after the other, and all of PyTorch's threads.

    With ``parity="wsolevaluation"`` they are those of clovaai/wsolevaluation's code (Choe et al. 2020), whose numbers
    come out bit for bit: the map is cut to 8 bits; pixels above, not at, the whole part of threshold times maximum
    count; holes give boxes too (that of their rim); ``largest`` goes by the area of the polygon through the pixels'
    centers, which a line of one pixel does not have; a box ends at the last but one pixel of the image at most;
    ground truth is cut to whole pixels; corners count as part of a box in the IoU, so that boxes are a pixel larger
    on the right and at the bottom; a map of zeros has the box (0, 0, 0, 0).

    Args:
        maps: a map (H, W) in [0, 1], at image size; or several, (N, H, W).
        boxes: ground truth (n, 4), n >= 1, xyxy pixels, exclusive; of several maps N of these, n may be 0: their rows
            are NaN.
        count: number of thresholds, from 0 in steps of 1 / count.
        largest: keep the largest component only.
        parity: None or ``"wsolevaluation"``.

    Raises:
        ConfigError: the parity is unknown.
        DataError: there are not as many boxes as maps, or one map has no box.

    Example:
        >>> import torch
        >>> heat = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.6], [0.0, 0.6, 0.6]])
        >>> best_iou_by_threshold(heat, torch.tensor([[1, 1, 3, 3]]), count=4).tolist()
        [0.4444444444444444, 1.0, 1.0, 0.25]
    """
    _check_parity(parity)

    def curves(heats: np.ndarray, truths: list[np.ndarray]) -> list[np.ndarray]:
        if parity is None:
            levels = _level_boxes(heats, count, largest=largest)[int(largest)]
            return [_best_per_level(levels, truths, count)]
        return [_best_wsolevaluation(heats, truths, count, largest)]

    dtype = torch.float32 if parity is None else torch.float64
    return _by_stacks(maps, boxes, dtype, _at_once(maps, count if parity is None else 256), count, curves)[0]


def ious_reached_by_threshold(
    maps: Tensor, boxes: Sequence[Tensor], ious: Sequence[float], count: int = 100, *,
    largest: bool = False, cells: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """For every threshold how many of some IoUs `best_iou_by_threshold` reaches, (N, count) float64.

    NaN where an image has no box.

    Args:
        maps: (N, H, W) in [0, 1], at image size.
        boxes: ground truth, N tensors (n, 4), xyxy pixels, exclusive; n may be 0.
        ious: in ascending order.
        count: number of thresholds, from 0 in steps of 1 / count.
        largest: keep the largest component only.
        cells: (h, w) of the maps before `camify.maps.upsample` brought them to (H, W), whatever normalized them after
            it; None of maps that were made otherwise. The same numbers, of maps of few cells in a third of the time.

    Raises:
        DataError: there are not as many boxes as maps.

    Example:
        >>> import torch
        >>> heat, truth = torch.tensor([[[1.0, 0.0, 0.5, 0.5]]]), [torch.tensor([[0, 0, 1, 1]])]
        >>> ious_reached_by_threshold(heat, truth, [0.2, 0.5], count=2)
        tensor([[1., 2.]], dtype=torch.float64)
    """
    bounds = np.array(ious, dtype=np.float64)
    few = cells if cells is not None and has_few_cells(cells, (maps.shape[-2], maps.shape[-1])) else None
    if few is None:
        best = best_iou_by_threshold(maps, boxes, count, largest=largest)
        reached = (best[..., None] >= torch.from_numpy(bounds)).sum(-1)
        return torch.where(best.isnan(), torch.nan, reached.double())

    def curves(heats: np.ndarray, truths: list[np.ndarray]) -> list[np.ndarray]:
        return [_reached_of_few_cells(heats, truths, bounds, count, few, largest)]

    at_once = max(_STACKED_CELLS // (few[0] * few[1]), 1)
    return _by_stacks(maps, boxes, torch.float32, at_once, count, curves, in_threads=False)[0]


def _reached_of_few_cells(
    heats: np.ndarray, truths: list[np.ndarray], bounds: NDArray[np.float64], count: int, cells: tuple[int, int],
    largest: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """Of all boxes the most, or that of the largest component, which is looked for only where another reaches less."""
    level_boxes = bilinear_level_boxes(heats, cells, _steps(count))
    reached, levels = (_ious(level_boxes, truths, count)[:, None] >= bounds).sum(1), level_boxes.levels
    if largest:
        possible, first = _possibly_largest(level_boxes, _box_pixels(level_boxes.boxes))
        reached, levels = reached[possible], levels[possible]
    else:
        first = _firsts(levels)
    best = np.maximum.reduceat(reached, first)
    unsure = np.flatnonzero(np.minimum.reduceat(reached, first) < best) if largest else first[:0]
    if len(unsure):
        numbers, cuts = levels[first[unsure]], _steps(count).thresholds
        around = [
            extreme.reduceat(level_boxes.boxes[possible, sides], first)[unsure].tolist()
            for extreme, sides in ((np.minimum, slice(2)), (np.maximum, slice(2, 4)))
        ]
        boxes = []
        for number, (left, top), (right, bottom) in zip(numbers.tolist(), *around, strict=True):
            part = heats[number // count, top:bottom, left:right] >= cuts[number % count]
            boxes.append(component_boxes(part, largest=True) + np.array((left, top, left, top)))
        chosen = LevelBoxes(np.concatenate(boxes), numbers, numbers, numbers)
        best[unsure] = (_ious(chosen, truths, count)[:, None] >= bounds).sum(1)
    curves = np.zeros(len(heats) * count)
    curves[levels[first]] = best
    return curves.reshape(len(heats), count)


def best_ious_by_threshold(maps: Tensor, boxes: Tensor | Sequence[Tensor], count: int = 100) -> tuple[Tensor, Tensor]:
    """`best_iou_by_threshold` of all components, and of the largest, for little more than one of them costs.

    Example:
        >>> heat = torch.tensor([[1.0, 0.0, 0.5, 0.5]])  # two components from 0.5 on, the second is larger
        >>> best_ious_by_threshold(heat, torch.tensor([[0, 0, 1, 1]]), count=2)
        (tensor([0.2500, 1.0000], dtype=torch.float64), tensor([0.2500, 0.0000], dtype=torch.float64))
    """

    def curves(heats: np.ndarray, truths: list[np.ndarray]) -> list[np.ndarray]:
        return [_best_per_level(levels, truths, count) for levels in _level_boxes(heats, count, largest=True)]

    of_all, of_largest = _by_stacks(maps, boxes, torch.float32, _at_once(maps, count), count, curves)
    return of_all, of_largest


def _at_once(maps: Tensor, levels: int) -> int:
    return min(max(_STACKED // (maps.shape[-2] * maps.shape[-1] * levels), 1), _STACK)


def _by_stacks(
    maps: Tensor, boxes: Tensor | Sequence[Tensor], dtype: torch.dtype, at_once: int, count: int,
    curves_of: Callable[[np.ndarray, list[np.ndarray]], list[np.ndarray]], *, in_threads: bool = True,
) -> list[Tensor]:  # fmt: skip
    """What ``curves_of`` gives of stacks of maps (M, H, W) and their boxes, one or two (M, count), put together."""
    if maps.dim() == 2:
        if not len(boxes):
            raise DataError("A map without boxes has no IoU; leave it out.")
        truth = torch.as_tensor(boxes)
        return [curves[0] for curves in _by_stacks(maps[None], [truth], dtype, 1, count, curves_of)]
    if maps.dim() != 3 or len(maps) != len(boxes):
        raise DataError(f"maps {tuple(maps.shape)} must be (N, H, W), with boxes of as many images, not {len(boxes)}.")
    heats, truths = maps.detach().cpu(), [_numpy(own) for own in boxes]
    boxed = [place for place, own in enumerate(truths) if len(own)]

    def stack(first: int) -> tuple[list[int], list[np.ndarray]]:
        places = boxed[first : first + at_once]
        own = heats[places[0] : places[-1] + 1] if places[-1] - places[0] < len(places) else heats[places]
        return places, curves_of(own.to(dtype).numpy(), [truths[place] for place in places])

    firsts = range(0, len(boxed), at_once)
    if (
        in_threads and min(torch.get_num_threads(), len(firsts)) > 1
    ):  # NumPy's and OpenCV's steps over whole stacks leave Python's lock free
        stacks = list(_threads(torch.get_num_threads(), os.getpid()).map(stack, firsts))
    else:
        stacks = [stack(first) for first in firsts]
    kinds = len(stacks[0][1]) if stacks else 2
    whole = [torch.full((len(boxes), count), torch.nan, dtype=torch.float64) for _ in range(kinds)]
    for places, curves in stacks:
        for rows, own in zip(whole, curves, strict=True):
            rows[places] = torch.from_numpy(own)
    return whole


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: one that ends holds a lock of OpenCV's, and a process that is forked then never gets it.

    A forked process has none of them and takes its own.
    """
    return ThreadPoolExecutor(count, f"camify-boxes-{process}")


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


def _level_boxes(heats: np.ndarray, count: int, *, largest: bool) -> tuple[LevelBoxes, LevelBoxes]:
    """Boxes of all components of maps (N, H, W) at every threshold, and of the largest, where they are asked for."""
    level = _steps(count).last_reached(heats)
    levels = level_set_boxes(heats, level, count, units=[level] if largest else ())
    if not largest:
        return levels, levels
    return levels, _largest_per_level(
        levels, level, count, np.arange(len(heats) * count), _box_pixels(levels.boxes), filled_pixels,
        lambda mask: component_boxes(mask, largest=True)[0], topmost=True,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _steps(count: int) -> Steps:
    return Steps(thresholds(count).numpy())


def _box_pixels(boxes: Ints, corner: int = 0) -> Ints:
    pixels: Ints = (boxes[:, 2] - boxes[:, 0] - corner) * (boxes[:, 3] - boxes[:, 1] - corner)
    return pixels


def _best_wsolevaluation(heats: np.ndarray, truths: list[np.ndarray], count: int, largest: bool) -> NDArray[np.float64]:
    truths = [np.trunc(truth) for truth in truths]
    bits = (heats * 255).astype(np.uint8)
    level = bits.astype(np.int32)
    highest = level.max((1, 2))
    levels_each = int(highest.max()) + 1
    share = np.arange(count) * (1 / count)
    asked = (share * highest[:, None]).astype(np.intp) + 1  # (N, count)
    numbers = asked + levels_each * np.arange(len(heats))[:, None]
    numbers[highest == 0] = 0
    levels = level_set_boxes(heats, level, levels_each, units=_half_squares(bits) if largest else (), holes=not largest)
    if largest:
        levels = _largest_per_level(
            levels, level, levels_each, np.unique(numbers), 2 * _box_pixels(levels.boxes, 1),
            lambda line: 2 * cv2.contourArea(line), _largest_polygon, topmost=False,
        )  # fmt: skip
    levels = levels._replace(boxes=_cut(levels.boxes, *heats.shape[1:]))
    curves: NDArray[np.float64] = _best_per_level(levels, truths, levels_each, corner=1).ravel()[numbers]
    for place in np.flatnonzero(highest == 0):
        curves[place] = _iou_with_best(np.zeros((1, 4)), truths[place], corner=1)[0]
    return curves


def _half_squares(level_NHW: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The levels up to which a polygon through pixels' centers has one and two halves of a pixel's square (2 x 2)."""
    padded = np.pad(level_NHW, ((0, 0), (0, 1), (0, 1)))
    top, bottom = padded[:, :-1], padded[:, 1:]
    least = [np.minimum(row[..., :-1], row[..., 1:]) for row in (top, bottom)]
    most = [np.maximum(row[..., :-1], row[..., 1:]) for row in (top, bottom)]
    return [np.minimum(*least), np.minimum(np.maximum(*least), np.minimum(*most))]


def _largest_per_level(
    level_boxes: LevelBoxes, level_NHW: Ints, count: int, asked: Ints, box_sizes: Ints,
    size_of: Callable[[np.ndarray], float], choose: Callable[[np.ndarray], np.ndarray], *, topmost: bool,
) -> LevelBoxes:  # fmt: skip
    """The box of the largest component, its holes included, of each level that is asked for.

    A component without holes is as large as its units; one with holes at least, and at most as its box. Where this
    leaves several, those with holes are measured by their borders.

    Args:
        level_boxes: of all components.
        level_NHW: of the pixels.
        count: number of levels.
        asked: levels by their number in ``level_boxes``.
        box_sizes: (m,) most that components can have in their boxes.
        size_of: the size within a border (OpenCV's outline of all pixels).
        choose: the box of the largest component of a mask, for those that are equal in all.
        topmost: of equal sizes the topmost, then leftmost box is the one; else they are equal in all.
    """
    boxes, levels, units, holes = level_boxes
    most, is_asked = np.where(holes == 0, units, box_sizes), np.zeros(int(levels[-1]) + 1, dtype=bool)
    is_asked[asked[asked <= levels[-1]]] = True
    candidates, _ = _possibly_largest(level_boxes, most)
    candidates = candidates[is_asked[levels[candidates]]]
    starts = _firsts(levels[candidates])
    ends = np.append(starts[1:], len(candidates))
    largest, largest_boxes = candidates[starts], boxes[candidates[starts]]
    for row in np.flatnonzero(ends - starts > 1).tolist():
        several = candidates[starts[row] : ends[row]]
        place, number = divmod(int(levels[several[0]]), count)
        level_HW = level_NHW[place]
        sizes = dict[int, float]()
        for one in several[np.argsort(-units[several], kind="stable")].tolist():
            if most[one] >= max(sizes.values(), default=0):
                sizes[one] = int(units[one]) if holes[one] == 0 else size_of(_border(level_HW, number, boxes[one]))
        greatest = max(sizes.values())
        best = [one for one, size in sizes.items() if size == greatest]
        if topmost:
            first_corner = min((boxes[one, 1], boxes[one, 0]) for one in best)
            best = [one for one in best if (boxes[one, 1], boxes[one, 0]) == first_corner]
        largest_boxes[row] = boxes[best[0]] if len(best) == 1 else choose(level_HW >= number)
    nothing = np.zeros_like(largest)
    return LevelBoxes(largest_boxes, levels[largest], nothing, nothing)


def _possibly_largest(level_boxes: LevelBoxes, most: Ints) -> tuple[Ints, Ints]:
    """The components that reach with their most units the most units of one of their level, and each level's first."""
    levels, first = level_boxes.levels, _firsts(level_boxes.levels)
    least = np.repeat(np.maximum.reduceat(level_boxes.units, first), np.append(first[1:], len(levels)) - first)
    candidates = np.flatnonzero(most >= least)
    return candidates, _firsts(levels[candidates])


def _firsts(levels: Ints) -> Ints:
    """The places of the first of each level of a sorted row."""
    return np.flatnonzero(np.concatenate([[True], levels[1:] != levels[:-1]]))


def _border(level_HW: Ints, number: int, box: Ints) -> np.ndarray:
    """The outer border of the component of ``level >= number`` with that box: no other one there has the same."""
    left, top, right, bottom = box.tolist()
    mask = (level_HW[top:bottom, left:right] >= number).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = (0, 0, right - left, bottom - top)
    least = max(whole)  # pixels of its border
    return next(outline for outline in outlines if len(outline) >= least and cv2.boundingRect(outline) == whole)


def _largest_polygon(mask: np.ndarray) -> np.ndarray:
    """The box of the border, a component's or a hole's, that encloses most; the first in OpenCV's order of equals."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    x, y, width, height = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    return np.array((x, y, x + width, y + height))


def _best_per_level(
    level_boxes: LevelBoxes, truths: list[np.ndarray], count: int, corner: int = 0
) -> NDArray[np.float64]:
    """The best IoU with the truth of the map (N, count); 0 where there is no box."""
    first, best = _firsts(level_boxes.levels), np.zeros(len(truths) * count)
    best[level_boxes.levels[first]] = np.maximum.reduceat(_ious(level_boxes, truths, count, corner), first)
    return best.reshape(len(truths), count)


def _ious(level_boxes: LevelBoxes, truths: list[np.ndarray], count: int, corner: int = 0) -> NDArray[np.float64]:
    """The IoU of each box with the best of the truth of its map."""
    filled, ious = _filled(truths), np.empty(len(level_boxes.boxes))
    for start in range(0, len(ious), _ROWS):
        rows = slice(start, start + _ROWS)
        own = filled[level_boxes.levels[rows] // count] if len(truths) > 1 else filled
        ious[rows] = _iou_with_best(level_boxes.boxes[rows], own.transpose(1, 2, 0), corner)
    return ious


def _filled(truths: list[np.ndarray]) -> NDArray[np.float64]:
    """Boxes of images as one (N, n, 4); where an image has fewer the first one again."""
    most = max(map(len, truths))
    return np.stack([np.concatenate([truth, truth[:1].repeat(most - len(truth), axis=0)]) for truth in truths])


def _iou_with_best(boxes: np.ndarray, truths: Iterable[np.ndarray], corner: int = 0) -> NDArray[np.float64]:
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
    truths, tried = [_numpy(own) for own in boxes], _numpy(candidates)
    boxed = [place for place, own in enumerate(truths) if len(own)]
    rows = torch.full((len(boxes), len(tried)), torch.nan, dtype=torch.float64)
    at_once = max(_ROWS // max(len(tried), 1), 1)
    for first in range(0, len(boxed), at_once):
        places = boxed[first : first + at_once]
        filled = _filled([truths[place] for place in places])
        rows[places] = torch.from_numpy(_iou_with_best(tried, filled.transpose(1, 2, 0)[..., None]))
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
