"""Where the numbers of every step come from: which of its axes are the channels, height and width of a map.

Steps that only move numbers are followed exactly, by letting them move the numbers' places; steps that work cell by
cell are found by changing some cells; convolutions and pools are known. Behind what is none of these, a map is only
what has the shape of one, and its place must be shown (see ``place``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .fx_modules import parameter_free
from .layouts import MAP_AXES, TOKEN_AXES, Layout, guess_layouts
from .padded_layers import PaddedAvgPool2d, SamePad2d
from .rearrangement import Rerun, rearrangement

__all__ = ["Origin", "Origins"]

_OVER_WINDOWS = (  # a cell depends on the cells around it
    nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.Upsample,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
    nn.ConstantPad2d, nn.CircularPad2d, nn.LocalResponseNorm, SamePad2d, PaddedAvgPool2d,
)  # fmt: skip
_WINDOW_FUNCTIONS = (
    F.conv2d, F.conv_transpose2d, F.max_pool2d, F.avg_pool2d, F.lp_pool2d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d, F.interpolate, F.pad, F.local_response_norm, torch.conv2d, torch.max_pool2d,
)  # fmt: skip
_CELL_BY_CELL = (  # in any order of axes; a mean or spread over all cells moves nothing
    nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.Identity, nn.Dropout,
    nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU,
    nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.LogSigmoid,
    torchvision.ops.FrozenBatchNorm2d, torchvision.ops.StochasticDepth,
)  # fmt: skip
_CELL_FUNCTIONS = (
    F.batch_norm, F.group_norm, F.instance_norm, F.dropout, F.dropout2d, F.relu, F.gelu, F.silu, torch.relu,
)  # fmt: skip
_LAST_AXIS = (nn.Linear, nn.LayerNorm)
_LAST_AXIS_FUNCTIONS = (F.linear, F.layer_norm)
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Origin:
    """Where the numbers of a tensor stand in the image.

    Attributes:
        layouts: how the tensor holds a map: the one that was followed, or all that its shape allows, likeliest first;
            none where it holds no map.
        followed: whether every step from the image was.
        moved: whether the step only moved all the numbers of one tensor.
        cells: where a map's numbers stand in no layout: the number of the cell in the place of each, or -1, and the
            grid of the cells.
    """

    layouts: tuple[Layout, ...] = ()
    followed: bool = False
    moved: bool = False
    cells: tuple[Tensor, tuple[int, int]] | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of the map whose numbers it has, where they were followed."""
        if not self.followed:
            return None
        return self.cells[1] if self.cells is not None else self.layouts[0].grid


class Origins:
    """The origins of all steps of a graph, as it runs.

    Args:
        root: has the layers.
        image: height and width of the input.
    """

    def __init__(self, root: nn.Module, image: tuple[int, int]) -> None:
        self.root, self.image = root, image
        self.of: dict[fx.Node, Origin] = {}
        """Of the steps that depend on the image."""
        self._items: dict[fx.Node, list[Origin]] = {}

    def start(self, node: fx.Node) -> None:
        """The image itself."""
        self.of[node] = Origin((Layout("NCHW", self.image),), followed=True)

    @torch.no_grad()
    def follow(
        self, node: fx.Node, rerun: Rerun, values: Mapping[fx.Node, Any], result: Any, *, in_place: bool
    ) -> None:
        """Find the origin of what a step gave.

        Args:
            node: the step.
            rerun: does it again.
            values: what the steps before it gave.
            result: what it gave.
            in_place: whether it has changed its input.
        """
        sources = [source for source in node.all_input_nodes if source in self.of or source in self._items]
        if not sources:
            return
        tensors = [source for source in sources if source in self.of]
        if isinstance(result, tuple | list):
            items = [item for item in result if isinstance(item, Tensor)]
            moved = [self._moved(rerun, tensors, values, item, index) for index, item in enumerate(items)]
            self._items[node] = [origin or Origin() for origin in moved]
        elif isinstance(result, Tensor) and not result.is_floating_point():
            self.of[node] = Origin()  # places, masks, spectra
        elif isinstance(result, Tensor):
            origin = self._picked(node) if sources[0] in self._items else None
            if origin is None and tensors:
                origin = self._followed(node, rerun, tensors, values, result, in_place=in_place)
            self.of[node] = origin or self._guessed(
                [source for source in tensors if self.of[source].layouts], values, result
            )

    def _guessed(self, sources: Sequence[fx.Node], values: Mapping[fx.Node, Any], result: Tensor) -> Origin:
        """The layouts of a step that is not followed: that of its source where the shape stayed, else by the shape."""
        for source in sources:
            if values[source].shape == result.shape:
                return Origin(self.of[source].layouts)
        grids = self._grids()
        return Origin(tuple(guess_layouts(result.shape, self.image, grids, any_grid=len(set(grids)) < 2)))

    def _grids(self) -> list[tuple[int, int]]:
        return [origin.layouts[0].grid for origin in self.of.values() if origin.followed and origin.layouts]

    def _picked(self, node: fx.Node) -> Origin | None:
        """The origin of one item of several."""
        index = node.args[1] if node.target is operator.getitem else None
        items = self._items[node.all_input_nodes[0]]
        origin = items[index] if isinstance(index, int) and -len(items) <= index < len(items) else None
        return origin if origin is not None and origin.followed else None

    def _followed(
        self, node: fx.Node, rerun: Rerun, sources: Sequence[fx.Node], values: Mapping[fx.Node, Any], result: Tensor,
        *, in_place: bool,
    ) -> Origin | None:  # fmt: skip
        followed = [source for source in sources if self.of[source].followed]
        same = [source for source in followed if values[source].shape == result.shape]
        layer = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        known: Origin | None = None
        if same and (in_place or self._is(node, layer, _CELL_BY_CELL, _CELL_FUNCTIONS)):
            known = replace(self.of[same[0]], moved=False)
        elif followed and self._is(node, layer, _OVER_WINDOWS, _WINDOW_FUNCTIONS):
            known = self._over_windows(self.of[followed[0]], result)
        elif followed and self._is(node, layer, _LAST_AXIS, _LAST_AXIS_FUNCTIONS):
            known = self._over_last_axis(self.of[followed[0]], values[followed[0]], result)
        elif node.target in (torch.cat, torch.concat) and len(followed) == len(node.all_input_nodes):
            known = self._joined(followed, values, result) or self._moved(rerun, sources, values, result)
        elif followed and (layer is None or parameter_free(self.root, node)):
            known = self._moved(rerun, sources, values, result) if _may_be_moved(values, followed, result) else None
        return known or self._cell_by_cell(list(dict.fromkeys([*same, *followed])), rerun, values, result)

    def _cell_by_cell(
        self, sources: Sequence[fx.Node], rerun: Rerun, values: Mapping[fx.Node, Any], result: Tensor
    ) -> Origin | None:
        """The origin of a result each of whose cells depends on one cell of a source."""
        for source in sources:
            value, cells = values[source], self.of[source].cells
            if cells is not None and _keeps_cells(source, cells[0], rerun, value, result):
                return Origin(followed=True, cells=cells)
            for layout in self.of[source].layouts:
                new_layout = _cell_by_cell(source, layout, rerun, value, result)
                if new_layout is not None:
                    return Origin((new_layout,), followed=True)
        return None

    @staticmethod
    def _is(
        node: fx.Node, layer: nn.Module | None, kinds: tuple[type[nn.Module], ...], functions: Sequence[Any]
    ) -> bool:
        return isinstance(layer, kinds) if layer is not None else node.target in functions

    @staticmethod
    def _over_windows(origin: Origin, result: Tensor) -> Origin | None:
        layout = origin.layouts[0] if origin.layouts else None
        if layout is None or layout.axes not in ("NCHW", "NCWH") or result.dim() != 4 or math.prod(layout.grid) == 1:
            return None
        return Origin((_sized(layout.axes, result.shape),), followed=True)

    @staticmethod
    def _over_last_axis(origin: Origin, before: Tensor, result: Tensor) -> Origin | None:
        channels_last = bool(origin.layouts) and origin.layouts[0].axes.endswith("C")
        same = result.shape[:-1] == before.shape[:-1]
        return replace(origin, moved=False) if same and channels_last else None

    def _joined(self, sources: Sequence[fx.Node], values: Mapping[fx.Node, Any], result: Tensor) -> Origin | None:
        """Maps of one layout side by side as channels."""
        layout, *others = [self.of[source].layouts[:1] for source in sources]
        if not layout or layout[0].axes not in MAP_AXES or any(other != layout for other in others):
            return None
        as_channels = len(result) == len(values[sources[0]]) and _sized(layout[0].axes, result.shape) == layout[0]
        return Origin(layout, followed=True) if as_channels else None

    def _moved(
        self, rerun: Rerun, sources: Sequence[fx.Node], values: Mapping[fx.Node, Any], result: Tensor,
        index: int | None = None,
    ) -> Origin | None:  # fmt: skip
        """The origin of what a step has only moved; None where it computes, or maps of several sizes meet."""
        tracked = [source for source in sources if self.of[source].followed]
        grids = {self.of[source].grid for source in tracked}
        if len(grids) != 1:
            return None
        order = rearrangement(rerun, [(source, values[source]) for source in tracked], result.shape, index)
        if order is None:
            return None
        (grid,) = grids
        before = torch.cat([_cells(self.of[source], values[source]).flatten() for source in tracked])
        cells = torch.where(order >= 0, before[order.clamp_min(0)], -1)
        layout = _layout_of_cells(cells, grid)  # type: ignore[arg-type]
        if layout is not None:
            moved = len(tracked) == 1 and result.numel() == values[tracked[0]].numel()
            return Origin((layout,), followed=True, moved=moved)
        return Origin(followed=True, cells=(cells, grid))  # type: ignore[arg-type]


def _may_be_moved(values: Mapping[fx.Node, Any], sources: Sequence[fx.Node], result: Tensor) -> bool:
    """Whether a step may only have moved numbers: of equally many the smallest and largest would be the same."""
    as_many = [values[source] for source in sources if values[source].numel() == result.numel()]
    ends = [value.aminmax() for value in (*as_many, result)] if as_many else []
    return not as_many or any(bool(low == ends[-1].min and high == ends[-1].max) for low, high in ends[:-1])


def _cells(origin: Origin, value: Tensor) -> Tensor:
    """The number of its cell in the place of every number of a tensor, -1 for what is in none."""
    if origin.cells is not None:
        return origin.cells[0]
    layout = origin.layouts[0]
    maps = layout.to_map(torch.empty(value.shape, device="meta"))
    count, _, height, width = maps.shape
    cells = torch.arange(count * height * width).view(count, 1, height, width).expand(maps.shape)
    return layout.from_map(cells, like=torch.full(value.shape, -1))


def _layout_of_cells(cells: Tensor, grid: tuple[int, int]) -> Layout | None:
    """The layout in which cells stand in their order, also where there are fewer or more than before; or None."""
    if cells.dim() not in (3, 4):
        return None
    known = cells >= 0
    image, cell = cells.div(grid[0] * grid[1], rounding_mode="floor"), cells % (grid[0] * grid[1])
    images = torch.arange(len(cells)).view(-1, *[1] * (cells.dim() - 1)).expand_as(cells)
    if not torch.equal(image[known], images[known]):
        return None
    row, column = cell.div(grid[1], rounding_mode="floor"), cell % grid[1]
    if cells.dim() == 4:
        for axes in MAP_AXES:
            layout = _sized(axes, cells.shape)
            if {-1, 1} <= {(new > side) - (new < side) for new, side in zip(layout.grid, grid, strict=True)}:
                continue  # cells in one line are no map
            if all(
                _in_order(places, known, axes.index(letter), side)
                for letter, places, side in (("H", row, grid[0]), ("W", column, grid[1]))
            ):
                return layout
        return None
    for axes in TOKEN_AXES:
        axis = 1 if axes.endswith("C") else 2
        other = 3 - axis
        is_cell = known.all(0).all(other - 1)
        count = grid[0] * grid[1]
        if not torch.equal(known, is_cell.unsqueeze(other - 1).expand_as(known)) or int(is_cell.sum()) != count:
            continue
        prefix = int(is_cell.long().argmax())
        order = torch.arange(count)
        expected = order if "HW" in axes else (order % grid[0]) * grid[1] + order.div(grid[0], rounding_mode="floor")
        in_order = cell.narrow(axis, prefix, count) if prefix + count <= cells.shape[axis] else cell
        shown = expected.view(1, -1, 1) if axis == 1 else expected.view(1, 1, -1)
        if torch.equal(in_order, shown.expand_as(in_order)):
            return Layout(axes, grid, prefix, cells.shape[axis] - prefix - count)
    return None


def _in_order(places: Tensor, known: Tensor, axis: int, side: int) -> bool:
    """Whether places along a side grow along an axis, and only there: one by one, or in blocks of equal size."""
    size = places.shape[axis]
    index = torch.arange(size).view([-1 if position == axis else 1 for position in range(4)]).expand_as(places)
    if size <= side and torch.equal(places.mul(size).div(side, rounding_mode="floor")[known], index[known]):
        return True  # a block of cells became one, its parts became channels
    others = [position for position in range(4) if position != axis]
    lowest = torch.where(known, places, side).amin(others)
    highest = torch.where(known, places, -1).amax(others)
    held = highest >= 0
    if not torch.equal(lowest[held], highest[held]):
        return False
    line = lowest[held]
    return bool((line.diff() >= 0).all()) and len(torch.unique(line)) >= min(size, 2)


def _cell_by_cell(source: fx.Node, layout: Layout, rerun: Rerun, before: Tensor, result: Tensor) -> Layout | None:
    """The layout of a result each of whose cells depends on one cell of a source; None where there is none."""
    candidates = _layouts_on(layout, result.shape)
    if not candidates:
        return None
    chosen_N1HW = torch.rand(len(before), 1, *layout.grid, generator=torch.Generator().manual_seed(0)) < 0.5
    maps = layout.to_map(before)
    is_chosen = layout.from_map(chosen_N1HW.expand(maps.shape).to(maps.device), like=torch.zeros_like(before).bool())
    differs, expected = _difference(source, rerun, before, result, is_chosen), chosen_N1HW[:, 0]
    if differs is None:
        return None
    for candidate in candidates:
        changed_NHW = candidate.to_map(differs).any(1).cpu()
        if not bool((changed_NHW & ~expected).any()) and int(changed_NHW.sum()) * 2 >= int(expected.sum()) > 0:
            return candidate
    return None


def _keeps_cells(source: fx.Node, cells: Tensor, rerun: Rerun, before: Tensor, result: Tensor) -> bool:
    """Whether each number of a result depends on those of its own cell of a source, whose numbers stand anywhere."""
    if before.shape != result.shape or int(cells.max()) < 0:
        return False  # a class token is in no cell
    chosen = torch.rand(int(cells.max()) + 1, generator=torch.Generator().manual_seed(0)) < 0.5
    is_chosen = (cells >= 0) & chosen[cells.clamp_min(0)]
    differs = _difference(source, rerun, before, result, is_chosen.to(before.device))
    if differs is None or bool((differs.cpu() & ~is_chosen).any()):
        return False
    return int(differs.sum()) * 2 >= int(is_chosen.sum()) > 0


def _difference(source: fx.Node, rerun: Rerun, before: Tensor, result: Tensor, is_chosen: Tensor) -> Tensor | None:
    """Which numbers of a result differ when some of a source do; None where the step does not take others."""
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(1)).to(before)
    changed = torch.where(is_chosen, before + noise * before.std().clamp_min(1e-3), before)
    try:
        other = rerun({source: changed})
    except Exception:  # noqa: BLE001 - a step may be made for certain values only
        return None
    if not isinstance(other, Tensor) or other.shape != result.shape:
        return None
    return (other - result).abs() > _ROUNDING * result.abs().max()


def _layouts_on(layout: Layout, shape: torch.Size) -> list[Layout]:
    """The layouts that a tensor with the same grid can have, that of its source first."""
    candidates = []
    for axes in dict.fromkeys([layout.axes, *MAP_AXES, *TOKEN_AXES]):
        if axes in MAP_AXES and len(shape) == 4:
            candidates.append(_sized(axes, shape))
        elif axes in TOKEN_AXES and len(shape) == 3:
            other = Layout(axes, layout.grid, layout.prefix, layout.suffix)
            axis = other.token_axis or 1
            if shape[axis] == layout.grid[0] * layout.grid[1] + layout.prefix + layout.suffix:
                candidates.append(other)
    return [candidate for candidate in candidates if candidate.grid == layout.grid]


def _sized(axes: str, shape: torch.Size) -> Layout:
    return Layout(axes, (shape[axes.index("H")], shape[axes.index("W")]))
