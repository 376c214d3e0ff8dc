"""How a tensor holds the spatial map: where its channels, height and width stand."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["MAP_AXES", "TOKEN_AXES", "Layout", "guess_layouts"]

MAP_AXES = tuple("N" + "".join(order) for order in permutations("CHW"))
"""Orders of the axes of a map."""
TOKEN_AXES = ("N(HW)C", "NC(HW)", "N(WH)C", "NC(WH)")
"""Orders of the axes where the cells are one axis: ``(HW)`` row by row, ``(WH)`` column by column."""
_MOST_PREFIX = 8  # class, distillation and register tokens before the patches
_MOST_DISTORTION = 0.5  # of a grid's aspect (logarithm): else 4-D tensors of attention would pass for maps
_Step = tuple[str, Any, tuple[Any, ...]]


@dataclass(frozen=True)
class Layout:
    """Where channels, height and width of a map stand in a tensor.

    ``axes`` is one of ``MAP_AXES`` or ``TOKEN_AXES``. Of tokens, ``prefix`` stand before the h * w cells (such as the
    class token of Dosovitskiy et al. 2021) and ``suffix`` behind them.
    """

    axes: str
    grid: tuple[int, int]
    prefix: int = 0
    suffix: int = 0

    @property
    def token_axis(self) -> int | None:
        """The axis of the cells where they are one axis."""
        letters = self._letters
        return next((axis for axis, letter in enumerate(letters) if len(letter) > 1), None)

    @property
    def _letters(self) -> list[str]:
        return [part.strip("()") for part in re.findall(r"\(\w+\)|\w", self.axes)]

    @property
    def steps(self) -> list[_Step]:
        """The steps from the tensor to (N, C, h, w), each (kind, target, further arguments) as torch.fx has them."""
        steps: list[_Step] = []
        letters, axis = "".join(self._letters), self.token_axis
        if axis is not None:
            if self.prefix or self.suffix:
                cells = slice(self.prefix, -self.suffix if self.suffix else None)
                cut = tuple(cells if index == axis else slice(None) for index in range(axis + 1))
                steps.append(("call_function", operator.getitem, (cut,)))
            if self.axes == "N(HW)C":  # the two steps that every stored network has
                return [*steps, ("call_method", "transpose", (1, 2)), ("call_method", "unflatten", (2, self.grid))]
            sizes = self.grid if self._letters[axis] == "HW" else self.grid[::-1]
            steps.append(("call_method", "unflatten", (axis, sizes)))
        order = tuple(letters.index(letter) for letter in "NCHW")
        return steps if order == (0, 1, 2, 3) else [*steps, ("call_method", "permute", order)]

    def to_map(self, value: Tensor) -> Tensor:
        """The map (N, C, h, w) in a tensor of this layout."""
        for kind, target, arguments in self.steps:
            value = target(value, *arguments) if kind == "call_function" else getattr(value, target)(*arguments)
        return value

    def from_map(self, maps_NCHW: Tensor, like: Tensor | None = None) -> Tensor:
        """The tensor that holds a map; tokens that are no cells are those of ``like``, else each the mean of the cells.

        With the mean a head that reads the class token reads the global average of the map instead.
        """
        letters, axis = "".join(self._letters), self.token_axis
        value = maps_NCHW.permute(*("NCHW".index(letter) for letter in letters))
        if axis is None:
            return value.contiguous()
        cells = value.flatten(axis, axis + 1)
        if like is None:
            mean = cells.mean(axis, keepdim=True)
            parts = [mean] * self.prefix + [cells] + [mean] * self.suffix
        else:
            last = like.shape[axis] - self.suffix
            parts = [like.narrow(axis, 0, self.prefix), cells, like.narrow(axis, last, self.suffix)]
        return torch.cat(parts, dim=axis)

    def append(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """Put the steps to (N, C, h, w) behind a node of a graph; returns the last one."""
        for kind, target, arguments in self.steps:
            node = graph.create_node(kind, target, (node, *arguments))
        return node


def guess_layouts(
    shape: Sequence[int], image: tuple[int, int], grids: Iterable[tuple[int, int]] = (), *, any_grid: bool = True
) -> list[Layout]:
    """Layouts that a tensor of a shape could have, the likeliest first; what it has must be shown by its numbers.

    Args:
        shape: of the tensor.
        image: height and width of the input; a map has about its aspect.
        grids: height and width of the maps before it, the latest last; tokens are as many as the cells of one of
            them, and up to 8 before them.
        any_grid: also as many as the cells of a grid of the image's exact aspect.
    """
    if len(shape) == 4:
        layouts = [Layout(axes, (shape[axes.index("H")], shape[axes.index("W")])) for axes in MAP_AXES]
        near = [x for x in layouts if x.axes == "NCHW" or _distortion(x.grid, image) < _MOST_DISTORTION]
        layouts = [layout for layout in near if math.prod(layout.grid) > 1]
        return sorted(layouts, key=lambda layout: _distortion(layout.grid, image))  # is stable: NCHW first
    if len(shape) != 3:
        return []
    known = [grid for grid in dict.fromkeys(reversed(list(grids))) if _distortion(grid, image) < _MOST_DISTORTION]
    return list(dict.fromkeys(_tokens(shape, image, known, any_grid=any_grid)))


def _tokens(
    shape: Sequence[int], image: tuple[int, int], known: Sequence[tuple[int, int]], *, any_grid: bool
) -> Iterator[Layout]:
    flattened = shape[2] in map(math.prod, known)  # (N, C, h * w): the last axis has the cells
    for grid in known:
        for axis, axes in ((1, "N(HW)C"), (2, "NC(HW)"), (1, "N(WH)C"), (2, "NC(WH)")):
            prefix, most = shape[axis] - math.prod(grid), min(_MOST_PREFIX, math.prod(grid) // 8)
            if 0 <= prefix <= (most if axis == 1 else 0) and math.prod(grid) > 1:
                yield Layout(axes, grid, prefix)
    if any_grid and not flattened:
        for grid in _grids(shape[1], image):
            if math.prod(grid) > 1:
                yield Layout("N(HW)C", grid, shape[1] - math.prod(grid))


def _distortion(grid: tuple[int, int], image: tuple[int, int]) -> float:
    """How far a grid is from the image's aspect."""
    return abs(math.log(grid[0] * image[1] / (grid[1] * image[0]))) if min(grid) > 0 else math.inf


def _grids(tokens: int, image: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of the image's exact aspect with as many cells as there are tokens, or up to 8 fewer."""
    common = math.gcd(*image)
    height, width = image[0] // common, image[1] // common
    grids = []
    for prefix in range(_MOST_PREFIX + 1):
        times = math.isqrt(max(tokens - prefix, 0) // (height * width))
        if times and times * times * height * width == tokens - prefix:
            grids.append((times * height, times * width))
    return grids
