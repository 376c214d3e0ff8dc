"""An ONNX graph followed step by step into a ``LayerGraph``; the operators are in ``onnx_operators``.

Transposes are not written down where they are met: a step remembers how its tensor would have to be permuted, and what
follows is done on the tensor as it lies (NCHW), with axes and weights permuted instead. So files of TensorFlow, which
turn their maps from NHWC to NCHW and back, become plain convolutional networks. Where the order cannot be carried on,
the transpose is written.

The batch is open in every network: a reshape to a fixed number of images, which exporters write for an example of one
image, becomes one to any number. Sizes that the file leaves open are read from the images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ...console import shown
from ..layer_graph import LayerGraph

__all__ = [
    "AFFINE", "LARGEST_CONSTANT", "Flat", "NotMapped", "OnnxNode", "OnnxSteps", "Operator", "Sizes", "Step", "Value",
    "as_tensor", "with_weights",
]  # fmt: skip

LARGEST_CONSTANT = 2**28  # numbers
AFFINE = (operator.add, operator.sub, operator.mul, operator.truediv)
"""Functions that scale or shift."""


class NotMapped(Exception):  # noqa: N818 - its message names the operator and node that are not known
    """A step that camify has no layer for."""


@dataclass(frozen=True)
class Flat:
    """A map flattened in another order than the file's: the order of the numbers.

    Attributes:
        shape: (C, H, W) of the map as it lies.
        perm: the permutation of (N, C, H, W) that the file flattens.
    """

    shape: tuple[int, ...]
    perm: tuple[int, ...]

    @property
    def order(self) -> np.ndarray[Any, Any]:
        """For every number of the file's vector, where it stands in the one that there is."""
        places = np.arange(math.prod(self.shape)).reshape(1, *self.shape)
        return places.transpose(self.perm).reshape(-1)


@dataclass(frozen=True)
class Step:
    """A tensor that depends on the image.

    Attributes:
        node: gives it, up to the order of its numbers.
        perm: the file's tensor is ``node.permute(perm)``; None: as it is.
        flat: the file's vector has another order than the node's.
        batch: axis of the images in the file's tensor.
        lead: how many other rows come before the images in that axis: 197 of (197 * N, 768), else 1.
    """

    node: fx.Node
    perm: tuple[int, ...] | None = None
    flat: Flat | None = None
    batch: int = 0
    lead: int = 1


@dataclass(frozen=True)
class Sizes:
    """Whole numbers, some of which are read from the images: a list of them, or a single one."""

    entries: tuple[int | fx.Node, ...]
    scalar: bool = False


Value = Any
"""Of a name in the file: an array (constant), ``Sizes``, a ``Step``, or a list of these; None of what is left out."""


@dataclass(frozen=True)
class OnnxNode:
    """A step of the file, with its inputs' values.

    Attributes:
        op: the operator.
        name: of the node, or of its first output.
        inputs: their values, None where one is left out.
        attributes: by name.
        outputs: names.
        opset: version of the operators.
        layer_name: for a layer that is made of it.
    """

    op: str
    name: str
    inputs: list[Value]
    attributes: Mapping[str, Any]
    outputs: list[str]
    opset: int
    layer_name: str

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or what ONNX says it is where it is missing."""
        return self.attributes.get(attribute, default)

    def value(self, index: int) -> Value:
        """An input, or None."""
        return self.inputs[index] if index < len(self.inputs) else None

    def step(self, index: int = 0) -> Step:
        """An input that depends on the image."""
        value = self.value(index)
        if not isinstance(value, Step):
            raise NotMapped(f"{self}: its input {index + 1} does not depend on the image")
        return value

    def constant(self, index: int, attribute: str | None = None) -> np.ndarray[Any, Any] | None:
        """An input, or before it was one the attribute, as an array; None where it is left out."""
        value = self.value(index)
        if value is None and attribute is not None and attribute in self.attributes:
            value = np.asarray(self.attributes[attribute])
        if value is None:
            return None
        if not isinstance(value, np.ndarray):
            raise NotMapped(f"{self}: its input {index + 1} is computed from the image")
        return value

    def weights(self, index: int) -> np.ndarray[Any, Any]:
        """An input that must be constant and there."""
        value = self.constant(index)
        if value is None:
            raise NotMapped(f"{self}: its input {index + 1} is missing")
        return value

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """As ``constant``, as whole numbers."""
        value = self.constant(index, attribute)
        return None if value is None else [int(item) for item in np.atleast_1d(value)]

    def __str__(self) -> str:
        return f"operator {self.op} (node {shown(self.name)[:120]})"


Operator = Callable[["OnnxSteps", OnnxNode], Value]


class OnnxSteps:
    """The network as it grows, and what its operators need of it."""

    def __init__(self, graph: LayerGraph, open_sides: bool) -> None:
        self.graph, self.open_sides = graph, open_sides
        self.shared: set[fx.Node] = set()
        """Steps that several others read: nothing may be folded into them."""

    # ------------------------------------------------------------ shapes and orders

    def shape(self, step: Step) -> tuple[int, ...]:
        """Of the file's tensor, for the example images."""
        shape = self.graph.shape(step.node)
        return shape if step.perm is None else tuple(shape[axis] for axis in step.perm)

    def rank(self, step: Step) -> int:
        """Number of axes."""
        return len(self.graph.shape(step.node))

    def plain(self, value: Value) -> fx.Node:
        """A value as a step whose tensor is the file's."""
        if isinstance(value, np.ndarray):
            return self.graph.tensor("constant", as_tensor(value))
        if not isinstance(value, Step):
            raise NotMapped("sizes of the image are used as numbers")
        if value.flat is not None:
            flat = value.flat
            axes = self.graph.method("reshape", value.node, -1, *flat.shape)
            return self.graph.call(torch.flatten, self.graph.method("permute", axes, *flat.perm), 1)
        if value.perm is None:
            return value.node
        return self.graph.method("permute", value.node, *value.perm)

    def as_plain(self, step: Step) -> Step:
        """A step whose tensor is the file's."""
        return replace(step, node=self.plain(step), perm=None, flat=None)

    def axis(self, step: Step, axis: int) -> int:
        """An axis of the file's tensor as one of the step's."""
        axis = axis % self.rank(step)
        return axis if step.perm is None else step.perm[axis]

    def arranged(self, step: Step, constant: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A constant that is combined with a step, in the order and rank of the step's tensor.

        Raises:
            NotMapped: it has more axes than the tensor.
        """
        rank = self.rank(step)
        while constant.ndim > rank and constant.shape[0] == 1:
            constant = constant[0]
        if constant.ndim > rank:
            raise NotMapped("a constant has more axes than what it is combined with")
        constant = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
        if step.perm is not None:
            return constant.transpose(np.argsort(step.perm))
        if step.flat is not None and constant.shape[-1] > 1:
            ordered = np.empty_like(constant)
            ordered[..., step.flat.order] = constant
            return ordered
        return constant

    def can_fold_into(self, step: Step, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
        """The layer that gives a step, where it is of these kinds and nothing else reads it."""
        if step.node.op != "call_module" or step.node in self.shared:
            return None
        layer = self.graph.root.get_submodule(str(step.node.target))
        return layer if isinstance(layer, kinds) else None

    def layer(self, node: OnnxNode, layer: nn.Module, step: Step) -> Step:
        """A layer that works on every number alone: the order stays."""
        return replace(step, node=self.graph.layer(node.layer_name, layer, step.node))

    def apply(self, node: OnnxNode, layer: nn.Module, step: Step) -> Step:
        """A layer on the file's tensor."""
        return Step(self.graph.layer(node.layer_name, layer, self.plain(step)), batch=step.batch, lead=step.lead)

    # ------------------------------------------------------------ sizes

    def sizes(self, step: Step) -> Sizes | np.ndarray[Any, Any]:
        """The shape of the file's tensor; its batch, and what the file leaves open, are read from the images."""
        shape = self.shape(step)
        open_axes = {step.batch} | (set(range(len(shape))) if self.open_sides else set())
        entries: list[int | fx.Node] = list(shape)
        for axis in open_axes:
            if axis == step.batch or (self.rank(step) == 4 and self.axis(step, axis) > 1):
                entries[axis] = self.graph.method("size", step.node, self.axis(step, axis))
        return Sizes(tuple(entries))

    def number(self, entry: int | fx.Node) -> int:
        """An entry's value for the example images."""
        return int(self.graph.values[entry]) if isinstance(entry, fx.Node) else int(entry)

    def batch_size(self, step: Step) -> fx.Node:
        """The number of images."""
        if step.lead != 1:
            raise NotMapped("the images of a batch are mixed with other rows")
        return self.graph.method("size", step.node, self.axis(step, step.batch))


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a tensor of its own; half and double precision become single."""
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise NotMapped(f"a constant of numbers of type {array.dtype}")
    if array.dtype.kind == "f" and array.dtype != np.float32:
        array = array.astype(np.float32)
    return torch.tensor(array)


def with_weights(layer: Any, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None) -> Any:
    """The layer with these weights."""
    layer.weight = nn.Parameter(as_tensor(weight))
    if bias is not None:
        layer.bias = nn.Parameter(as_tensor(bias).reshape(-1))
    return layer
