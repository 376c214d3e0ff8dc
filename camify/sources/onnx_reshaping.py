"""ONNX's operators that move, join, cut and sum numbers, in functions that camify can store."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from .onnx_steps import Flat, NotMapped, OnnxNode, OnnxSteps, Operator, Sizes, Step, Value

__all__ = ["RESHAPING"]

_NHWC = (0, 2, 3, 1)


# ---------------------------------------------------------------- order and shape


def _transpose(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = node.step()
    if step.flat is not None:
        step = steps.as_plain(step)
    rank = steps.rank(step)
    perm = tuple(int(axis) % rank for axis in node.get("perm", list(range(rank))[::-1]))
    before = step.perm or tuple(range(rank))
    after = tuple(before[axis] for axis in perm)
    in_order = after == tuple(range(rank))
    return replace(step, perm=None if in_order else after, batch=perm.index(step.batch))


def _flatten(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = node.step()
    shape = steps.shape(step)
    axis = int(node.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return _reshaped(steps, step, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _reshape(steps: OnnxSteps, node: OnnxNode) -> Value:
    value, wanted = node.value(0), node.value(1)
    if wanted is None and "shape" in node.attributes:
        wanted = np.asarray(node.get("shape"))
    if isinstance(value, Sizes):
        return replace(value, scalar=isinstance(wanted, np.ndarray) and wanted.size == 0)
    step = node.step()
    entries = _entries(node, wanted)
    shape = steps.shape(step)
    numbers = [steps.number(entry) for entry in entries]
    if not node.get("allowzero", 0):
        numbers = [shape[axis] if number == 0 else number for axis, number in enumerate(numbers)]
    if -1 in numbers:
        known = math.prod(number for number in numbers if number != -1)
        numbers[numbers.index(-1)] = math.prod(shape) // max(known, 1)
    if math.prod(numbers) != math.prod(shape):
        raise NotMapped(f"{node}: {shape} cannot become {tuple(numbers)}")
    if steps.open_sides and not _is_flattening(shape, numbers, step.batch):
        return _with_open_sides(steps, step, entries, numbers)
    return _reshaped(steps, step, numbers)


def _entries(node: OnnxNode, wanted: Value) -> list[int | fx.Node]:
    if isinstance(wanted, Sizes):
        return list(wanted.entries)
    if isinstance(wanted, np.ndarray):
        return [int(entry) for entry in wanted.reshape(-1)]
    raise NotMapped(f"{node}: its shape depends on values of the image")


def _is_flattening(shape: Sequence[int], wanted: Sequence[int], batch: int) -> bool:
    return batch == 0 and len(wanted) == 2 and len(shape) >= 2 and wanted[0] == shape[0]


def _reshaped(steps: OnnxSteps, step: Step, wanted: Sequence[int]) -> Step:
    """A tensor in another shape, for any number of images."""
    wanted = tuple(int(side) for side in wanted)
    shape = steps.shape(step)
    if wanted == shape:
        return step
    if _is_flattening(shape, wanted, step.batch):
        return _flattened(steps, step)
    if len(shape) == 2 and step.perm is None and len(wanted) == 4 and wanted[1:3] == (1, 1) and step.flat is None:
        node = steps.graph.method("reshape", step.node, -1, wanted[3], 1, 1)  # one cell: NHWC and NCHW are alike
        return Step(node, perm=_NHWC)
    step = steps.as_plain(step)
    before = math.prod(shape[: step.batch])
    axis = next((i for i in range(len(wanted)) if math.prod(wanted[:i]) == before), None)
    if axis is None:
        raise NotMapped(f"a reshape of {shape} to {wanted} mixes the images of a batch")
    sides = [-1 if i == axis else side for i, side in enumerate(wanted)]
    return Step(steps.graph.method("reshape", step.node, *sides), batch=axis)


def _with_open_sides(steps: OnnxSteps, step: Step, entries: Sequence[int | fx.Node], numbers: Sequence[int]) -> Step:
    """A reshape whose sizes are read from the images."""
    shape = steps.shape(step)
    step = steps.as_plain(step)
    before = math.prod(shape[: step.batch])
    axis = next((i for i in range(len(numbers)) if math.prod(numbers[:i]) == before), None)
    if axis is None:
        raise NotMapped(f"a reshape of {shape} to {tuple(numbers)} mixes the images of a batch")
    sides: list[int | fx.Node] = []
    for index, (entry, number) in enumerate(zip(entries, numbers, strict=True)):
        if index == axis and entry != -1:
            sides.append(-1 if -1 not in entries else steps.batch_size(step))
        elif isinstance(entry, int) and entry == 0:
            sides.append(steps.graph.method("size", step.node, index) if index != axis else number)
        else:
            sides.append(entry)
    return Step(steps.graph.method("reshape", step.node, *sides), batch=axis)


def _flattened(steps: OnnxSteps, step: Step) -> Step:
    """(N, ...) -> (N, F); of a map that lies in another order, that order is remembered."""
    if step.flat is not None:
        return step
    lying = steps.graph.shape(step.node)
    one_cell = len(lying) == 4 and lying[2:] == (1, 1) and not steps.open_sides
    flat = None
    if step.perm is not None and not one_cell:
        if len(lying) != 4 or step.perm[0] != 0:
            step = steps.as_plain(step)
        else:
            flat = Flat(lying[1:], step.perm)
    return Step(steps.graph.call(torch.flatten, step.node, 1), flat=flat)


def _squeeze(steps: OnnxSteps, node: OnnxNode) -> Value:
    value = node.value(0)
    if isinstance(value, Sizes):
        return replace(value, scalar=True)
    step = node.step()
    shape = steps.shape(step)
    axes = node.integers(1, "axes")
    if axes is None:
        axes = [axis for axis, side in enumerate(shape) if side == 1 and axis != step.batch]
    removed = {axis % len(shape) for axis in axes}
    if any(shape[axis] != 1 for axis in removed) or step.batch in removed:
        raise NotMapped(f"{node}: removes axes of {shape} that are not 1")
    return _removed(steps, step, removed)


def _removed(steps: OnnxSteps, step: Step, removed: set[int]) -> Step:
    """A tensor without some axes of one number."""
    shape = steps.shape(step)
    kept = [axis for axis in range(len(shape)) if axis not in removed]
    if kept == [0, *kept[1:]] and len(kept) == 2 and step.batch == 0:
        return _flattened(steps, step)
    lying = sorted(steps.axis(step, axis) for axis in removed)
    node = step.node
    for axis in reversed(lying):
        node = steps.graph.call(torch.squeeze, node, axis)
    places = [steps.axis(step, axis) for axis in kept]
    perm = tuple(sorted(places).index(place) for place in places)
    in_order = perm == tuple(range(len(perm)))
    return Step(node, None if in_order else perm, batch=kept.index(step.batch))


def _unsqueeze(steps: OnnxSteps, node: OnnxNode) -> Value:
    value = node.value(0)
    if isinstance(value, Sizes):
        return replace(value, scalar=False)
    step = node.step()
    axes = node.integers(1, "axes") or []
    rank = steps.rank(step) + len(axes)
    new = sorted(axis % rank for axis in axes)
    if step.perm is None and steps.rank(step) == 2 and new == [1, 2] and step.flat is None:
        return _reshaped(steps, step, (steps.shape(step)[0], 1, 1, steps.shape(step)[1]))
    step = steps.as_plain(step)
    result, batch = step.node, step.batch
    for axis in new:
        result = steps.graph.call(torch.unsqueeze, result, axis)
        batch += axis <= batch
    return Step(result, batch=batch)


def _expand(steps: OnnxSteps, node: OnnxNode) -> Value:
    value = node.value(0)
    entries = _entries(node, node.value(1))
    numbers = [steps.number(entry) for entry in entries]
    if isinstance(value, np.ndarray):
        shape, batch = value.shape, 0
        open_axes = [axis for axis, entry in enumerate(entries) if isinstance(entry, fx.Node)]
        batch = open_axes[0] if open_axes else 0
        tensor = steps.plain(value)
    else:
        step = steps.as_plain(node.step())
        shape, batch, tensor = steps.shape(step), step.batch, step.node
    wanted = np.broadcast_shapes(shape, tuple(numbers))
    lead = len(wanted) - len(shape)
    if lead == 0 and wanted == tuple(shape) and not isinstance(value, np.ndarray):
        return replace(node.step()) if node.step().perm is None else step
    sides: list[int | fx.Node] = []
    for axis, side in enumerate(wanted):
        own = axis >= lead and shape[axis - lead] == side
        index = axis - (len(wanted) - len(entries))
        entry = entries[index] if index >= 0 else side
        if isinstance(entry, fx.Node) and (not own or isinstance(value, np.ndarray)):
            sides.append(entry)
        else:
            sides.append(-1 if own else side)
    return Step(
        steps.graph.method("expand", tensor, *sides), batch=batch + (0 if isinstance(value, np.ndarray) else lead)
    )


def _tile(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    repeats = node.integers(1, "repeats") or []
    if all(repeat == 1 for repeat in repeats):
        return step
    if repeats[step.batch] != 1:
        raise NotMapped(f"{node}: repeats the images of a batch")
    return replace(step, node=steps.graph.method("repeat", step.node, *repeats))


# ---------------------------------------------------------------- joined and cut


def _concat(steps: OnnxSteps, node: OnnxNode) -> Value:
    values = node.inputs
    if not any(isinstance(value, Step) for value in values):
        entries: list[int | fx.Node] = []
        for value in values:
            entries += value.entries if isinstance(value, Sizes) else [int(item) for item in value.reshape(-1)]
        return Sizes(tuple(entries))
    first = next(value for value in values if isinstance(value, Step))
    alike = all(isinstance(value, Step) and value.perm == first.perm and value.flat is None for value in values)
    axis = int(node.get("axis", 0)) % steps.rank(first)
    if axis == first.batch:
        raise NotMapped(f"{node}: joins the images of a batch")
    if alike:
        joined = steps.graph.call(torch.cat, [value.node for value in values], steps.axis(first, axis))
        return replace(first, node=joined)
    nodes = []
    for value in values:
        one = steps.plain(value)
        if isinstance(value, np.ndarray):  # a token that every image gets
            if value.shape[first.batch] != 1:
                raise NotMapped(f"{node}: joins a constant of several images")
            sides: list[Any] = [-1] * value.ndim
            sides[first.batch] = steps.batch_size(first)
            one = steps.graph.method("expand", one, *sides)
        nodes.append(one)
    return Step(steps.graph.call(torch.cat, nodes, axis), batch=first.batch)


def _split(steps: OnnxSteps, node: OnnxNode) -> list[Step]:
    step = node.step()
    if step.flat is not None:
        step = steps.as_plain(step)
    axis = steps.axis(step, int(node.get("axis", 0)))
    length = steps.graph.shape(step.node)[axis]
    parts = node.integers(1, "split")
    count = len(node.outputs)
    if parts is None:
        part = -(-length // count)
        parts = [part] * (count - 1) + [length - part * (count - 1)]
    if sum(parts) != length or min(parts) < 1:
        raise NotMapped(f"{node}: its parts {parts} are not {length} together")
    pieces = steps.graph.call(torch.split, step.node, parts, axis)
    return [replace(step, node=steps.graph.call(operator.getitem, pieces, index)) for index in range(len(parts))]


def _slice(steps: OnnxSteps, node: OnnxNode) -> Value:
    value = node.value(0)
    starts, ends = node.integers(1, "starts"), node.value(2)
    if starts is None:
        raise NotMapped(f"{node}: its first index is missing")
    if ends is None:
        ends = np.asarray(node.get("ends"))
    stops = _entries(node, ends)
    axes = node.integers(3, "axes") or list(range(len(starts)))
    strides = node.integers(4, "steps") or [1] * len(starts)
    if isinstance(value, Sizes):
        limit = steps.number(stops[0])
        return replace(value, entries=value.entries[_cut(starts[0], limit, strides[0])])
    step = node.step()
    if step.flat is not None:
        step = steps.as_plain(step)
    result, rank = step.node, steps.rank(step)
    cuts: list[Any] = [slice(None)] * rank
    turned: list[int] = []
    for start, stop, axis, stride in zip(starts, stops, axes, strides, strict=True):
        place = steps.axis(step, axis)
        length = steps.graph.shape(step.node)[place]
        if axis % rank == step.batch and (start, stride) != (0, 1):
            raise NotMapped(f"{node}: cuts the images of a batch")
        if stride == -1 and len(range(length)[_cut(start, steps.number(stop), -1)]) == length:
            turned.append(place)
        elif stride < 1:
            raise NotMapped(f"{node}: steps backwards")
        else:
            whole = start == 0 and stride == 1 and steps.number(stop) >= length
            end = None if steps.number(stop) >= 2**31 - 1 else stop
            cuts[place] = slice(None) if whole else slice(start, end, stride)
    if any(cut != slice(None) for cut in cuts):
        result = steps.graph.call(operator.getitem, result, tuple(cuts))
    if turned:
        result = steps.graph.call(torch.flip, result, turned)
    return replace(step, node=result)


def _cut(start: int, stop: int, stride: int) -> slice:
    if stride < 0 and stop < -(2**31) + 2:
        return slice(start, None, stride)
    return slice(start, stop, stride)


def _gather(steps: OnnxSteps, node: OnnxNode) -> Value:
    value = node.value(0)
    indices = node.constant(1)
    if indices is None:
        raise NotMapped(f"{node}: its indices are missing")
    if isinstance(value, Sizes):
        taken = np.asarray(value.entries, dtype=object)[indices.reshape(-1).astype(int)]
        return Sizes(tuple(taken.tolist()), scalar=indices.ndim == 0)
    step = node.step()
    if step.flat is not None:
        step = steps.as_plain(step)
    axis = int(node.get("axis", 0)) % steps.rank(step)
    if axis == step.batch:
        raise NotMapped(f"{node}: takes some images of a batch")
    place, rank = steps.axis(step, axis), steps.rank(step)
    length = steps.graph.shape(step.node)[place]
    chosen = [int(index) % length for index in indices.reshape(-1)]
    if indices.ndim == 0:
        cut = [slice(None)] * rank
        cut[place] = slice(chosen[0], chosen[0] + 1)
        one = replace(step, node=steps.graph.call(operator.getitem, step.node, tuple(cut)))
        return _removed(steps, one, {axis})
    if indices.ndim != 1:
        raise NotMapped(f"{node}: takes numbers in {indices.ndim} axes")
    if chosen == list(range(length))[::-1]:
        return replace(step, node=steps.graph.call(torch.flip, step.node, [place]))
    listed: list[Any] = [slice(None)] * rank
    listed[place] = slice(chosen[0], chosen[-1] + 1) if np.all(np.diff(chosen) == 1) else chosen
    return replace(step, node=steps.graph.call(operator.getitem, step.node, tuple(listed)))


def _shape(steps: OnnxSteps, node: OnnxNode) -> Value:
    sizes: Any = steps.sizes(node.step())
    start, end = int(node.get("start", 0)), node.get("end")
    return replace(sizes, entries=sizes.entries[start : None if end is None else int(end)])


# ---------------------------------------------------------------- padded, resized, summed


def _pad(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = node.step()
    if step.flat is not None:
        step = steps.as_plain(step)
    rank = steps.rank(step)
    pads = node.integers(1, "pads") or []
    constant = node.constant(2, "value")
    value = 0.0 if constant is None or not constant.size else float(constant.reshape(-1)[0])
    axes = node.integers(3, "axes") or list(range(rank))
    half = len(axes)
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        place = steps.axis(step, axis)
        before[place], after[place] = pads[index], pads[half + index]
    if not any(before) and not any(after):
        return step
    mode = str(node.get("mode", "constant"))
    if rank == 4 and not any(before[:2]) and not any(after[:2]):
        sides = (before[3], after[3], before[2], after[2])
        layers: dict[str, Callable[[], nn.Module]] = {
            "constant": lambda: nn.ZeroPad2d(sides) if value == 0 else nn.ConstantPad2d(sides, value),
            "reflect": lambda: nn.ReflectionPad2d(sides),
            "edge": lambda: nn.ReplicationPad2d(sides),
        }
        if mode in layers:
            return steps.layer(node, layers[mode](), step)
    if mode != "constant" or before[steps.axis(step, step.batch)] or after[steps.axis(step, step.batch)]:
        raise NotMapped(f"{node}: pads in a way that is not known")
    sides_of_all = [side for place in reversed(range(rank)) for side in (before[place], after[place])]
    return replace(step, node=steps.graph.call(F.pad, step.node, sides_of_all, "constant", value))


def _reduce(function: Callable[..., Any]) -> Operator:
    def apply(steps: OnnxSteps, node: OnnxNode) -> Step:
        step = node.step()
        if step.flat is not None:
            step = steps.as_plain(step)
        rank = steps.rank(step)
        axes = node.integers(1, "axes")
        if axes is None or not axes:
            if node.get("noop_with_empty_axes", 0):
                return step
            raise NotMapped(f"{node}: goes over the images of a batch")
        summed = {axis % rank for axis in axes}
        if step.batch in summed:
            raise NotMapped(f"{node}: goes over the images of a batch")
        places = sorted(steps.axis(step, axis) for axis in summed)
        result = replace(step, node=function(steps, step.node, places))
        return result if node.get("keepdims", 1) else _removed(steps, result, summed)

    return apply


def _summed(function: Callable[..., Any]) -> Callable[..., fx.Node]:
    return lambda steps, tensor, places: steps.graph.call(function, tensor, places, keepdim=True)


def _norm(order: int) -> Callable[..., fx.Node]:
    def apply(steps: OnnxSteps, tensor: fx.Node, places: Sequence[int]) -> fx.Node:
        if order == 1:
            return steps.graph.call(torch.sum, steps.graph.call(torch.abs, tensor), places, keepdim=True)
        square = steps.graph.call(torch.sum, steps.graph.call(operator.mul, tensor, tensor), places, keepdim=True)
        return steps.graph.call(torch.sqrt, square) if order == 2 else square

    return apply


def _resize(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    index = 1 if node.op == "Upsample" or node.opset < 11 else 2
    scales, sizes = node.constant(index, "scales"), node.value(index + 1) if index == 2 else None
    mode = str(node.get("mode", "nearest"))
    how = str(node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric"))
    modes = {("nearest", "asymmetric"): "nearest", ("linear", "half_pixel"): "bilinear",
             ("linear", "pytorch_half_pixel"): "bilinear", ("linear", "align_corners"): "bilinear",
             ("nearest", "half_pixel"): "nearest-exact"}  # fmt: skip
    if (mode, how) not in modes or steps.rank(step) != 4:
        raise NotMapped(f"{node}: resizes by {mode}, {how}, which is not known")
    corners = {"align_corners": how == "align_corners"} if mode == "linear" else {}
    if scales is not None and scales.size == 4:
        factors = [float(scale) for scale in scales.reshape(-1)]
        if factors[:2] != [1, 1]:
            raise NotMapped(f"{node}: resizes other axes than height and width")
        options: dict[str, Any] = {"scale_factor": factors[2:]}
    else:
        entries = _entries(node, sizes)
        options = {"size": [entries[-2], entries[-1]]}
    result = steps.graph.call(F.interpolate, step.node, mode=modes[mode, how], **options, **corners)
    return replace(step, node=result)


def _depth_to_space(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    block = int(node.get("blocksize", 1))
    if node.get("mode", "DCR") == "CRD":
        return steps.apply(node, nn.PixelShuffle(block), step)
    _, channels, height, width = steps.shape(step)
    split = steps.graph.method("reshape", step.node, -1, block, block, channels // block**2, height, width)
    moved = steps.graph.method("permute", split, 0, 3, 4, 1, 5, 2)
    sides = (channels // block**2, height * block, width * block)
    return replace(step, node=steps.graph.method("reshape", moved, -1, *sides))


def _space_to_depth(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    block = int(node.get("blocksize", 1))
    _, channels, height, width = steps.shape(step)
    split = steps.graph.method("reshape", step.node, -1, channels, height // block, block, width // block, block)
    moved = steps.graph.method("permute", split, 0, 3, 5, 1, 2, 4)
    sides = (channels * block**2, height // block, width // block)
    return replace(step, node=steps.graph.method("reshape", moved, -1, *sides))


def _einsum(steps: OnnxSteps, node: OnnxNode) -> Step:
    batch = next(value.batch for value in node.inputs if isinstance(value, Step))
    nodes = [steps.plain(value) for value in node.inputs]
    return Step(steps.graph.call(torch.einsum, str(node.get("equation")), *nodes), batch=batch)


# ---------------------------------------------------------------- sizes alone


def _equal(steps: OnnxSteps, node: OnnxNode) -> Value:
    """Whether sizes are numbers that no size is: exporters ask for -1 where a side stays."""
    left, right = node.inputs
    sizes, other = (left, right) if isinstance(left, Sizes) else (right, left)
    if not isinstance(sizes, Sizes) or not isinstance(other, np.ndarray):
        raise NotMapped(f"{node}: compares values of the image")
    numbers = np.broadcast_to(other.reshape(-1), (len(sizes.entries),))
    if any(isinstance(entry, fx.Node) and number >= 0 for entry, number in zip(sizes.entries, numbers, strict=True)):
        raise NotMapped(f"{node}: compares sizes of the image")
    return np.array([entry == number for entry, number in zip(sizes.entries, numbers, strict=True)])


def _where(steps: OnnxSteps, node: OnnxNode) -> Value:
    condition, yes, no = node.inputs
    if not isinstance(condition, np.ndarray) or isinstance(yes, Step) or isinstance(no, Step):
        raise NotMapped(f"{node}: chooses between values of the image")
    length = condition.size
    lists = [
        list(value.entries) if isinstance(value, Sizes) else [int(item) for item in value.reshape(-1)]
        for value in (yes, no)
    ]
    lists = [items * length if len(items) == 1 else items for items in lists]
    chosen = [first if choice else second for choice, first, second in zip(condition.reshape(-1), *lists, strict=True)]
    return Sizes(tuple(chosen), scalar=condition.ndim == 0)


def _constant_of_shape(steps: OnnxSteps, node: OnnxNode) -> Value:
    """A constant as large as sizes of the image say: as large as for one image, where it is the same for all."""
    entries = _entries(node, node.value(0))
    numbers = [steps.number(entry) for entry in entries]
    if math.prod(numbers) > 2**24:
        raise NotMapped(f"{node}: gives more than {2**24:,} constant numbers")
    fill = node.get("value")
    value = np.float32(0) if fill is None else np.asarray(fill).reshape(-1)[0]
    return np.full(numbers, value)


RESHAPING: dict[str, Operator] = {
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Shape": _shape,
    "Pad": _pad,
    "ReduceMean": _reduce(_summed(torch.mean)),
    "ReduceSum": _reduce(_summed(torch.sum)),
    "ReduceMax": _reduce(_summed(torch.amax)),
    "ReduceMin": _reduce(_summed(torch.amin)),
    "ReduceL1": _reduce(_norm(1)),
    "ReduceL2": _reduce(_norm(2)),
    "ReduceSumSquare": _reduce(_norm(0)),
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Einsum": _einsum,
    "Equal": _equal,
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
}
