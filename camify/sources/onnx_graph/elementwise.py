"""ONNX's operators that work number by number: activations and arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .steps import AFFINE, NotMapped, OnnxNode, OnnxSteps, Operator, Sizes, Step, Value, as_tensor

__all__ = ["ELEMENTWISE"]


def _activation(make: Callable[[OnnxNode], nn.Module]) -> Operator:
    def apply(steps: OnnxSteps, node: OnnxNode) -> Step:
        return steps.layer(node, make(node), node.step())

    return apply


def _plain(kind: type[nn.Module]) -> Operator:
    """An activation without options."""
    return _activation(lambda _: kind())


def _function(function: Callable[..., Any], *others: Any) -> Operator:
    def apply(steps: OnnxSteps, node: OnnxNode) -> Step:
        step = node.step()
        return replace(step, node=steps.graph.call(function, step.node, *others))

    return apply


def _hard_sigmoid(node: OnnxNode) -> tuple[float, float]:
    return float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))


def _hardsigmoid(steps: OnnxSteps, node: OnnxNode) -> Step:
    alpha, beta = _hard_sigmoid(node)
    step = node.step()
    if math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5:
        return steps.layer(node, nn.Hardsigmoid(), step)
    scaled = steps.graph.call(operator.add, steps.graph.call(operator.mul, step.node, alpha), beta)
    return replace(step, node=steps.graph.layer(node.layer_name, nn.Hardtanh(0.0, 1.0), scaled))


def _clip(steps: OnnxSteps, node: OnnxNode) -> Step:
    low, high = (node.constant(index, name) for index, name in ((1, "min"), (2, "max")))
    lowest, highest = (None if limit is None else float(limit.reshape(-1)[0]) for limit in (low, high))
    lowest = None if lowest is not None and lowest < -1e38 else lowest
    highest = None if highest is not None and highest > 1e38 else highest
    step = node.step()
    if lowest is None and highest is None:
        return step
    if lowest is None or highest is None:
        if lowest == 0:
            return steps.layer(node, nn.ReLU(), step)
        return replace(step, node=steps.graph.call(torch.clamp, step.node, lowest, highest))
    layer = nn.ReLU6() if (lowest, highest) == (0, 6) else nn.Hardtanh(lowest, highest)
    return steps.layer(node, layer, step)


def _p_relu(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    slope = node.weights(1)
    channels = steps.shape(step)[1]
    slope = slope.reshape((1,) * (steps.rank(step) - slope.ndim) + slope.shape)
    if slope.size not in (1, channels) or slope.size != slope.shape[1]:
        raise NotMapped(f"{node}: its slope is not one number for a channel")
    layer: Any = nn.PReLU(slope.size)
    layer.weight = nn.Parameter(as_tensor(slope.reshape(-1)))
    return steps.layer(node, layer, step)


def _softmax(kind: type[nn.Softmax] | type[nn.LogSoftmax]) -> Operator:
    def apply(steps: OnnxSteps, node: OnnxNode) -> Step:
        step = steps.as_plain(node.step())
        shape = steps.shape(step)
        axis = int(node.get("axis", 1 if node.opset < 13 else -1)) % len(shape)
        if node.opset < 13 and math.prod(shape[axis + 1 :]) > 1:  # over all axes from this one on
            if axis != 1:
                raise NotMapped(f"{node}: a softmax over several axes")
            flat = steps.graph.call(torch.flatten, step.node, 1)
            result = steps.graph.layer(node.layer_name, kind(dim=1), flat)
            return replace(step, node=steps.graph.method("reshape", result, -1, *shape[1:]))
        return steps.apply(node, kind(dim=axis), step)

    return apply


def _binary(function: Callable[..., Any], on_numbers: Callable[..., Any] | None = None) -> Operator:
    """An operator of two values, either of which may be constant."""

    def apply(steps: OnnxSteps, node: OnnxNode) -> Value:
        left, right = node.inputs
        if isinstance(left, Sizes) or isinstance(right, Sizes):
            return _on_sizes(steps, node, on_numbers)
        if isinstance(left, Step) and isinstance(right, Step):
            return _of_two(steps, node, function, left, right)
        if isinstance(left, Step):
            return _with_constant(steps, node, function, left, right)
        if function in (operator.add, operator.mul):  # either order
            return _with_constant(steps, node, function, right, left)
        return _constant_first(steps, node, function, left, right)

    return apply


def _of_two(steps: OnnxSteps, node: OnnxNode, function: Callable[..., Any], left: Step, right: Step) -> Step:
    gate = _gated(steps, left, right) or _gated(steps, right, left) if function is operator.mul else None
    if gate is not None:
        step, kind = gate
        return steps.layer(node, kind(), step)
    if left.perm != right.perm or left.flat != right.flat or steps.rank(left) != steps.rank(right):
        wider = left if steps.rank(left) >= steps.rank(right) else right
        left, right = steps.as_plain(left), steps.as_plain(right)
        return Step(steps.graph.call(function, left.node, right.node), batch=wider.batch)
    return replace(left, node=steps.graph.call(function, left.node, right.node))


def _gated(steps: OnnxSteps, step: Step, gate: Step) -> tuple[Step, type[nn.Module]] | None:
    """SiLU and hard swish, which exporters write as ``x * sigmoid(x)``."""
    layer = steps.can_fold_into(gate, (nn.Sigmoid, nn.Hardsigmoid))
    if layer is None or gate.node.args != (step.node,) or step.perm != gate.perm or step.flat != gate.flat:
        return None
    return step, nn.SiLU if isinstance(layer, nn.Sigmoid) else nn.Hardswish


def _with_constant(
    steps: OnnxSteps, node: OnnxNode, function: Callable[..., Any], step: Step, constant: np.ndarray[Any, Any]
) -> Step:
    if constant.ndim > steps.rank(step):
        step = steps.as_plain(step)
        if constant.ndim > steps.rank(step) and constant.size > 1:
            raise NotMapped(f"{node}: its constant has more axes than what it is combined with")
    value = steps.arranged(step, constant)
    if _folded(steps, function, step, value):
        return step
    if constant.size == 1:
        return replace(step, node=steps.graph.call(function, step.node, float(constant.reshape(-1)[0])))
    tensor = steps.graph.tensor(f"{node.layer_name}_constant", as_tensor(value))
    return replace(step, node=steps.graph.call(function, step.node, tensor))


def _folded(steps: OnnxSteps, function: Callable[..., Any], step: Step, value: np.ndarray[Any, Any]) -> bool:
    """Put a scale or shift of the channels into the layer before it, where nothing else reads that one."""
    layer: Any = steps.can_fold_into(step, (nn.Conv2d, nn.Linear))
    channel_axis = 1 if isinstance(layer, nn.Conv2d) else value.ndim - 1
    if layer is None or function not in AFFINE or value.size != value.shape[channel_axis]:
        return False
    channels = len(layer.weight)
    if value.size not in (1, channels):
        return False
    numbers = as_tensor(np.broadcast_to(value.reshape(-1), (channels,))).double()
    with torch.no_grad():
        if function in (operator.add, operator.sub):
            shift = numbers if function is operator.add else -numbers
            bias = shift if layer.bias is None else layer.bias.double() + shift
            layer.bias = nn.Parameter(bias.float())
            return True
        scale = numbers if function is operator.mul else 1 / numbers
        weight = layer.weight.double() * scale.reshape(-1, *([1] * (layer.weight.dim() - 1)))
        layer.weight = nn.Parameter(weight.float())
        if layer.bias is not None:
            layer.bias = nn.Parameter((layer.bias.double() * scale).float())
    return True


def _constant_first(
    steps: OnnxSteps, node: OnnxNode, function: Callable[..., Any], constant: np.ndarray[Any, Any], step: Step
) -> Step:
    """``c - x``, ``c / x``, ``c ** x``."""
    value = steps.arranged(step, constant)
    if constant.size == 1:
        return replace(step, node=steps.graph.call(function, float(constant.reshape(-1)[0]), step.node))
    tensor = steps.graph.tensor(f"{node.layer_name}_constant", as_tensor(value))
    return replace(step, node=steps.graph.call(function, tensor, step.node))


def _on_sizes(steps: OnnxSteps, node: OnnxNode, on_numbers: Callable[..., Any] | None) -> Value:
    """An operator on sizes of the images."""
    if on_numbers is None:
        raise NotMapped(f"{node}: computes with sizes of the image")
    lists: list[list[Any]] = []
    for value in node.inputs:
        if isinstance(value, np.ndarray) and value.dtype.kind in "iub":
            lists.append([int(item) for item in value.reshape(-1)])
        elif isinstance(value, Sizes):
            lists.append(list(value.entries))
        else:
            raise NotMapped(f"{node}: computes with sizes of the image")
    scalar = all(value.scalar if isinstance(value, Sizes) else value.ndim == 0 for value in node.inputs)
    length = max(map(len, lists))
    lists = [items * length if len(items) == 1 else items for items in lists]
    results = []
    for first, second in zip(*lists, strict=True):
        known = isinstance(first, int) and isinstance(second, int)
        results.append(on_numbers(first, second) if known else steps.graph.call(on_numbers, first, second))
    return Sizes(tuple(results), scalar)


def _several(binary: Operator, divide: bool = False) -> Operator:
    """An operator of any number of values."""

    def apply(steps: OnnxSteps, node: OnnxNode) -> Value:
        result = node.inputs[0]
        for index, value in enumerate(node.inputs[1:]):
            both = replace(node, inputs=[result, value], name=f"{node.name}_{index}")
            result = binary(steps, both)
        if divide and isinstance(result, Step):
            return replace(result, node=steps.graph.call(operator.truediv, result.node, len(node.inputs)))
        return result

    return apply


def _power(steps: OnnxSteps, node: OnnxNode) -> Value:
    exponent = node.constant(1)
    step = node.step()
    if exponent is None or exponent.size != 1:
        raise NotMapped(f"{node}: its exponent is not one number")
    number = float(exponent.reshape(-1)[0])
    if number == 2:
        return replace(step, node=steps.graph.call(operator.mul, step.node, step.node))
    return replace(step, node=steps.graph.call(operator.pow, step.node, number))


def _reciprocal(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = node.step()
    return replace(step, node=steps.graph.call(operator.truediv, 1.0, step.node))


def _softsign(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = node.step()
    below = steps.graph.call(operator.add, steps.graph.call(torch.abs, step.node), 1.0)
    return replace(step, node=steps.graph.call(operator.truediv, step.node, below))


def _swish(steps: OnnxSteps, node: OnnxNode) -> Step:
    if float(node.get("alpha", 1.0)) != 1:
        raise NotMapped(f"{node}: alpha is not 1")
    return steps.layer(node, nn.SiLU(), node.step())


def _as_given(steps: OnnxSteps, node: OnnxNode) -> Value:  # noqa: ARG001 - an operator
    """Identity, dropout, casts: in evaluation the value stays."""
    return node.value(0)


def _cast(steps: OnnxSteps, node: OnnxNode) -> Value:
    from onnx import TensorProto

    value = node.value(0)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    if isinstance(value, Step) and node.op == "Cast" and node.get("to") not in floats:
        raise NotMapped(f"{node}: makes other numbers than floats of the image")
    return _as_given(steps, node)


ELEMENTWISE: dict[str, Operator] = {
    "Relu": _plain(nn.ReLU),
    "LeakyRelu": _activation(lambda node: nn.LeakyReLU(float(node.get("alpha", 0.01)))),
    "Elu": _activation(lambda node: nn.ELU(float(node.get("alpha", 1.0)))),
    "Celu": _activation(lambda node: nn.CELU(float(node.get("alpha", 1.0)))),
    "Selu": _plain(nn.SELU),
    "Sigmoid": _plain(nn.Sigmoid),
    "Tanh": _plain(nn.Tanh),
    "Softplus": _plain(nn.Softplus),
    "Mish": _plain(nn.Mish),
    "Gelu": _activation(lambda node: nn.GELU(str(node.get("approximate", "none")))),
    "HardSwish": _plain(nn.Hardswish),
    "HardSigmoid": _hardsigmoid,
    "Swish": _swish,
    "Softsign": _softsign,
    "PRelu": _p_relu,
    "Clip": _clip,
    "Softmax": _softmax(nn.Softmax),
    "LogSoftmax": _softmax(nn.LogSoftmax),
    "Add": _binary(operator.add, operator.add),
    "Sub": _binary(operator.sub, operator.sub),
    "Mul": _binary(operator.mul, operator.mul),
    "Div": _binary(operator.truediv, operator.floordiv),
    "Mod": _binary(operator.mod, operator.mod),
    "Max": _several(_binary(torch.max)),
    "Min": _several(_binary(torch.min)),
    "Sum": _several(_binary(operator.add)),
    "Mean": _several(_binary(operator.add), divide=True),
    "Pow": _power,
    "Sqrt": _function(torch.sqrt),
    "Exp": _function(torch.exp),
    "Log": _function(torch.log),
    "Abs": _function(torch.abs),
    "Neg": _function(torch.neg),
    "Erf": _function(torch.erf),
    "Reciprocal": _reciprocal,
    "Identity": _as_given,
    "Dropout": _as_given,
    "Cast": _cast,
    "CastLike": _cast,
}
