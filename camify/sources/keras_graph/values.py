"""Keras's tensors as torch's: where their axes went, and in which order flattened numbers stand."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..layer_graph import LayerGraph

__all__ = [
    "CHANNELS_LAST",
    "Run",
    "Value",
    "arranged",
    "feature_order",
    "flattened",
    "images",
    "laid_out",
    "plain",
    "value_of",
]

CHANNELS_LAST = (0, 2, 3, 1)
"""Where the axes (N, H, W, C) stand in images (N, C, H, W)."""


class Run(NamedTuple):
    """Numbers of a flattened tensor that came from one tensor.

    Attributes:
        shape: that it had, without N, as Keras counts its axes in flattening.
        axes: in which order these stand here; of (H, W, C) flattened as (C, H, W): (2, 0, 1).
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the numbers stand as Keras has them."""
        moved = [axis for axis in self.axes if self.shape[axis] > 1]
        return moved == sorted(moved)


class Value(NamedTuple):
    """A tensor of the Keras network.

    Attributes:
        node: the step that gives it.
        axes: for each axis as Keras counts them, the axis of the step's tensor.
        order: of features (N, F) that do not stand as Keras has them: the runs they consist of.
    """

    node: fx.Node
    axes: tuple[int, ...]
    order: tuple[Run, ...] = ()


def value_of(node: fx.Node, rank: int) -> Value:
    """A tensor whose axes stand as Keras has them."""
    return Value(node, tuple(range(rank)))


def arranged(graph: LayerGraph, value: Value, axes: Sequence[int]) -> Value:
    """A value whose axes stand at given places."""
    axes = tuple(axes)
    if value.axes == axes:
        return value
    order = [value.axes[axes.index(axis)] for axis in range(len(axes))]
    return Value(graph.method("permute", value.node, *order), axes)


def images(graph: LayerGraph, value: Value, data_format: str) -> Value:
    """A value of four axes as images (N, C, H, W)."""
    if len(value.axes) != 4:
        raise ValueError(f"takes images, not a tensor of {len(value.axes)} axes")
    return arranged(graph, value, CHANNELS_LAST if data_format == "channels_last" else range(4))


def plain(graph: LayerGraph, value: Value) -> Value:
    """A value whose axes and features stand as Keras has them."""
    if not value.order:
        return arranged(graph, value, range(len(value.axes)))
    parts, start = [], 0
    for run in value.order:
        count = math.prod(run.shape)
        part = value.node
        if len(value.order) > 1:
            part = graph.call(operator.getitem, part, (slice(None), slice(start, start + count)))
        if not run.is_plain:
            part = graph.method("unflatten", part, 1, tuple(run.shape[axis] for axis in run.axes))
            back = [1 + run.axes.index(axis) for axis in range(len(run.shape))]
            part = graph.call(torch.flatten, graph.method("permute", part, 0, *back), 1)
        parts.append(part)
        start += count
    return value_of(parts[0] if len(parts) == 1 else graph.call(torch.cat, parts, 1), 2)


def flattened(node: fx.Node, value: Value, shape: Sequence[int], axes: Sequence[int]) -> Value:
    """The features that a flattened value gives.

    Args:
        node: the step that flattened its tensor.
        value: the value before.
        shape: of it, as Keras counts its axes.
        axes: in which order Keras flattens them, without N.
    """
    standing = sorted(range(1, len(value.axes)), key=lambda axis: value.axes[axis])
    run = Run(tuple(shape[axis] for axis in axes), tuple(list(axes).index(axis) for axis in standing))
    return Value(node, (0, 1), () if run.is_plain else (run,))


def feature_order(value: Value) -> Tensor | None:
    """For each feature of a value, which feature of Keras's it is; None where all stand as there."""
    if not value.order:
        return None
    parts, start = [], 0
    for run in value.order:
        count = math.prod(run.shape)
        parts.append(start + torch.arange(count).reshape(run.shape).permute(run.axes).flatten())
        start += count
    return torch.cat(parts)


def laid_out(constant: Tensor, value: Value) -> Tensor:
    """A constant that Keras broadcasts over a value, for the axes and features of the value's tensor."""
    rank = len(value.axes)
    if constant.ndim > rank:
        raise ValueError(f"a constant of {constant.ndim} axes and a tensor of {rank}")
    order = feature_order(value)
    if order is not None and constant.ndim and constant.shape[-1] > 1:
        constant = constant[..., order]
    if constant.numel() == 1:
        return constant.reshape(())
    constant = constant.reshape((1,) * (rank - constant.ndim) + tuple(constant.shape))
    return constant.permute([value.axes.index(axis) for axis in range(rank)]).contiguous()
