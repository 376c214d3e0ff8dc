"""How a tensor holds the spatial map: channels first, channels last, or as tokens."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Layout", "find_layout"]

_MOST_PREFIX = 8  # class, distillation and register tokens before the patches
_MOST_DISTORTION = 0.5  # of a grid's aspect (logarithm): else 4-D tensors of attention would pass for maps
_Step = tuple[str, Any, tuple[Any, ...]]


@dataclass(frozen=True)
class Layout:
    """Where channels, height and width of a map stand in a tensor.

    ``axes``: ``"NCHW"``, ``"NHWC"`` (channels last) or ``"NLC"`` (tokens: ``prefix`` of them, such as the class
    token of Dosovitskiy et al. 2021, then the h * w patches row by row).
    """

    axes: str
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def steps(self) -> list[_Step]:
        """The steps from the tensor to (N, C, h, w), each (kind, target, further arguments) as torch.fx has them."""
        if self.axes == "NHWC":
            return [("call_method", "permute", (0, 3, 1, 2))]
        if self.axes == "NLC":
            patches = (slice(None), slice(self.prefix, None))
            cut: list[_Step] = [("call_function", operator.getitem, (patches,))] if self.prefix else []
            return [*cut, ("call_method", "transpose", (1, 2)), ("call_method", "unflatten", (2, self.grid))]
        return []

    def to_map(self, value: Tensor) -> Tensor:
        """The map (N, C, h, w) in a tensor of this layout."""
        for kind, target, arguments in self.steps:
            value = target(value, *arguments) if kind == "call_function" else getattr(value, target)(*arguments)
        return value

    def from_map(self, maps_NCHW: Tensor, like: Tensor | None = None) -> Tensor:
        """The tensor that holds a map; the prefix tokens are those of ``like``, else each the mean of the patches.

        With the mean a head that reads the class token reads the global average of the map instead.
        """
        if self.axes == "NHWC":
            return maps_NCHW.permute(0, 2, 3, 1).contiguous()
        if self.axes == "NLC":
            patches = maps_NCHW.flatten(2).transpose(1, 2)
            mean = patches.mean(1, keepdim=True).expand(-1, self.prefix, -1)
            return torch.cat([mean if like is None else like[:, : self.prefix], patches], dim=1)
        return maps_NCHW

    def append(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """Put the steps to (N, C, h, w) behind a node of a graph; returns the last one."""
        for kind, target, arguments in self.steps:
            node = graph.create_node(kind, target, (node, *arguments))
        return node


def find_layout(
    shape: Sequence[int],
    image: tuple[int, int],
    grids: Iterable[tuple[int, int]] = (),
    *,
    channels_last: bool | None = None,
) -> Layout | None:
    """The layout of a tensor in which a map of more than one cell can stand, or None.

    Args:
        shape: of the tensor.
        image: height and width of the input; a map has about its aspect.
        grids: height and width of the maps before it, the latest last; tokens are as many as the cells of one of
            them, or of a grid of the image's aspect, and up to 8 before them.
        channels_last: of a 4-D tensor, where that is known.
    """
    if len(shape) == 4:
        first, last = (shape[2], shape[3]), (shape[1], shape[2])
        if channels_last is None:
            channels_last = _distortion(last, image) < _distortion(first, image) < math.inf
        axes, grid = ("NHWC", last) if channels_last else ("NCHW", first)
        return Layout(axes, grid) if math.prod(grid) > 1 else None
    if len(shape) != 3:
        return None
    known = [grid for grid in dict.fromkeys(reversed(list(grids))) if _distortion(grid, image) < _MOST_DISTORTION]
    flattened = shape[2] in map(math.prod, known)  # (N, C, h * w): a map on its way to the head
    for grid in [*known, *([] if flattened else _grids(shape[1], image))]:
        prefix = shape[1] - math.prod(grid)
        if 0 <= prefix <= _MOST_PREFIX and math.prod(grid) > 1:
            return Layout("NLC", grid, prefix)
    return None


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
