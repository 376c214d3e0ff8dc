"""Boxes of all level sets of bilinear maps of few cells, from the rows and columns of pixels next to cells' centers.

Between the centers of four cells a bilinear map rises, or falls, along every row and every column. So what reaches a
level there goes on to the end of its row and of its column: the outermost pixels of a component, its maxima, and the
places where it meets others lie on the rows and columns next to the centers. These cross in few pixels, the corners,
and between two corners the map rises or falls: components are those of a small map, of the corners and of what lies
between them. But two opposite corners may meet within their four, over a saddle. Any normalizer may follow, as it keeps
the order of values.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .bins import Places, Steps
from .level_sets import LevelBoxes, Reaches, level_boxes
from .merge_tree import Ints, framed, higher_neighbors, merge_tree

__all__ = ["bilinear_level_boxes", "has_few_cells"]

_LEAST = 1e-9  # by which what lies between two corners is above the lower one


def has_few_cells(cells: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether maps of these cells, at that size, have a sixth of their pixels or less next to cells' centers."""
    rows, columns = (len(_pixels_at_centers(*sides)) for sides in zip(cells, size, strict=True))
    return 6 * (rows * size[1] + columns * size[0]) <= size[0] * size[1]


def bilinear_level_boxes(heat_NHW: NDArray[np.floating], cells: tuple[int, int], steps: Steps) -> LevelBoxes:
    """`level_set_boxes` of the levels ``steps.last_reached(heat)`` of maps of few cells; units are pixels at least.

    Boxes may differ in pixels that are within rounding of a level, where a row does not rise but for its rounding.
    Holes are not counted: each has one.

    Args:
        heat_NHW: bilinear maps, upsampled with half-pixel centers, and then put through a function that grows.
        cells: rows and columns of the maps before.
        steps: thresholds.
    """
    count, (maps, height, width) = len(steps.thresholds), heat_NHW.shape
    rows, columns = (_pixels_at_centers(*sides) for sides in zip(cells, (height, width), strict=True))
    along_rows = steps.last_reached(heat_NHW[:, rows].reshape(1, -1, width)).reshape(maps, len(rows), width)
    along_columns = steps.last_reached(heat_NHW.take(columns, axis=2).reshape(1, -1, len(columns)))
    along_columns = along_columns.reshape(maps, height, len(columns))
    corners = along_rows[:, :, columns]
    level, order = _with_betweens(heat_NHW, corners, rows, columns, steps)
    size = (level.shape[1] + 1, level.shape[2] + 2)
    framed_level = framed(level, 0)
    tree = merge_tree(*higher_neighbors(order), framed_level, size, eight=True, counts=False)
    maxima = tree.above[: maps * size[0] * size[1]].reshape(maps, *size)[:, 1::2, 1:-1:2]
    across, down = (maxima, corners), (maxima.transpose(0, 2, 1), corners.transpose(0, 2, 1))
    parts = [
        *_reaches_of_corners(maxima, corners, rows, columns),
        *_reaches_along(along_rows, *across, rows, columns, first_side=0),
        *_reaches_along(along_columns.transpose(0, 2, 1), *down, columns, rows, first_side=1),
    ]
    maximum, sides, levels, reached = (np.concatenate(column) for column in zip(*parts, strict=True))
    reaches = (maximum, sides, levels.astype(np.intp), reached)
    sizes = _least_pixels(maxima, corners, rows, columns, len(tree.born), count)
    return level_boxes(tree, reaches, sizes, count, size)


@lru_cache(maxsize=32)
def _pixels_at_centers(cells: int, pixels: int) -> Ints:
    """The first and the last pixel of every stretch of an axis between the centers of two cells."""
    place = (np.arange(pixels) + 0.5) * cells / pixels - 0.5  # of each pixel, in cells: as PyTorch interpolates
    ends = np.flatnonzero(np.diff(np.floor(place).clip(0, max(cells - 2, 0))))
    return np.unique(np.concatenate([[0], ends, ends + 1, [pixels - 1]]))


def _with_betweens(
    heat_NHW: np.ndarray, corners: Places, rows: Ints, columns: Ints, steps: Steps
) -> tuple[Places, NDArray[np.float64]]:
    """Levels of corners (N, r, c) with what lies between them (N, 2r - 1, 2c - 1), and numbers that order them all.

    Two corners are one up to the lower of both; four up to the highest of these, or up to where opposite ones meet.
    """
    level = np.empty((len(corners), 2 * len(rows) - 1, 2 * len(columns) - 1), corners.dtype)
    order = np.empty(level.shape)
    ordered = corners + heat_NHW[:, rows][:, :, columns] / 2.0
    for values, own, more in ((level, corners, 0), (order, ordered, _LEAST)):
        values[:, ::2, ::2] = own
        for ends, between in (
            ((own[:, :, :-1], own[:, :, 1:]), values[:, ::2, 1::2]),
            ((own[:, :-1], own[:, 1:]), values[:, 1::2, ::2]),
        ):
            np.minimum(*ends, out=between)
            if more:
                between += more * (ends[0] != ends[1])
        beside = [values[:, :-2:2, 1::2], values[:, 2::2, 1::2], values[:, 1::2, :-2:2], values[:, 1::2, 2::2]]
        values[:, 1::2, 1::2] = np.maximum(np.maximum(*beside[:2]), np.maximum(*beside[2:])) - more
    falling = np.minimum(corners[:, :-1, :-1], corners[:, 1:, 1:])  # from the upper left and the lower right corner
    rising = np.minimum(corners[:, :-1, 1:], corners[:, 1:, :-1])
    image, row, column = np.nonzero(
        (falling > np.maximum(corners[:, :-1, 1:], corners[:, 1:, :-1]))
        | (rising > np.maximum(corners[:, :-1, :-1], corners[:, 1:, 1:]))
    )
    if len(image):
        lower = np.maximum(falling, rising)[image, row, column]
        is_falling = falling[image, row, column] == lower
        met = _saddle_heat(heat_NHW, image, rows[row], rows[row + 1], columns[column], columns[column + 1], is_falling)
        center = (image, 2 * row + 1, 2 * column + 1)
        level[center] = np.clip(steps.last_reached(met[None, None])[0, 0], level[center], lower)
        order[center] = np.maximum(order[center], level[center])
    return level, order


def _saddle_heat(
    heat_NHW: np.ndarray, image: Ints, top: Ints, bottom: Ints, left: Ints, right: Ints, is_falling: NDArray[np.bool_]
) -> np.ndarray:
    """The heat (S,) up to which two opposite corners are one within rectangles: of the two pixels beside the saddle.

    Pixels that belong to the first of the corners lie above the saddle and before it, those of the second beyond. The
    last one of the first and the first one of the second touch, and are the highest that do.
    """
    rows = np.minimum(top[:, None] + np.arange((bottom - top).max() + 1), bottom[:, None])
    columns = np.minimum(left[:, None] + np.arange((right - left).max() + 1), right[:, None])
    images = image[:, None]
    first_column, last_column = heat_NHW[images, rows, left[:, None]], heat_NHW[images, rows, right[:, None]]
    first_row, last_row = heat_NHW[images, top[:, None], columns], heat_NHW[images, bottom[:, None], columns]
    above = np.where(is_falling[:, None], first_column > last_column, first_column < last_column)
    before = np.where(is_falling[:, None], first_row > last_row, first_row < last_row)
    # Beyond the saddle neither holds, nor in the repetitions of the last row and column.
    row = np.clip(top + above.sum(1) - 1, top, bottom - 1)
    column = np.clip(left + before.sum(1) - 1, left, right - 1)
    upper = heat_NHW[image, row, np.where(is_falling, column, column + 1)]
    lower = heat_NHW[image, row + 1, np.where(is_falling, column + 1, column)]
    met: np.ndarray = np.minimum(upper, lower)
    return met


def _reaches_of_corners(maxima: Ints, corners: Places, rows: Ints, columns: Ints) -> list[Reaches]:
    ends = (-columns[None, :], -rows[:, None], columns[None, :] + 1, rows[:, None] + 1)
    number, level = maxima.ravel(), corners.ravel()
    return [
        (number, np.full(number.shape, side), level, np.broadcast_to(end, maxima.shape).ravel())
        for side, end in enumerate(ends)
    ]


def _reaches_along(
    level: Places, maxima: Ints, corners: Places, rows: Ints, columns: Ints, *, first_side: int
) -> list[Reaches]:
    """How far maxima reach to the left and to the right along the rows (N, r, W): where the level rises or falls.

    A pixel belongs to the corner towards which it rises. Of two rows that touch the upper is left out where the lower
    reaches further, the lower where the upper reaches as far.
    """
    width, corners_in_row = level.shape[-1], len(columns)
    stretch = np.searchsorted(columns, np.arange(width - 1), side="right") - 1
    before, after = level[..., :-1], level[..., 1:]
    upper = np.flatnonzero(np.diff(rows) == 1)
    levels, numbers, highest = level.ravel(), maxima.ravel(), corners.ravel()
    parts = []
    for rises, higher, lower in ((1, after, before), (0, before, after)):
        is_end = higher > lower
        is_end[:, upper] &= higher[:, upper] > lower[:, upper + 1]
        is_end[:, upper + 1] &= higher[:, upper + 1] > higher[:, upper]
        place = np.flatnonzero(is_end)
        row = place // (width - 1)
        column = place - row * (width - 1)
        corner = row * corners_in_row + stretch[column] + rises
        pixel = column + rises
        own = np.minimum(levels[row * width + pixel], highest[corner])  # more could be for rounding alone
        side = np.full(place.shape, first_side + 2 * (1 - rises))
        parts.append((numbers[corner], side, own, -pixel if rises else pixel + 1))
    return parts


def _least_pixels(
    maxima: Ints, corners: Places, rows: Ints, columns: Ints, count_of_maxima: int, count: int
) -> NDArray[np.intp]:
    """How many pixels a maximum has for sure at each level (count, maxima + 1): of wholly covered rectangles."""
    lowest = np.minimum(
        np.minimum(corners[:, :-1, :-1], corners[:, :-1, 1:]), np.minimum(corners[:, 1:, :-1], corners[:, 1:, 1:])
    )
    place = lowest.astype(np.intp) * (count_of_maxima + 1) + maxima[:, :-1, :-1]
    pixels = np.broadcast_to(np.outer(np.diff(rows), np.diff(columns)), place.shape)
    counted = np.bincount(place.ravel(), pixels.ravel(), (count_of_maxima + 1) * count)
    return counted.astype(np.intp).reshape(count, -1)
