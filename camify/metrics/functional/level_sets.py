"""Boxes of all level sets of a map at once, from its merge tree instead of one search per level.

Seen from high to low, a component of ``level >= l`` is born at a local maximum, grows, and ends where a higher
one's reaches it. Which pixels change that, a pixel's eight neighbors tell: no higher neighbor is a birth, higher
neighbors in several groups are a meeting, and a box grows only at a pixel that has no higher neighbor on that
side. All three are read from one byte per pixel, so that the cost hardly depends on the number of levels and a
noise map costs what it has maxima. Carr, Snoeyink and Axen 2003, "Computing contour trees in all dimensions".
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["LevelBoxes", "level_set_boxes"]

Ints = NDArray[np.integer]

_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # (dy, dx), clockwise from above
_SIDES = ((0, -1), (-1, 0), (0, 1), (1, 0))  # left, top, right, bottom: the order of a box's numbers
_BIRTH, _MEETING = 16, 32
_NOWHERE = -(1 << 30)  # what a component without pixels reaches


class LevelBoxes(NamedTuple):
    """Boxes (m, 4), xyxy pixels, exclusive, in no order; the level (m,) of each and the units (m,) in its component."""

    boxes: Ints
    levels: Ints
    units: Ints


def level_set_boxes(
    heat_HW: np.ndarray, level_HW: Ints, count: int, *, units_HW: Ints | None = None, holes: bool = False
) -> LevelBoxes:
    """Boxes of the 8-connected components of ``level >= l`` for every l in 0 ... count - 1.

    Args:
        heat_HW: finite numbers that order the pixels.
        level_HW: whole numbers in 0 ... count - 1 that grow with the heat.
        count: number of levels.
        units_HW: levels up to which each pixel adds one unit to its component's size; None counts nothing.
        holes: also the boxes of the rims of all holes. A hole is a 4-connected component of ``level < l`` that does
            not touch the image's border; its rim is one pixel wide.

    Example:
        >>> heat, level = np.array([[0.9, 0.1, 0.6]]), np.array([[1, 0, 1]])
        >>> boxes, levels, _ = level_set_boxes(heat, level, 2)
        >>> sorted(zip(levels.tolist(), boxes.tolist()))
        [(0, [0, 0, 3, 1]), (1, [0, 0, 1, 1]), (1, [2, 0, 3, 1])]
    """
    code = _higher_neighbors(heat_HW)
    per_level = _boxes(code, level_HW, count, units_HW, eight=True)
    if not holes:
        return per_level
    gaps = _boxes(~code, count - 1 - level_HW, count, None, eight=False)
    below = gaps.levels > 0  # level 0 is that of the image without a single pixel left
    boxes = np.concatenate([per_level.boxes, gaps.boxes[below] + (-1, -1, 1, 1)])
    levels = np.concatenate([per_level.levels, count - gaps.levels[below]])
    return LevelBoxes(boxes, levels, np.concatenate([per_level.units, gaps.units[below]]))


def _higher_neighbors(heat: np.ndarray) -> NDArray[np.uint8]:
    """One bit for each neighbor in the ring that is higher; of equals the earlier one is. Outside is the lowest."""
    height, width = heat.shape
    around = np.full((height + 2, width + 2), -np.inf, dtype=heat.dtype)
    around[1:-1, 1:-1] = heat
    code = np.zeros(heat.shape, dtype=np.uint8)
    for bit, (dy, dx) in enumerate(_RING):
        neighbor = around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        earlier = (dy, dx) < (0, 0)
        higher = neighbor >= heat if earlier else neighbor > heat
        code |= higher.view(np.uint8) << np.uint8(bit)
    return code


class _Tables(NamedTuple):
    """What each of the 256 neighborhoods means."""

    events: NDArray[np.uint8]  # bit s: may be the outermost pixel on side s; `_BIRTH`; `_MEETING`
    steps: NDArray[np.intp]  # (256, 4, 2): (dy, dx) to one of each group of higher neighbors, (0, 0) for no group


@lru_cache(maxsize=2)
def _tables(eight: bool) -> _Tables:
    events = np.zeros(256, dtype=np.uint8)
    steps = np.zeros((256, 4, 2), dtype=np.intp)
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
        events[code] = _BIRTH * (len(chosen) == 0) + _MEETING * (len(chosen) > 1)
        for side, (dy, dx) in enumerate(_SIDES):
            # Towards the side or level with the pixel, a higher neighbor reaches as far.
            events[code] += (all(_RING[place][0] * dy + _RING[place][1] * dx < 0 for place in higher)) << side
    return _Tables(events, steps)


def _boxes(code: NDArray[np.uint8], level: Ints, count: int, units: Ints | None, *, eight: bool) -> LevelBoxes:
    """Boxes of the components of ``level >= l`` that do not reach the frame; no 8-connected one does."""
    tables = _tables(eight)
    height, width = (size + 2 for size in level.shape)
    code, level = _framed(code, 255), _framed(level, 0)
    steps = tables.steps[..., 0] * width + tables.steps[..., 1]
    roots = _roots(steps[:, 0].take(code), height, width)
    happens = np.asarray(cv2.LUT(code, tables.events), dtype=np.uint8).ravel()
    births = np.flatnonzero(happens & _BIRTH > 0)
    number = np.full(len(code), len(births))  # the frame's, and that of all that leads into it
    number[births] = np.arange(len(births))

    # How far a component reaches to each side at a level, as numbers that grow outwards.
    reach = np.full((len(births) + 1, 4, count), _NOWHERE, dtype=np.int32)
    for side in range(4):
        pixels = np.flatnonzero(happens & (1 << side) > 0)
        y, x = np.divmod(pixels, width)
        place = (number[roots[pixels]] * 4 + side) * count + level[pixels]
        np.maximum.at(reach.reshape(-1), place, (1 - x, 1 - y, x, y)[side].astype(np.int32))
    np.maximum.accumulate(reach[:, :, ::-1], axis=2, out=reach[:, :, ::-1])

    size = np.zeros((len(reach), count if units is not None else 0), dtype=np.intp)
    if units is not None:
        size += np.bincount(number[roots] * count + _framed(units, 0), minlength=size.size).reshape(size.shape)
        np.cumsum(size[:, ::-1], axis=1, out=size[:, ::-1])

    saddles = np.flatnonzero(happens & _MEETING > 0)
    touching = number[roots[saddles[:, None] + steps[code[saddles]]]]
    for kept, ended, at in _meetings(number[roots[saddles]], touching, level[saddles], len(reach)):
        joint_reach = reach[kept, :, : at + 1]
        np.maximum(joint_reach, reach[ended, :, : at + 1], out=joint_reach)
        reach[ended, :, : at + 1] = _NOWHERE
        size[kept, : at + 1] += size[ended, : at + 1]

    component, levels = np.nonzero(reach[:-1, 0] > _NOWHERE)
    boxes = reach[component, :, levels] * np.array((-1, -1, 1, 1))
    return LevelBoxes(boxes, levels, size[component, levels] if units is not None else np.zeros_like(levels))


def _framed(image: np.ndarray, value: int) -> np.ndarray:
    """An image with one pixel more on each side, as a row of numbers."""
    framed = np.full((image.shape[0] + 2, image.shape[1] + 2), value, dtype=image.dtype)
    framed[1:-1, 1:-1] = image
    return framed.ravel()


def _roots(step: Ints, height: int, width: int) -> Ints:
    """The local maximum above every pixel of a framed image; 0 where the way up leads into the frame."""
    roots = np.arange(height * width) + step
    framed = roots.reshape(height, width)
    framed[0] = framed[-1] = framed[:, 0] = framed[:, -1] = 0
    while True:
        further = roots.take(roots)
        if np.array_equal(further, roots):
            return roots
        roots = further


def _meetings(
    own_components: Ints, touching_components: Ints, level: Ints, components: int
) -> list[tuple[int, int, int]]:
    """From high to low: the component that goes on, the one that ends in it, the level at which they touch."""
    saddle, group = np.nonzero(own_components[:, None] != touching_components)
    order = np.argsort(-level[saddle], kind="stable")
    saddle, group = saddle[order], group[order]
    parent = list(range(components))

    def find(component: int) -> int:
        while parent[component] != component:
            parent[component] = parent[parent[component]]
            component = parent[component]
        return component

    meetings = []
    for own, touching, at in zip(
        own_components[saddle].tolist(),
        touching_components[saddle, group].tolist(),
        level[saddle].tolist(),
        strict=True,
    ):
        ended, kept = sorted((find(own), find(touching)))
        if ended != kept:
            parent[ended] = kept
            meetings.append((kept, ended, at))
    return meetings
