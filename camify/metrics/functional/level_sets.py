"""Boxes of all level sets of a map at once, from its merge tree instead of one search per level.

Seen from high to low, a component of ``level >= l`` is born at a local maximum, grows, and ends where a higher
one's reaches it. Which pixels change that, a pixel's eight neighbors tell: no higher neighbor is a birth, higher
neighbors in several groups are a meeting, and a box grows only at a pixel that has no higher neighbor on that
side. All three are read from one byte per pixel, so that the cost hardly depends on the number of levels and a
noise map costs what it has maxima. Carr, Snoeyink and Axen 2003, "Computing contour trees in all dimensions".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .bins import least_kind

__all__ = ["LevelBoxes", "level_set_boxes"]

Ints = NDArray[np.integer]

_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # (dy, dx), clockwise from above
_SIDES = ((0, -1), (-1, 0), (0, 1), (1, 0))  # left, top, right, bottom: the order of a box's numbers
_OUTWARDS = np.array((-1, -1, 1, 1), dtype=np.int32)  # how far a side reaches grows with these times its number
_BIRTH, _MEETING, _EULER = 16, 32, 64
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
    code, east = _higher_neighbors(heat)
    kind = least_kind(count)
    levels = _framed(level.astype(kind, copy=False), 0)
    framed_units = [levels if own is level else _framed(own.astype(kind, copy=False), 0) for own in units]
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


def _higher_neighbors(heat: np.ndarray) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One bit for each neighbor in the ring that is higher, of the framed pixels; and whether the right one is.

    Of equals the earlier one is higher; outside is the lowest. Each pair of neighbors is compared once.
    """
    width = heat.shape[-1] + 2
    around = _framed(heat, -np.inf)
    later = [(bit, dy * width + dx) for bit, (dy, dx) in enumerate(_RING) if (dy, dx) > (0, 0)]
    code = np.full(around.size, sum(1 << (bit + 4) % 8 for bit, _ in later), dtype=np.uint8)
    east = np.zeros(around.size, dtype=np.bool_)
    for bit, apart in later:
        is_higher = around[apart:] > around[:-apart]
        if apart == 1:
            east[:-1] = is_higher
        ones = is_higher.view(np.uint8)  # sums and products take fewer instructions than shifts
        code[:-apart] += ones * np.uint8(1 << bit)
        code[apart:] -= ones * np.uint8(1 << (bit + 4) % 8)
    return code, east


class _Tables(NamedTuple):
    """What each of the 256 neighborhoods means."""

    events: NDArray[np.uint8]  # bit s: may be the outermost pixel on side s; `_BIRTH`; `_MEETING`; `_EULER`
    steps: NDArray[np.intp]  # (256, 4, 2): (dy, dx) to one of each group of higher neighbors, (0, 0) for no group
    euler: NDArray[np.intp]  # (256,): by how much the pixel changes the components less the holes


@lru_cache(maxsize=2)
def _tables(eight: bool) -> _Tables:
    events = np.zeros(256, dtype=np.uint8)
    steps, euler = np.zeros((256, 4, 2), dtype=np.intp), np.zeros(256, dtype=np.intp)
    for code in range(256):
        higher = [place for place in range(0, 8, 1 if eight else 2) if code >> place & 1]
        group = {place: place for place in higher}
        for place in higher:
            for apart in (1, 2) if eight else (2,):
                other = (place + apart) % 8
                touch = apart == 1 or (place % 2 == 0 if eight else bool(code >> (place + 1) % 8 & 1))
                if touch and other in group:
                    group = {key: group[place] if of == group[other] else of for key, of in group.items()}
        chosen = sorted(set(group.values()))
        steps[code, : len(chosen)] = [_RING[place] for place in chosen] or 0
        # Yokoi et al. 1973, "Topological properties in digitized binary pictures": the connectivity number.
        lower = [not code >> place % 8 & 1 for place in range(10)]
        euler[code] = 1 - sum(lower[k] and not (lower[k + 1] and lower[k + 2]) for k in (0, 2, 4, 6))
        events[code] = _BIRTH * (len(chosen) == 0) + _MEETING * (len(chosen) > 1)
        events[code] += _EULER * bool(eight and euler[code])
        for side, (dy, dx) in enumerate(_SIDES):
            # Towards the side or level with the pixel, a higher neighbor reaches as far.
            events[code] += (all(_RING[place][0] * dy + _RING[place][1] * dx < 0 for place in higher)) << side
    return _Tables(events, steps, euler)


class _Changes(NamedTuple):
    """What happens at which level, by number of the maximum; the last number is the frame's."""

    maxima: int
    level_count: int
    reaches: tuple[Ints, Ints, Ints, Ints]  # maxima, sides, levels; how far they reach then, growing outwards
    meetings: tuple[Ints, Ints, Ints]  # two maxima, and the level at which they touch
    units: Ints | None  # (count, maxima + 1): by how much the components' sizes grow at a level; None counts nothing
    euler: tuple[Ints, Ints, Ints]  # maxima, levels; by how much the components less the holes change


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
    tables = _tables(eight)
    steps = tables.steps[..., 0] * width + tables.steps[..., 1]
    _set_frame(code, size, 255)
    happens = np.asarray(cv2.LUT(code, tables.events), dtype=np.uint8).ravel()
    events = np.flatnonzero(happens != 0)
    happens = happens[events]
    above = _maxima_above(code, east, steps[:, 0], size)
    born = events[happens & _BIRTH > 0]
    maxima = len(born)

    pixels = [events[happens & (1 << side) > 0] for side in range(4)]
    sides = np.repeat(np.arange(4), [len(part) for part in pixels])
    rows = [part // width for part in pixels]  # quotients take a fifth of the time of remainders
    left, right = (pixels[side] - rows[side] * width for side in (0, 2))
    top, bottom = (rows[side] - rows[side] // height * height for side in (1, 3))
    reached = np.concatenate([1 - left, 1 - top, right, bottom])
    outermost = np.concatenate(pixels)

    saddles = events[happens & _MEETING > 0]
    touching = above[saddles[:, None] + steps[code[saddles]]]
    saddle, group = np.nonzero(above[saddles][:, None] != touching)
    meetings = (above[saddles[saddle]], touching[saddle, group], level[saddles[saddle]].astype(np.intp))

    changing = events[happens & _EULER > 0] if units else events[:0]
    changes = _Changes(
        maxima, count, (above[outermost], sides, level[outermost].astype(np.intp), reached), meetings,
        _sizes(above, level, units, maxima, count) if units else None,
        (above[changing], level[changing].astype(np.intp), tables.euler[code[changing]]),
    )  # fmt: skip
    per_level = _by_level(changes) if maxima > _MANY else _by_meeting(changes)
    maps = born // (height * width)
    if not maxima or maps[-1] == 0:
        return LevelBoxes(*(per_level[place] for place in (0, 2, 3, 4)))
    of_boxes = maps[per_level.components]
    order = np.argsort(of_boxes.astype(least_kind(maps[-1])), kind="stable")  # in each map levels are in order
    numbers = (of_boxes * count + per_level.levels).take(order)
    sizes = (per_level.units.take(order), per_level.holes.take(order)) if units else _none(len(order))
    return LevelBoxes(per_level.boxes.take(order, axis=0), numbers, *sizes)


def _none(count: int) -> tuple[Ints, Ints]:
    """No units and no holes, of components that were not counted."""
    nothing = np.zeros(count, dtype=np.intp)
    return nothing, nothing


def _sizes(above: Ints, level: Ints, units: Sequence[Ints], maxima: int, count: int) -> Ints:
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


def _framed(images: np.ndarray, value: float) -> np.ndarray:
    """Images (N, H, W), or one (H, W), with a pixel more on each side, as a row of numbers.

    The row of the frame below one image is that above the next.
    """
    height, width = images.shape[-2:]
    images = images.reshape(-1, height, width)
    framed = np.empty((len(images) * (height + 1) + 1, width + 2), dtype=images.dtype)
    framed[1:].reshape(len(images), height + 1, width + 2)[:, :-1, 1:-1] = images
    _set_frame(framed, (height + 1, width + 2), value)
    return framed.ravel()


def _set_frame(framed: np.ndarray, size: tuple[int, int], value: float) -> None:
    height, width = size
    rows = framed.reshape(-1, width)
    rows[::height] = rows[:, :1] = rows[:, -1:] = value


def _maxima_above(code: NDArray[np.uint8], east: NDArray[np.bool_], steps: Ints, size: tuple[int, int]) -> Ints:
    """The number of the local maximum above every framed pixel, in their order; the last where that is the frame.

    The way up goes along the row to its highest pixel, from there into another row: so only the rows' peaks are asked.
    """
    east[-1] = False
    starts = np.append(0, np.flatnonzero(east[1:] > east[:-1]) + 1)
    peaks = np.flatnonzero(east[1:] < east[:-1]) + 1
    if not east[0]:
        peaks = np.append(0, peaks)
    step = steps[code[peaks]]
    height, width = size
    column = peaks % width
    frame = (column == 0) | (column == width - 1) | (peaks // width % height == 0)
    step[frame] = 0
    up = np.searchsorted(starts, peaks + step, side="right") - 1
    while not np.array_equal(further := up[up[up]], up):
        up = further
    is_maximum = (step == 0) & ~frame
    maxima = np.flatnonzero(is_maximum)
    number = np.full(len(starts), len(maxima), dtype=least_kind(len(maxima)))
    number[maxima] = np.arange(len(maxima))
    above: Ints = np.repeat(number[up], np.append(starts[1:], len(code)) - starts)
    _set_frame(above, size, len(maxima))
    return above


# ---------------------------------------------------------------- few maxima: a step for each meeting


def _by_meeting(changes: _Changes) -> _Components:
    """At each level every maximum has what the pixels below it reach; where two met, one takes over from the other."""
    numbers, count = changes.maxima + 1, changes.level_count
    reach = np.full((numbers, count, 4), _NOWHERE, dtype=np.int32)
    maximum, sides, levels, reached = changes.reaches
    places = (maximum.astype(np.intp) * count + levels) * 4 + sides
    np.maximum.at(reach.reshape(-1), places, reached.astype(np.int32))
    np.maximum.accumulate(reach[:, ::-1], axis=1, out=reach[:, ::-1])
    counted = None
    if changes.units is not None:
        counted = np.zeros((numbers, count, 2), dtype=np.intp)
        counted[..., 0] = changes.units.T
        maximum, changed_at, more = changes.euler
        np.add.at(counted.reshape(-1), (maximum.astype(np.intp) * count + changed_at) * 2 + 1, more)
        np.cumsum(counted[:, ::-1], axis=1, out=counted[:, ::-1])
    for kept, ended, at in _meetings(*changes.meetings, numbers):
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


def _meetings(one: Ints, other: Ints, level: Ints, components: int) -> Iterator[tuple[int, int, int]]:
    """From high to low: the component that goes on, the one that ends in it, the level at which they touch."""
    order = np.argsort(-level, kind="stable")
    parent = list(range(components))

    def top(component: int) -> int:
        while parent[component] != component:
            parent[component] = parent[parent[component]]
            component = parent[component]
        return component

    for a, b, at in zip(one[order].tolist(), other[order].tolist(), level[order].tolist(), strict=True):
        ended, kept = sorted((top(a), top(b)))
        if ended != kept:
            parent[ended] = kept
            yield kept, ended, at


# ---------------------------------------------------------------- many maxima: a step for each level


def _by_level(changes: _Changes) -> _Components:
    """Every component has what it reaches now; all that happens at a level is done at once."""
    numbers, counts = changes.maxima + 1, changes.units is not None
    top = np.arange(numbers)  # of each maximum the component that it is in by now
    reach = np.full((numbers, 4), _NOWHERE, dtype=np.int32)
    counted = np.zeros((numbers if counts else 0, 2), dtype=np.intp)
    units = changes.units if changes.units is not None else counted
    reaches = _by_levels(changes.reaches, 2, changes.level_count)
    meetings, euler = (
        _by_levels(changes.meetings, 2, changes.level_count),
        _by_levels(changes.euler, 1, changes.level_count),
    )
    rows = []
    for level in range(changes.level_count - 1, -1, -1):
        one, other, _ = meetings[level]
        if len(one):
            ended = _joined(top, one, other)
            kept = top[ended]
            np.maximum.at(reach, kept, reach[ended])
            reach[ended] = _NOWHERE
            if counts:
                np.add.at(counted, kept, counted[ended])
                counted[ended] = 0
        maximum, sides, _, reached = reaches[level]
        np.maximum.at(reach.reshape(-1), top[maximum] * 4 + sides, reached.astype(np.int32))
        if counts:
            grown = np.flatnonzero(units[level])
            np.add.at(counted[:, 0], top[grown], units[level, grown])
            maximum, _, more = euler[level]
            np.add.at(counted[:, 1], top[maximum], more)
        alive = np.flatnonzero(reach[:-1, 0] > _NOWHERE)
        rows.append((reach.take(alive, axis=0) * _OUTWARDS, alive, counted.take(alive, axis=0) if counts else counted))
    rows.reverse()
    boxes = np.concatenate([row[0] for row in rows])
    components = np.concatenate([row[1] for row in rows])
    levels = np.repeat(np.arange(changes.level_count), [len(row[0]) for row in rows])
    if not counts:
        return _Components(boxes, components, levels, *_none(len(levels)))
    sizes, euler_numbers = np.concatenate([row[2] for row in rows]).T
    return _Components(boxes, components, levels, sizes, 1 - euler_numbers)


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
