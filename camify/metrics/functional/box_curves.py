"""The boxes of maps at every threshold, compared with ground truth."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...boxes import component_boxes, filled_pixels
from ...errors import ConfigError, DataError
from .bilinear_level_sets import bilinear_level_boxes, has_few_cells
from .bins import Steps
from .box import best_per_level, box_numbers, box_pixels, firsts, iou_with_best, level_ious
from .largest_component import largest_per_level, possibly_largest
from .level_sets import LevelBoxes, level_set_boxes
from .wsolevaluation import published_curves, published_iou

__all__ = [
    "best_iou_at_threshold", "best_iou_by_threshold", "best_ious_by_threshold", "box_hits_by_threshold",
    "thresholds",
]  # fmt: skip

_STACK, _STACKED = 8, 1 << 26
"""Most maps, and most pixels times levels, that share every step: more would not stay in the cache."""
_STACKED_CELLS = 1 << 12
"""Most cells of maps of few cells that share every step: most of the time lies in beginning steps, not in numbers."""


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
            return [best_per_level(levels, truths, count)]
        return [published_curves(heats, truths, count, largest)]

    dtype = torch.float32 if parity is None else torch.float64
    return _by_stacks(maps, boxes, dtype, _at_once(maps, count if parity is None else 256), count, curves)[0]


def box_hits_by_threshold(
    maps: Tensor, boxes: Sequence[Tensor], ious: Sequence[float], count: int = 100, *,
    largest: bool = False, cells: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Whether `best_iou_by_threshold` reaches each of some IoUs, (N, J, count) float64: 1 a hit, 0 a miss.

    NaN where an image has no box.

    Args:
        maps: (N, H, W) in [0, 1], at image size.
        boxes: ground truth, N tensors (n, 4), xyxy pixels, exclusive; n may be 0.
        ious: J of them, in ascending order.
        count: number of thresholds, from 0 in steps of 1 / count.
        largest: keep the largest component only.
        cells: (h, w) of the maps before `camify.maps.upsample` brought them to (H, W), whatever normalized them after
            it; None of maps that were made otherwise. The same hits, of maps of few cells in half of the time.

    Raises:
        DataError: there are not as many boxes as maps.

    Example:
        >>> import torch
        >>> heat, truth = torch.tensor([[[1.0, 0.0, 0.5, 0.5]]]), [torch.tensor([[0, 0, 1, 1]])]
        >>> box_hits_by_threshold(heat, truth, [0.2, 0.5], count=2)
        tensor([[[1., 1.],
                 [0., 1.]]], dtype=torch.float64)
    """
    bounds = np.array(ious, dtype=np.float64)
    few = cells if cells is not None and has_few_cells(cells, (maps.shape[-2], maps.shape[-1])) else None
    if few is None:
        best = best_iou_by_threshold(maps, boxes, count, largest=largest)[:, None]
        hits = best >= torch.from_numpy(bounds)[:, None]
    else:

        def curves(heats: np.ndarray, truths: list[np.ndarray]) -> list[np.ndarray]:
            return [_reached_of_few_cells(heats, truths, bounds, count, few, largest)]

        at_once = max(_STACKED_CELLS // (few[0] * few[1]), 1)
        best = _by_stacks(maps, boxes, torch.float32, at_once, count, curves, in_threads=False)[0][:, None]
        hits = best > torch.arange(len(bounds), device="cpu")[:, None]
    return torch.where(best.isnan(), torch.nan, hits.double())


def best_ious_by_threshold(maps: Tensor, boxes: Tensor | Sequence[Tensor], count: int = 100) -> tuple[Tensor, Tensor]:
    """`best_iou_by_threshold` of all components, and of the largest, for little more than one of them costs.

    Example:
        >>> heat = torch.tensor([[1.0, 0.0, 0.5, 0.5]])  # two components from 0.5 on, the second is larger
        >>> best_ious_by_threshold(heat, torch.tensor([[0, 0, 1, 1]]), count=2)
        (tensor([0.2500, 1.0000], dtype=torch.float64), tensor([0.2500, 0.0000], dtype=torch.float64))
    """

    def curves(heats: np.ndarray, truths: list[np.ndarray]) -> list[np.ndarray]:
        return [best_per_level(levels, truths, count) for levels in _level_boxes(heats, count, largest=True)]

    of_all, of_largest = _by_stacks(maps, boxes, torch.float32, _at_once(maps, count), count, curves)
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
    truth = box_numbers(boxes)
    heat = map_HW.detach().cpu()
    if parity is None:
        predicted = component_boxes(heat.float().numpy() >= np.float32(threshold), largest=largest)
        return float(iou_with_best(predicted, truth).max(initial=0.0))
    return published_iou(heat.double().numpy(), truth, threshold, largest)


def _reached_of_few_cells(
    heats: np.ndarray, truths: list[np.ndarray], bounds: NDArray[np.float64], count: int, cells: tuple[int, int],
    largest: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """How many IoUs the best box reaches (N, count), or the largest component's, looked for only where it matters."""
    level_boxes = bilinear_level_boxes(heats, cells, _steps(count))
    reached, levels = (level_ious(level_boxes, truths, count)[:, None] >= bounds).sum(1), level_boxes.levels
    if largest:
        possible, first = possibly_largest(level_boxes, box_pixels(level_boxes.boxes))
        reached, levels = reached[possible], levels[possible]
    else:
        first = firsts(levels)
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
        best[unsure] = (level_ious(chosen, truths, count)[:, None] >= bounds).sum(1)
    curves = np.zeros(len(heats) * count)
    curves[levels[first]] = best
    return curves.reshape(len(heats), count)


def _level_boxes(heats: np.ndarray, count: int, *, largest: bool) -> tuple[LevelBoxes, LevelBoxes]:
    """Boxes of all components of maps (N, H, W) at every threshold, and of the largest, where they are asked for."""
    level = _steps(count).last_reached(heats)
    levels = level_set_boxes(heats, level, count, units=[level] if largest else ())
    if not largest:
        return levels, levels
    return levels, largest_per_level(
        levels, level, count, np.arange(len(heats) * count), box_pixels(levels.boxes), filled_pixels,
        lambda mask: component_boxes(mask, largest=True)[0], topmost=True,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _steps(count: int) -> Steps:
    return Steps(thresholds(count).numpy())


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
    heats, truths = maps.detach().cpu(), [box_numbers(own) for own in boxes]
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


def _check_parity(parity: str | None) -> None:
    if parity not in (None, "wsolevaluation"):
        raise ConfigError(f'parity={parity!r} is unknown. Choose None or "wsolevaluation".')
