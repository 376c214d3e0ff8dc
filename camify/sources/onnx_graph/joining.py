"""ONNX's operators that join, cut, pad, resize and sum tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from .reshaping import removed_axes, size_entries
from .steps import NotMapped, OnnxNode, OnnxSteps, Operator, Sizes, Step, Value

__all__ = ["JOINING"]

_TO_THE_END = 2**31 - 2


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
    stops = size_entries(node, np.asarray(node.get("ends")) if ends is None else ends)
    axes = node.integers(3, "axes") or list(range(len(starts)))
    strides = node.integers(4, "steps") or [1] * len(starts)
    if isinstance(value, Sizes):
        return replace(value, entries=value.entries[_cut(starts[0], steps.number(stops[0]), strides[0])])
    step = node.step()
    step = step if step.flat is None else steps.as_plain(step)
    cuts: list[Any] = [slice(None)] * steps.rank(step)
    turned: list[int] = []
    for start, stop, axis, stride in zip(starts, stops, axes, strides, strict=True):
        place = steps.axis(step, axis)
        length, last = steps.graph.shape(step.node)[place], steps.number(stop)
        if axis % len(cuts) == step.batch and (start, stride) != (0, 1):
            raise NotMapped(f"{node}: cuts the images of a batch")
        if stride == -1 and len(range(length)[_cut(start, last, -1)]) == length:
            turned.append(place)
        elif stride < 1:
            raise NotMapped(f"{node}: steps backwards")
        elif start != 0 or stride != 1 or last < length:
            cuts[place] = slice(start, None if last >= _TO_THE_END else stop, stride)
    result = step.node
    if any(cut != slice(None) for cut in cuts):
        result = steps.graph.call(operator.getitem, result, tuple(cuts))
    if turned:
        result = steps.graph.call(torch.flip, result, turned)
    return replace(step, node=result)


def _cut(start: int, stop: int, stride: int) -> slice:
    if stride < 0 and stop < -_TO_THE_END:
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
        return removed_axes(steps, one, {axis})
    if indices.ndim != 1:
        raise NotMapped(f"{node}: takes numbers in {indices.ndim} axes")
    if chosen == list(range(length))[::-1]:
        return replace(step, node=steps.graph.call(torch.flip, step.node, [place]))
    listed: list[Any] = [slice(None)] * rank
    listed[place] = slice(chosen[0], chosen[-1] + 1) if np.all(np.diff(chosen) == 1) else chosen
    return replace(step, node=steps.graph.call(operator.getitem, step.node, tuple(listed)))


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
        return result if node.get("keepdims", 1) else removed_axes(steps, result, summed)

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
        entries = size_entries(node, sizes)
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


JOINING: dict[str, Operator] = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
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
}
