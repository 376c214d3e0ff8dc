"""A graph of ONNX steps followed from the image to the logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...console import shown
from ...errors import CheckpointError
from .steps import NotMapped, OnnxNode, OnnxSteps, Operator, Sizes, Step, Value

__all__ = ["follow", "needed_nodes"]

_GENERIC = {"BiasAdd", "MatMul", "Conv2D", "Relu", "Relu6", "Gemm", "Conv", "depthwise", "convolution", "Add", "Mul"}


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
    needed = needed_nodes(graph, wanted, values)
    constants = {**(outer or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    _refuse_unknown(needed, operators)
    uses = Counter(name for node in needed for name in node.input) + Counter(wanted)
    for node in needed:
        inputs = [_value_of(name, values, constants, steps.graph.source) for name in node.input]
        step = _as_step(node, inputs, constants, opset)
        if step.op == "If":
            branch = _branch(step)
            names = [value.name for value in branch.output]
            follow(steps, branch, values, operators, opset, names, constants)
            results: list[Value] = [values[name] for name in names]
        else:
            results = _applied(operators[step.op], steps, step)
        for name, value in zip(node.output, results, strict=False):
            values[name] = _simplified(value)
            if isinstance(value, Step) and uses[name] > 1:
                steps.shared.add(value.node)
        for name in node.input:  # weights are large
            uses[name] -= 1
            if name in constants and not uses[name]:
                values.pop(name, None)


def needed_nodes(graph: Any, wanted: Sequence[str], values: Mapping[str, Value] | Sequence[str]) -> list[Any]:
    """The steps that the wanted values need, each behind those that it needs; ``values`` are there already.

    ONNX demands that order of a file, onnxruntime does not, and some tools write another.
    """
    givers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    pending = [(givers[name], False) for name in wanted if name in givers and name not in values]
    ordered: dict[int, None] = {}
    entered: set[int] = set()
    while pending:
        index, is_left = pending.pop()
        if is_left:
            ordered[index] = None
        elif index not in entered:
            entered.add(index)
            pending.append((index, True))
            node = graph.node[index]
            names = (*node.input, *_names_within(node))
            pending += [(givers[name], False) for name in names if name in givers and name not in values]
    return [graph.node[index] for index in ordered]


def _names_within(node: Any) -> Iterable[str]:
    """Names that the graphs within a step read."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from (*inner.input, *_names_within(inner))
            yield from (output.name for output in attribute.g.output)


def _refuse_unknown(nodes: Sequence[Any], operators: Mapping[str, Operator]) -> None:
    unknown = [node for node in nodes if _key(node) not in (*operators, "If")]
    if not unknown:
        return
    kinds, first = Counter(_key(node) for node in unknown), unknown[0]
    more = ", ".join(f"{count} x {shown(kind)[:60]}" for kind, count in kinds.most_common(8))
    name = shown(first.name or "".join(first.output[:1]))[:120]
    raise NotMapped(f"operator {shown(_key(first))[:60]} (node {name}) is not known; in all {more}")


def _key(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _value_of(name: str, values: dict[str, Value], constants: Mapping[str, Any], source: str) -> Value:
    from onnx import numpy_helper

    if name and name not in values:
        if name not in constants:
            raise CheckpointError(f"{source}: the value {shown(name)[:80]} is given by no step.")
        try:
            values[name] = numpy_helper.to_array(constants[name])
        except Exception as error:  # of onnx and numpy: the tensor is somebody's
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{source}: the tensor {shown(name)[:80]} cannot be read ({reason}).") from error
    return values[name] if name else None


def _as_step(node: Any, inputs: list[Value], constants: Mapping[str, Any], opset: int) -> OnnxNode:
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    name = node.name or (node.output[0] if node.output else node.op_type)
    weights = [name for name in node.input if name in constants]
    return OnnxNode(_key(node), name, inputs, attributes, list(node.output), opset, _layer_name(node, weights))


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper, numpy_helper

    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t)
    if attribute.type == AttributeProto.GRAPH:
        return attribute.g
    value = helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _layer_name(node: Any, weights: Sequence[str]) -> str:
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
        return name or str(node.op_type).lower()
    return f"{name}_{node.op_type.lower()}"


def _branch(node: OnnxNode) -> Any:
    """The graph that an ``If`` takes, where that is known before it runs."""
    condition = node.constant(0)
    if condition is None or condition.size != 1:
        raise NotMapped(f"{node}: its condition is not one value")
    return node.get("then_branch" if bool(condition.reshape(-1)[0]) else "else_branch")


def _applied(operator: Operator, steps: OnnxSteps, node: OnnxNode) -> list[Value]:
    """What an operator gives; whatever goes wrong names the step."""
    try:
        result = operator(steps, node)
    except CheckpointError:
        raise
    except NotMapped as error:
        raise error if str(node) in str(error) else NotMapped(f"{node}: {error}") from error
    except Exception as error:  # the file is somebody's: torch and numpy raise what its values make them raise
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise NotMapped(f"{node} does not fit what it is given ({type(error).__name__}: {reason})") from error
    return result if isinstance(result, list) else [result]


def _simplified(value: Value) -> Value:
    """Sizes of which all are known as an array."""
    if isinstance(value, Sizes) and all(isinstance(entry, int) for entry in value.entries):
        return np.array(value.entries[0] if value.scalar else value.entries, dtype=np.int64)
    return value
