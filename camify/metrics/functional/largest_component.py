"""The largest component of every level, from what all have at least and at most."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .box import firsts
from .level_sets import LevelBoxes
from .merge_tree import Ints

__all__ = ["largest_per_level", "possibly_largest"]


def possibly_largest(level_boxes: LevelBoxes, most: Ints) -> tuple[Ints, Ints]:
    """The components that reach with their most units the most units of one of their level, and each level's first."""
    levels, first = level_boxes.levels, firsts(level_boxes.levels)
    least = np.repeat(np.maximum.reduceat(level_boxes.units, first), np.append(first[1:], len(levels)) - first)
    candidates = np.flatnonzero(most >= least)
    return candidates, firsts(levels[candidates])


def largest_per_level(
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
    candidates, _ = possibly_largest(level_boxes, most)
    candidates = candidates[is_asked[levels[candidates]]]
    starts = firsts(levels[candidates])
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


def _border(level_HW: Ints, number: int, box: Ints) -> np.ndarray:
    """The outer border of the component of ``level >= number`` with that box: no other one there has the same."""
    left, top, right, bottom = box.tolist()
    mask = (level_HW[top:bottom, left:right] >= number).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = (0, 0, right - left, bottom - top)
    least = max(whole)  # pixels of its border
    return next(outline for outline in outlines if len(outline) >= least and cv2.boundingRect(outline) == whole)
