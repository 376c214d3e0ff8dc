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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..console import shown
from ..errors import CheckpointError
from .layer_graph import LayerGraph

__all__ = ["Flat", "NotMapped", "OnnxNode", "OnnxSteps", "Sizes", "Step", "Value", "follow", "needed_nodes"]

LARGEST_CONSTANT = 2**28  # numbers
_GENERIC = {"BiasAdd", "MatMul", "Conv2D", "Relu", "Relu6", "Gemm", "Conv", "depthwise", "convolution", "Add", "Mul"}


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
    """

    node: fx.Node
    perm: tuple[int, ...] | None = None
    flat: Flat | None = None
    batch: int = 0


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
        return Step(self.graph.layer(node.layer_name, layer, self.plain(step)), batch=step.batch)

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
        return self.graph.method("size", step.node, self.axis(step, step.batch))


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a tensor of its own; half and double precision become single."""
    if array.dtype.kind not in "fiub":
        raise NotMapped(f"a constant of numbers of type {array.dtype}")
    if array.dtype.kind == "f" and array.dtype != np.float32:
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))


def simplified(value: Value) -> Value:
    """Sizes of which all are known as an array."""
    if isinstance(value, Sizes) and all(isinstance(entry, int) for entry in value.entries):
        return np.array(value.entries[0] if value.scalar else value.entries, dtype=np.int64)
    return value


def layer_name(node: Any, weights: Sequence[str]) -> str:
    """A name for the layer that a step becomes: that of its weights where it has some, as torch exports them."""
    for weight in weights:
        head, dot, last = weight.rpartition(".")
        if dot and last in ("weight", "bias") and not head.startswith(("onnx::", "/")):
            return head
    parts = [part for part in node.name.split("/") if part]
    while len(parts) > 1 and (parts[-1].startswith(node.op_type) or parts[-1].split("_")[0] in _GENERIC):
        parts.pop()
    name = parts[-1] if parts else ""
    if not name or weights or name.lower().startswith(node.op_type.lower()) or "pool" in name.lower():
        return name or node.op_type.lower()
    return f"{name}_{node.op_type.lower()}"


# ---------------------------------------------------------------- the way through


def follow(
    steps: OnnxSteps,
    graph: Any,
    values: dict[str, Value],
    operators: Mapping[str, Operator],
    opset: int,
    wanted: Sequence[str],
    outer: Mapping[str, Any] | None = None,
) -> None:
    """Follow the steps of a graph that the wanted values need; ``values`` gets what each name means.

    Args:
        steps: the network as it grows.
        graph: of the file, or the branch that an ``If`` takes.
        values: of names; the image's at first.
        operators: by name.
        opset: version of the operators.
        wanted: names.
        outer: constants of the graph around this one, by name.

    Raises:
        NotMapped: an operator or the way it is used is not known; names it.
        CheckpointError: the steps contradict each other, or make far too large tensors.
    """
    from onnx import numpy_helper

    needed = needed_nodes(graph, wanted, values)
    initializers = {**(outer or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    unknown = [node for node in needed if _key(node) not in operators]
    if unknown:
        kinds = Counter(_key(node) for node in unknown)
        first = unknown[0]
        more = f"; in all {', '.join(f'{count} x {shown(kind)[:60]}' for kind, count in kinds.most_common(8))}"
        name = shown(first.name or first.output[0])[:120]
        raise NotMapped(f"operator {shown(_key(first))[:60]} (node {name}) is not known{more}")
    uses = Counter(name for node in needed for name in node.input) + Counter(wanted)
    for node in needed:
        for name in node.input:
            if name and name not in values:
                if name not in initializers:
                    raise CheckpointError(f"{steps.graph.source}: the value {shown(name)[:80]} is given by no step.")
                values[name] = numpy_helper.to_array(initializers[name])
        inputs = [values[name] if name else None for name in node.input]
        attributes = {one.name: _attribute(one) for one in node.attribute}
        weights = [name for name in node.input if name in initializers]
        label = node.name or (node.output[0] if node.output else node.op_type)
        step = OnnxNode(_key(node), label, inputs, attributes, list(node.output), opset, layer_name(node, weights))
        try:
            if step.op == "If":
                branch = _branch(step)
                names = [value.name for value in branch.output]
                follow(steps, branch, values, operators, opset, names, initializers)
                result: Value = [values[name] for name in names]
            else:
                result = operators[step.op](steps, step)
        except CheckpointError:
            raise
        except NotMapped as error:
            raise error if str(step) in str(error) else NotMapped(f"{step}: {error}") from error
        except Exception as error:  # the file is somebody's: torch and numpy raise what its values make them raise
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise NotMapped(f"{step} does not fit what it is given ({type(error).__name__}: {reason})") from error
        results = result if isinstance(result, list) else [result]
        for name, value in zip(node.output, results, strict=False):
            values[name] = simplified(value)
            if isinstance(value, Step) and uses[name] > 1:
                steps.shared.add(value.node)
        for name in node.input:  # weights are large
            uses[name] -= 1
            if name in initializers and not uses[name]:
                values.pop(name, None)


def _branch(node: OnnxNode) -> Any:
    """The graph that an ``If`` takes, where that is known before it runs."""
    condition = node.constant(0)
    if condition is None or condition.size != 1:
        raise NotMapped(f"{node}: its condition is not one value")
    return node.get("then_branch" if bool(condition.reshape(-1)[0]) else "else_branch")


def _key(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def needed_nodes(graph: Any, wanted: Sequence[str], values: Mapping[str, Value] | Sequence[str]) -> list[Any]:
    """The steps that the wanted values need, in an order in which they can run; ``values`` are there already."""
    givers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    pending, needed = [name for name in wanted if name in givers], set[int]()
    while pending:
        index = givers[pending.pop()]
        if index in needed:
            continue
        needed.add(index)
        node = graph.node[index]
        inner = [
            name
            for one in node.attribute if one.HasField("g")
            for step in one.g.node for name in step.input
        ]  # fmt: skip
        pending += [name for name in (*node.input, *inner) if name in givers and name not in values]
    return [graph.node[index] for index in sorted(needed)]  # ONNX demands that order


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper, numpy_helper

    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t)
    if attribute.type == AttributeProto.GRAPH:
        return attribute.g
    value = helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
