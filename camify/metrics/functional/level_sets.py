"""Boxes of all level sets of a map at once, from its merge tree instead of one search per level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .bins import least_kind
from .merge_tree import Ints, MergeTree, framed, higher_neighbors, merge_tree, merges

__all__ = ["LevelBoxes", "level_set_boxes"]

Reaches = tuple[Ints, Ints, Ints, Ints]
"""Maxima, sides, levels; how far these maxima reach then on these sides, growing outwards: ``_OUTWARDS``."""

_OUTWARDS = np.array((-1, -1, 1, 1), dtype=np.int32)  # how far a side reaches grows with these times its number
_NOWHERE = -(1 << 30)  # what a component without pixels reaches
_MANY = 1000  # maxima, from which on a step for each level is faster than one for each meeting


class LevelBoxes(NamedTuple):
    """Boxes (m, 4), xyxy pixels, exclusive, sorted by level (m,); units (m,) and holes (m,) of the box's component.

    Of several maps level l of map n is number ``n * count + l``.
    """

    boxes: Ints
    levels: Ints
    units: Ints
    holes: Ints


def level_set_boxes(
    heat: np.ndarray, level: Ints, count: int, *, units: Sequence[Ints] = (), holes: bool = False
) -> LevelBoxes:
    """Boxes of the 8-connected components of ``level >= l`` for every l in 0 ... count - 1.

    Args:
        heat: finite numbers that order the pixels, (H, W); or (N, H, W), several maps, which share every step.
        level: whole numbers in 0 ... count - 1 that grow with the heat, of its shape.
        count: number of levels.
        units: levels of that shape up to which each pixel adds one unit to its component's size, or to that of its
            right neighbor where the pixel itself is below that level; none count nothing, neither units nor holes.
        holes: also the boxes of the rims of all holes. A hole is a 4-connected component of ``level < l`` that does
            not touch the image's border; its rim is one pixel wide.

    Example:
        >>> heat, level = np.array([[0.9, 0.1, 0.6]]), np.array([[1, 0, 1]])
        >>> boxes, levels, *_ = level_set_boxes(heat, level, 2)
        >>> sorted(zip(levels.tolist(), boxes.tolist()))
        [(0, [0, 0, 3, 1]), (1, [0, 0, 1, 1]), (1, [2, 0, 3, 1])]
    """
    height, width = (side + frame for side, frame in zip(heat.shape[-2:], (1, 2), strict=True))
    code, east = higher_neighbors(heat)
    kind = least_kind(count)
    levels = framed(level.astype(kind, copy=False), 0)
    framed_units = [levels if own is level else framed(own.astype(kind, copy=False), 0) for own in units]
    per_level = _boxes(code, east, levels, count, (height, width), framed_units, eight=True)
    if not holes:
        return per_level
    gaps = _boxes(~code, ~east, count - 1 - levels, count, (height, width), [], eight=False)
    below = gaps.levels % count > 0  # level 0 is that of the image without a single pixel left
    boxes = np.concatenate([per_level.boxes, gaps.boxes[below] + (-1, -1, 1, 1)])
    maps, gap_levels = np.divmod(gaps.levels[below], count)
    both = np.concatenate([per_level.levels, maps * count + count - gap_levels])
    order = np.argsort(both, kind="stable")
    return LevelBoxes(boxes[order], both[order], *_none(len(order)))


class _Components(NamedTuple):
    """`LevelBoxes` of all maps, sorted by the level in each; ``components`` (m,): the number of the maximum."""

    boxes: Ints
    components: Ints
    levels: Ints
    units: Ints
    holes: Ints


def _boxes(
    code: NDArray[np.uint8], east: NDArray[np.bool_], level: Ints, count: int, size: tuple[int, int],
    units: Sequence[Ints], *, eight: bool,
) -> LevelBoxes:  # fmt: skip
    """Boxes of the components of ``level >= l`` that do not reach the frame; no 8-connected one does."""
    height, width = size  # of a map with the frame's pixels left of, right of and above it
    tree = merge_tree(code, east, level, size, eight=eight, counts=bool(units))
    pixels = [tree.events[tree.happens & (1 << side) > 0] for side in range(4)]
    sides = np.repeat(np.arange(4), [len(part) for part in pixels])
    rows = [part // width for part in pixels]  # quotients take a fifth of the time of remainders
    left, right = (pixels[side] - rows[side] * width for side in (0, 2))
    top, bottom = (rows[side] - rows[side] // height * height for side in (1, 3))
    reached = np.concatenate([1 - left, 1 - top, right, bottom])
    outermost = np.concatenate(pixels)
    reaches = (tree.above[outermost], sides, level[outermost].astype(np.intp), reached)
    sizes = pixel_counts(tree.above, level, units, len(tree.born), count) if units else None
    return level_boxes(tree, reaches, sizes, count, size)


def level_boxes(tree: MergeTree, reaches: Reaches, sizes: Ints | None, count: int, size: tuple[int, int]) -> LevelBoxes:
    """Boxes of all levels and maps from a merge tree.

    Args:
        tree: of framed maps.
        reaches: how far which maxima reach.
        sizes: `pixel_counts`; None counts neither units nor holes.
        count: number of levels.
        size: height and width of a map with the frame's pixels left of, right of and above it.
    """
    maxima = len(tree.born)
    per_level = (_by_level if maxima > _MANY else _by_meeting)(tree, reaches, sizes, count)
    maps = tree.born // (size[0] * size[1])
    if not maxima or maps[-1] == 0:
        return LevelBoxes(*(per_level[place] for place in (0, 2, 3, 4)))
    of_boxes = maps[per_level.components]
    order = np.argsort(of_boxes.astype(least_kind(maps[-1])), kind="stable")  # in each map levels are in order
    numbers = (of_boxes * count + per_level.levels).take(order)
    counted = (per_level.units, per_level.holes) if sizes is not None else _none(len(order))
    return LevelBoxes(per_level.boxes.take(order, axis=0), numbers, *(part.take(order) for part in counted))


def _none(count: int) -> tuple[Ints, Ints]:
    """No units and no holes, of components that were not counted."""
    nothing = np.zeros(count, dtype=np.intp)
    return nothing, nothing


def pixel_counts(above: Ints, level: Ints, units: Sequence[Ints], maxima: int, count: int) -> Ints:
    """By how many units the component of each maximum grows at each level, (count, maxima + 1)."""
    numbers = (maxima + 1) * count
    sizes = np.zeros(numbers, dtype=np.int64)
    for own in units:
        place: Ints = own.astype(least_kind(numbers))
        place *= maxima + 1
        place += above
        if own is not level:
            place += (level < own) * np.diff(above, append=above.dtype.type(maxima))
        sizes += torch.bincount(torch.from_numpy(place), minlength=numbers).numpy()  # faster than NumPy's
    return sizes.reshape(count, -1)


# ---------------------------------------------------------------- few maxima: a step for each meeting


def _by_meeting(tree: MergeTree, reaches: Reaches, sizes: Ints | None, count: int) -> _Components:
    """At each level every maximum has what the pixels below it reach; where two met, one takes over from the other."""
    numbers = len(tree.born) + 1
    reach = np.full((numbers, count, 4), _NOWHERE, dtype=np.int32)
    maximum, sides, levels, reached = reaches
    places = (maximum.astype(np.intp) * count + levels) * 4 + sides
    np.maximum.at(reach.reshape(-1), places, reached.astype(np.int32))
    np.maximum.accumulate(reach[:, ::-1], axis=1, out=reach[:, ::-1])
    counted = None
    if sizes is not None:
        counted = np.zeros((numbers, count, 2), dtype=np.intp)
        counted[..., 0] = sizes.T
        maximum, changed_at, more = tree.euler
        np.add.at(counted.reshape(-1), (maximum.astype(np.intp) * count + changed_at) * 2 + 1, more)
        np.cumsum(counted[:, ::-1], axis=1, out=counted[:, ::-1])
    for kept, ended, at in merges(tree):
        goes_on, ends = reach[kept, : at + 1], reach[ended, : at + 1]
        np.maximum(goes_on, ends, out=goes_on)
        ends[:] = _NOWHERE
        if counted is not None:
            counted[kept, : at + 1] += counted[ended, : at + 1]
    levels, component = np.nonzero(reach[:-1, :, 0].T > _NOWHERE)
    boxes = reach[component, levels] * _OUTWARDS
    if counted is None:
        return _Components(boxes, component, levels, *_none(len(levels)))
    units, euler = counted[component, levels].T
    return _Components(boxes, component, levels, units, 1 - euler)


# ---------------------------------------------------------------- many maxima: a step for each level


def _by_level(tree: MergeTree, reaches: Reaches, sizes: Ints | None, count: int) -> _Components:
    """Every component has what it reaches now; all that happens at a level is done at once."""
    numbers, counts = len(tree.born) + 1, sizes is not None
    top = np.arange(numbers)  # of each maximum the component that it is in by now
    reach = np.full((numbers, 4), _NOWHERE, dtype=np.int32)
    counted = np.zeros((numbers if counts else 0, 2), dtype=np.intp)
    grows = sizes if sizes is not None else counted
    reaches_each = _by_levels(reaches, 2, count)
    meetings_each, euler_each = _by_levels(tree.meetings, 2, count), _by_levels(tree.euler, 1, count)
    rows = []
    for level in range(count - 1, -1, -1):
        one, other, _ = meetings_each[level]
        if len(one):
            ended = _joined(top, one, other)
            kept = top[ended]
            np.maximum.at(reach, kept, reach[ended])
            reach[ended] = _NOWHERE
            if counts:
                np.add.at(counted, kept, counted[ended])
                counted[ended] = 0
        maximum, sides, _, reached = reaches_each[level]
        np.maximum.at(reach.reshape(-1), top[maximum] * 4 + sides, reached.astype(np.int32))
        if counts:
            grown = np.flatnonzero(grows[level])
            np.add.at(counted[:, 0], top[grown], grows[level, grown])
            maximum, _, more = euler_each[level]
            np.add.at(counted[:, 1], top[maximum], more)
        alive = np.flatnonzero(reach[:-1, 0] > _NOWHERE)
        rows.append((reach.take(alive, axis=0) * _OUTWARDS, alive, counted.take(alive, axis=0) if counts else counted))
    rows.reverse()
    boxes = np.concatenate([row[0] for row in rows])
    components = np.concatenate([row[1] for row in rows])
    levels = np.repeat(np.arange(count), [len(row[0]) for row in rows])
    if not counts:
        return _Components(boxes, components, levels, *_none(len(levels)))
    units, euler = np.concatenate([row[2] for row in rows]).T
    return _Components(boxes, components, levels, units, 1 - euler)


def _by_levels(arrays: tuple[Ints, ...], place: int, count: int) -> list[tuple[Ints, ...]]:
    """The parts of arrays that belong to each level; that at ``place`` holds the levels."""
    order = np.argsort(arrays[place].astype(least_kind(count)), kind="stable")
    arrays = tuple(array[order] for array in arrays)
    ends = np.searchsorted(arrays[place], np.arange(count + 1)).tolist()
    return [tuple(array[start:end] for array in arrays) for start, end in pairwise(ends)]


def _joined(top: Ints, one: Ints, other: Ints) -> Ints:
    """Join the components of pairs of maxima, in place; those that end. The one of the highest number goes on."""
    numbers, parent = np.arange(len(top)), np.arange(len(top))
    pairs = top[np.stack([one, other])]
    while (pairs := pairs[:, pairs[0] != pairs[1]]).size:
        parent[pairs.min(0)] = pairs.max(0)  # of several the last: the next round joins the others
        pairs = _followed(parent, pairs)
    ended = np.flatnonzero(parent != numbers)
    parent[ended] = _followed(parent, ended)
    top[:] = parent[top]
    return ended


def _followed(parent: Ints, components: Ints) -> Ints:
    while (further := parent[components]).tobytes() != components.tobytes():
        components = further
    return components
