"""The merge tree of maps: where the components of their level sets are born, and where they meet.

Seen from high to low, a component of ``level >= l`` is born at a local maximum, grows, and ends where a higher
one's reaches it. Which pixels change that, a pixel's eight neighbors tell: no higher neighbor is a birth, higher
neighbors in several groups are a meeting, and a box grows only at a pixel that has no higher neighbor on that
side. All three are read from one byte per pixel, so that the cost hardly depends on the number of levels and a
noise map costs what it has maxima. Carr, Snoeyink and Axen 2003, "Computing contour trees in all dimensions".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .bins import least_kind

__all__ = ["Ints", "MergeTree", "framed", "higher_neighbors", "merge_tree", "merges"]

Ints = NDArray[np.integer]

_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # (dy, dx), clockwise from above
_SIDES = ((0, -1), (-1, 0), (0, 1), (1, 0))  # left, top, right, bottom: the order of a box's numbers
_BIRTH, _MEETING, _EULER = 16, 32, 64


def framed(images: np.ndarray, value: float) -> np.ndarray:
    """Images (N, H, W), or one (H, W), with a pixel more on each side, as a row of numbers.

    The row of the frame below one image is that above the next.
    """
    height, width = images.shape[-2:]
    images = images.reshape(-1, height, width)
    whole = np.empty((len(images) * (height + 1) + 1, width + 2), dtype=images.dtype)
    whole[1:].reshape(len(images), height + 1, width + 2)[:, :-1, 1:-1] = images
    _set_frame(whole, (height + 1, width + 2), value)
    return whole.ravel()


def _set_frame(whole: np.ndarray, size: tuple[int, int], value: float) -> None:
    height, width = size
    rows = whole.reshape(-1, width)
    rows[::height] = rows[:, :1] = rows[:, -1:] = value


def higher_neighbors(heat: np.ndarray) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One bit for each neighbor in the ring that is higher, of the framed pixels; and whether the right one is.

    Of equals the earlier one is higher; outside is the lowest. Each pair of neighbors is compared once.
    """
    width = heat.shape[-1] + 2
    around = framed(heat, -np.inf)
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


class MergeTree(NamedTuple):
    """Where the components of framed maps are born, meet and get holes; components by the number of their maximum."""

    events: Ints  # the framed pixels at which something happens, in order
    happens: NDArray[np.uint8]  # what happens there, bits as in `_Tables`
    above: Ints  # the number of the maximum above every framed pixel; the last number is the frame's
    born: Ints  # the framed pixels that are maxima, by number
    meetings: tuple[Ints, Ints, Ints]  # two maxima, and the level at which they touch
    euler: tuple[Ints, Ints, Ints]  # maxima, levels; by how much the components less the holes change


def merge_tree(
    code: NDArray[np.uint8], east: NDArray[np.bool_], level: Ints, size: tuple[int, int], *, eight: bool, counts: bool
) -> MergeTree:
    """The merge tree of framed maps, from `higher_neighbors`; without ``counts`` nothing of holes."""
    tables = _tables(eight)
    steps = tables.steps[..., 0] * size[1] + tables.steps[..., 1]
    _set_frame(code, size, 255)
    happens = np.asarray(cv2.LUT(code, tables.events), dtype=np.uint8).ravel()
    events = np.flatnonzero(happens != 0)
    happens = happens[events]
    above = _maxima_above(code, east, steps[:, 0], size)
    saddles = events[happens & _MEETING > 0]
    touching = above[saddles[:, None] + steps[code[saddles]]]
    saddle, group = np.nonzero(above[saddles][:, None] != touching)
    meetings = (above[saddles[saddle]], touching[saddle, group], level[saddles[saddle]].astype(np.intp))
    changing = events[happens & _EULER > 0] if counts else events[:0]
    euler = (above[changing], level[changing].astype(np.intp), tables.euler[code[changing]])
    return MergeTree(events, happens, above, events[happens & _BIRTH > 0], meetings, euler)


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


def merges(tree: MergeTree) -> Iterator[tuple[int, int, int]]:
    """From high to low: the component that goes on, the one that ends in it, the level at which they touch."""
    one, other, level = tree.meetings
    order = np.argsort(-level, kind="stable")
    parent = list(range(len(tree.born) + 1))

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
