"""ONNX's operators that change the order and the shape of tensors, and those on sizes of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from .steps import Flat, NotMapped, OnnxNode, OnnxSteps, Operator, Sizes, Step, Value

__all__ = ["RESHAPING", "removed_axes", "size_entries"]

_NHWC = (0, 2, 3, 1)


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
    entries = size_entries(node, wanted)
    shape = steps.shape(step)
    numbers = [steps.number(entry) for entry in entries]
    if not node.get("allowzero", 0):
        numbers = [shape[axis] if number == 0 else number for axis, number in enumerate(numbers)]
    if -1 in numbers:
        known = math.prod(number for number in numbers if number != -1)
        numbers[numbers.index(-1)] = math.prod(shape) // max(known, 1)
    if math.prod(numbers) != math.prod(shape):
        raise NotMapped(f"{node}: {shape} cannot become {tuple(numbers)}")
    if steps.open_sides and not _is_flattening(step, shape, numbers):
        return _with_open_sides(steps, step, entries, numbers)
    return _reshaped(steps, step, numbers)


def size_entries(node: OnnxNode, wanted: Value) -> list[int | fx.Node]:
    """The sizes that a value holds, known or read from the images."""
    if isinstance(wanted, Sizes):
        return list(wanted.entries)
    if isinstance(wanted, np.ndarray):
        return [int(entry) for entry in wanted.reshape(-1)]
    raise NotMapped(f"{node}: its shape depends on values of the image")


def _is_flattening(step: Step, shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return step.batch == 0 and step.lead == 1 and len(wanted) == 2 and len(shape) >= 2 and wanted[0] == shape[0]


def _reshaped(steps: OnnxSteps, step: Step, wanted: Sequence[int]) -> Step:
    """A tensor in another shape, for any number of images."""
    wanted = tuple(int(side) for side in wanted)
    shape = steps.shape(step)
    if wanted == shape:
        return step
    if _is_flattening(step, shape, wanted):
        return _flattened(steps, step)
    if len(shape) == 2 and step.perm is None and len(wanted) == 4 and wanted[1:3] == (1, 1) and step.flat is None:
        node = steps.graph.method("reshape", step.node, -1, wanted[3], 1, 1)  # one cell: NHWC and NCHW are alike
        return Step(node, perm=_NHWC)
    step = steps.as_plain(step)
    axis, lead = _batch_place(step, shape, wanted)
    sides = [-1 if i == axis else side for i, side in enumerate(wanted)]
    return Step(steps.graph.method("reshape", step.node, *sides), batch=axis, lead=lead)


def _batch_place(step: Step, shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, int]:
    """In which axis of another shape the images are, and behind how many other rows.

    A reshape keeps the order of the numbers, so that as many come before an image as before it.
    """
    before = math.prod(shape[: step.batch]) * step.lead
    starts = [math.prod(wanted[:axis]) for axis in range(len(wanted))]
    own = [axis for axis, start in enumerate(starts) if start == before]
    behind = [axis for axis, start in enumerate(starts) if start * wanted[axis] == before and wanted[axis] > 1]
    if len(wanted) == 2 and behind:  # rows for a matrix product
        return behind[0], wanted[behind[0]]
    if own:
        return own[0], 1
    if behind:
        return behind[0], wanted[behind[0]]
    raise NotMapped(f"a reshape of {tuple(shape)} to {tuple(wanted)} mixes the images of a batch")


def _with_open_sides(steps: OnnxSteps, step: Step, entries: Sequence[int | fx.Node], numbers: Sequence[int]) -> Step:
    """A reshape whose sizes are read from the images."""
    shape = steps.shape(step)
    step = steps.as_plain(step)
    axis, lead = _batch_place(step, shape, numbers)
    sides: list[int | fx.Node] = []
    for index, (entry, number) in enumerate(zip(entries, numbers, strict=True)):
        if index == axis and entry != -1:
            sides.append(-1 if -1 not in entries else steps.batch_size(step))
        elif isinstance(entry, int) and entry == 0:
            sides.append(steps.graph.method("size", step.node, index) if index != axis else number)
        else:
            sides.append(entry)
    return Step(steps.graph.method("reshape", step.node, *sides), batch=axis, lead=lead)


def _flattened(steps: OnnxSteps, step: Step) -> Step:
    """(N, ...) -> (N, F); of a map that lies in another order, that order is remembered."""
    if step.flat is not None:
        return step
    lying = steps.graph.shape(step.node)
    one_cell = len(lying) == 4 and lying[2:] == (1, 1) and not steps.open_sides
    flat = None
    if step.perm is not None and not one_cell:
        if len(lying) == 4 and step.perm[0] == 0:
            flat = Flat(lying[1:], step.perm)
        else:
            step = steps.as_plain(step)
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
    return removed_axes(steps, step, removed)


def removed_axes(steps: OnnxSteps, step: Step, removed: set[int]) -> Step:
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
    entries = size_entries(node, node.value(1))
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
        return step
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


# ---------------------------------------------------------------- sizes


def _shape(steps: OnnxSteps, node: OnnxNode) -> Value:
    sizes: Any = steps.sizes(node.step())
    start, end = int(node.get("start", 0)), node.get("end")
    return replace(sizes, entries=sizes.entries[start : None if end is None else int(end)])


def _equal(steps: OnnxSteps, node: OnnxNode) -> Value:  # noqa: ARG001 - an operator
    """Whether sizes are numbers that no size is: exporters ask for -1 where a side stays."""
    left, right = node.inputs
    sizes, other = (left, right) if isinstance(left, Sizes) else (right, left)
    if not isinstance(sizes, Sizes) or not isinstance(other, np.ndarray):
        raise NotMapped(f"{node}: compares values of the image")
    numbers = np.broadcast_to(other.reshape(-1), (len(sizes.entries),))
    if any(isinstance(entry, fx.Node) and number >= 0 for entry, number in zip(sizes.entries, numbers, strict=True)):
        raise NotMapped(f"{node}: compares sizes of the image")
    return np.array([entry == number for entry, number in zip(sizes.entries, numbers, strict=True)])


def _where(steps: OnnxSteps, node: OnnxNode) -> Value:  # noqa: ARG001 - an operator
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
    entries = size_entries(node, node.value(0))
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
    "Shape": _shape,
    "Equal": _equal,
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
}
