"""What ONNX's operators are in layers and functions that camify can store (onnx/docs/Operators.md, all versions from 9).

A function for each kind of operator takes the step of the file and gives its value. Operators on constants are run at
once by ONNX's own reference implementation.
"""

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

from ..graphs.padded_layers import PaddedAvgPool2d, SamePad2d
from .onnx_reshaping import RESHAPING
from .onnx_steps import (
    LARGEST_CONSTANT,
    NotMapped,
    OnnxNode,
    OnnxSteps,
    Operator,
    Sizes,
    Step,
    Value,
    as_tensor,
)

__all__ = ["OPERATORS"]

_EXPANDING = ("ConstantOfShape", "Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot", "EyeLike")
_MOST_AXES = 16


# ---------------------------------------------------------------- constants


def _on_constants(apply: Operator) -> Operator:
    """An operator that is computed at once where all that it takes is known."""

    def either(steps: OnnxSteps, node: OnnxNode) -> Value:
        if any(isinstance(value, Step | Sizes | list) for value in node.inputs):
            return apply(steps, node)
        return _computed(node)

    return either


def _computed(node: OnnxNode) -> Value:
    """The value of a step on constants."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    if node.op == "Constant":
        return _constant(node)
    if _largest_result(node) > LARGEST_CONSTANT:
        raise NotMapped(f"{node}: gives more than {LARGEST_CONSTANT:,} constant numbers")
    given = {f"x{index}": value for index, value in enumerate(node.inputs) if value is not None}
    names = [f"x{index}" if value is not None else "" for index, value in enumerate(node.inputs)]
    attributes = {
        key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in node.attributes.items()
    }
    step = helper.make_node(node.op, names, [f"y{index}" for index in range(len(node.outputs))], **attributes)
    inputs = [helper.make_tensor_value_info(name, 0, None) for name in given]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in step.output]
    graph = helper.make_graph([step], "constants", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, given)]


def _largest_result(node: OnnxNode) -> float:
    """At least as many numbers as a step on constants can give."""
    inputs = [np.asarray(value) for value in node.inputs if value is not None]
    held = float(sum(value.size for value in inputs))
    if node.op == "Range":
        start, limit, delta = (float(value.reshape(-1)[0]) for value in inputs)
        return math.inf if delta == 0 else abs((limit - start) / delta)
    if node.op in ("MatMul", "Gemm", "Einsum", "Gather", "GatherND"):
        return math.prod(max(1.0, float(value.size)) for value in inputs[:2])
    if node.op not in _EXPANDING:
        try:
            return max(held, float(math.prod(np.broadcast_shapes(*(value.shape for value in inputs)))))
        except ValueError:
            return held
    options = inputs if node.op == "ConstantOfShape" else inputs[1:]
    if any(value.size > _MOST_AXES for value in options):
        return math.inf
    numbers = [abs(float(number)) for value in options for number in value.reshape(-1).tolist()]
    return max(held, 1.0) * math.prod(max(number, 1.0) for number in numbers)


def _constant(node: OnnxNode) -> Value:
    for key, value in node.attributes.items():
        if key == "value":
            return value
        if key.startswith("value_"):
            kind = {"f": np.float32, "i": np.int64}.get(key[6:7])
            if kind is not None:
                return np.asarray(value, dtype=kind)
    raise NotMapped(f"{node}: a constant of a kind that is not read")


# ---------------------------------------------------------------- convolutions and pools


def _pads(node: OnnxNode, kernel: Sequence[int]) -> tuple[int, ...] | str:
    """Left, right, top and bottom as ``F.pad`` takes them, or ``SAME_UPPER`` or ``SAME_LOWER``."""
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return str(auto)
    if auto == "VALID":
        return (0, 0, 0, 0)
    pads = list(node.get("pads", [0] * (2 * len(kernel))))
    if len(kernel) != 2 or len(pads) != 4:
        raise NotMapped(f"{node}: works on {len(kernel)} axes; images have 2")
    top, left, bottom, right = (int(side) for side in pads)
    return left, right, top, bottom


def _pair(node: OnnxNode, attribute: str) -> tuple[int, int]:
    values = node.get(attribute, [1, 1])
    return int(values[0]), int(values[-1])


def _is_symmetric(pads: tuple[int, ...]) -> bool:
    return pads[0] == pads[1] and pads[2] == pads[3]


def _conv(steps: OnnxSteps, node: OnnxNode) -> Step:
    weight, bias = node.weights(1), node.constant(2)
    if weight.ndim != 4:
        raise NotMapped(f"{node}: works on {weight.ndim - 2} axes; images have 2")
    step = steps.as_plain(node.step())
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    groups = int(node.get("group", 1))
    pads = _pads(node, kernel)
    padding = (0, 0)
    if isinstance(pads, str):
        pad = SamePad2d(kernel, stride, dilation, lower=pads == "SAME_LOWER")
        if stride == (1, 1):  # the same on images of every size
            pads = tuple(pad.pads(torch.empty(1, 1, 16, 16)))
        else:
            step = replace(step, node=steps.graph.layer(f"{node.layer_name}_pad", pad, step.node))
            pads = (0, 0, 0, 0)
    if _is_symmetric(pads):  # type: ignore[arg-type]
        padding = (int(pads[2]), int(pads[0]))
    else:
        layer = nn.ZeroPad2d(tuple(int(side) for side in pads))  # type: ignore[arg-type]
        step = replace(step, node=steps.graph.layer(f"{node.layer_name}_pad", layer, step.node))
    channels = int(weight.shape[1]) * groups
    if groups < 1 or channels != steps.shape(step)[1] or weight.shape[0] % groups:
        raise NotMapped(f"{node}: its weights are for {channels} channels, and it gets {steps.shape(step)[1]}")
    conv = nn.utils.skip_init(
        nn.Conv2d, channels, int(weight.shape[0]), kernel, stride, padding, dilation, groups, bias is not None
    )
    return steps.apply(node, _with_weights(conv, weight, bias), step)


def _conv_transpose(steps: OnnxSteps, node: OnnxNode) -> Step:
    weight, bias = node.weights(1), node.constant(2)
    groups, kernel = int(node.get("group", 1)), (int(weight.shape[2]), int(weight.shape[3]))
    pads = _pads(node, kernel)
    if isinstance(pads, str) or not _is_symmetric(pads) or "output_shape" in node.attributes:
        raise NotMapped(f"{node}: its padding is not the same on both sides")
    extra = node.get("output_padding", [0, 0])
    layer = nn.ConvTranspose2d(
        int(weight.shape[0]), int(weight.shape[1]) * groups, kernel, _pair(node, "strides"), (pads[2], pads[0]),
        (int(extra[0]), int(extra[1])), groups, bias is not None, _pair(node, "dilations"),
    )  # fmt: skip
    return steps.apply(node, _with_weights(layer, weight, bias), node.step())


def _with_weights(layer: Any, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None) -> nn.Module:
    layer.weight = nn.Parameter(as_tensor(weight))
    if bias is not None:
        layer.bias = nn.Parameter(as_tensor(bias).reshape(-1))
    return layer


def _covers(steps: OnnxSteps, step: Step, kernel: tuple[int, int], pads: tuple[int, ...] | str) -> bool:
    """Whether a window is the whole map: the file's way to write global pooling."""
    return not steps.open_sides and pads == (0, 0, 0, 0) and steps.shape(step)[2:] == kernel


def _max_pool(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    kernel, stride, dilation = _pair(node, "kernel_shape"), _pair(node, "strides"), _pair(node, "dilations")
    pads = _pads(node, node.get("kernel_shape"))
    if dilation == (1, 1) and _covers(steps, step, kernel, pads):
        return steps.apply(node, nn.AdaptiveMaxPool2d(1), step)
    padding, ceil = (0, 0), bool(node.get("ceil_mode", 0))
    if isinstance(pads, str):
        pad = SamePad2d(kernel, stride, dilation, -math.inf, pads == "SAME_LOWER")
        step = replace(step, node=steps.graph.layer(f"{node.layer_name}_pad", pad, step.node))
    elif _is_symmetric(pads) and pads[2] * 2 <= kernel[0] and pads[0] * 2 <= kernel[1]:
        padding = (pads[2], pads[0])
    else:
        layer = nn.ConstantPad2d(pads, -math.inf)  # type: ignore[arg-type]
        step = replace(step, node=steps.graph.layer(f"{node.layer_name}_pad", layer, step.node))
    return steps.apply(node, nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), step)


def _average_pool(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    kernel, stride = _pair(node, "kernel_shape"), _pair(node, "strides")
    pads, ceil = _pads(node, node.get("kernel_shape")), bool(node.get("ceil_mode", 0))
    counts = bool(node.get("count_include_pad", 0))
    if _pair(node, "dilations") != (1, 1):
        raise NotMapped(f"{node}: its window has holes")
    if _covers(steps, step, kernel, pads):
        return steps.apply(node, nn.AdaptiveAvgPool2d(1), step)
    symmetric = not isinstance(pads, str) and _is_symmetric(pads)
    if symmetric and pads[2] * 2 <= kernel[0] and pads[0] * 2 <= kernel[1]:  # type: ignore[operator]
        padding = (int(pads[2]), int(pads[0]))
        layer: nn.Module = nn.AvgPool2d(kernel, stride, padding, ceil, counts or padding == (0, 0))
        return steps.apply(node, layer, step)
    if ceil:
        raise NotMapped(f"{node}: padding that is not the same on both sides, together with ceil_mode")
    if not counts:
        if isinstance(pads, str):
            layer = PaddedAvgPool2d(kernel, stride, lower=pads == "SAME_LOWER")
        else:
            layer = PaddedAvgPool2d(kernel, stride, tuple(pads))  # type: ignore[arg-type]
        return steps.apply(node, layer, step)
    if isinstance(pads, str):
        pad: nn.Module = SamePad2d(kernel, stride, lower=pads == "SAME_LOWER")
    else:
        pad = nn.ZeroPad2d(tuple(pads))  # type: ignore[arg-type]
    step = replace(step, node=steps.graph.layer(f"{node.layer_name}_pad", pad, step.node))
    return steps.apply(node, nn.AvgPool2d(kernel, stride), step)


def _global_pool(kind: type[nn.Module]) -> Operator:
    def pool(steps: OnnxSteps, node: OnnxNode) -> Step:
        step = node.step()
        if steps.rank(step) != 4:
            raise NotMapped(f"{node}: works on {steps.rank(step) - 2} axes; images have 2")
        return steps.apply(node, kind(1), step)

    return pool


# ---------------------------------------------------------------- linear layers and norms


def _gemm(steps: OnnxSteps, node: OnnxNode) -> Step:
    if node.get("transA", 0):
        raise NotMapped(f"{node}: its first input is transposed")
    weight = node.weights(1)
    weight = weight if node.get("transB", 0) else weight.T
    bias = node.constant(2)
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1) * node.get("beta", 1.0), (weight.shape[0],))
    return _linear(steps, node, node.step(), weight * np.float32(node.get("alpha", 1.0)), bias)


def _mat_mul(steps: OnnxSteps, node: OnnxNode) -> Step:
    left, right = node.value(0), node.value(1)
    if isinstance(left, Step) and isinstance(right, np.ndarray) and right.ndim == 2:
        return _linear(steps, node, left, right.T, None)
    batch = left.batch if isinstance(left, Step) else right.batch
    return Step(steps.graph.call(torch.matmul, steps.plain(left), steps.plain(right)), batch=batch)


def _linear(
    steps: OnnxSteps,
    node: OnnxNode,
    step: Step,
    weight: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None,
) -> Step:
    """A linear layer; the order of a flattened map and the scales before it go into its weights."""
    if weight.shape[1] != steps.shape(step)[-1]:
        raise NotMapped(f"{node}: its weights are for {weight.shape[1]} features, and it gets {steps.shape(step)[-1]}")
    if step.flat is not None:
        ordered = np.empty_like(weight)
        ordered[:, step.flat.order] = weight
        weight, step = ordered, replace(step, flat=None)
    step = steps.as_plain(step)
    has_bias = bias is not None or _scale_and_shift(steps, step.node) is not None
    layer: Any = nn.utils.skip_init(nn.Linear, int(weight.shape[1]), int(weight.shape[0]), has_bias)
    matrix = as_tensor(weight)
    offset = torch.zeros(len(matrix)) if bias is None else as_tensor(bias)
    source = step.node
    while (affine := _scale_and_shift(steps, source)) is not None:
        source, scale, shift = affine
        offset = (offset.double() + (matrix.double() * shift).sum(1)).float()
        matrix = (matrix.double() * scale).float()
    layer.weight = nn.Parameter(matrix)
    if has_bias:
        layer.bias = nn.Parameter(offset)
    return steps.apply(node, layer, replace(step, node=source))


def _scale_and_shift(steps: OnnxSteps, node: fx.Node) -> tuple[fx.Node, Any, Any] | None:
    """The input, scale and shift of a step that scales or shifts each feature, and that nothing else reads."""
    if node.op != "call_function" or node.target not in _SIGNS or node in steps.shared or len(node.args) != 2:
        return None
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(steps.graph.values[first], torch.Tensor):
        return None
    value: Any = second
    if isinstance(second, fx.Node):
        value = getattr(steps.graph.root, str(second.target), None) if second.op == "get_attr" else None
        features = steps.graph.shape(first)[-1]
        if not isinstance(value, torch.Tensor) or value.numel() not in (1, features) or value.shape[-1:].numel() == 1:
            return None
        value = value.detach().double().reshape(-1)
    elif not isinstance(second, int | float):
        return None
    if steps.graph.values[first].dim() != 2:
        return None
    if node.target in (operator.mul, operator.truediv):
        return first, (value if node.target is operator.mul else 1 / value), 0.0
    return first, 1.0, (value if node.target is operator.add else -value)


_SIGNS = (operator.add, operator.sub, operator.mul, operator.truediv)


def _batch_norm(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = node.step()
    if steps.rank(step) == 4:
        step = steps.as_plain(step)
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: node.weights(index + 1).reshape(-1) for index, name in enumerate(names)}
    if step.flat is not None:
        order = step.flat.order
        for name, value in tensors.items():
            tensors[name] = np.empty_like(value)
            tensors[name][order] = value
    else:
        step = steps.as_plain(step)
    kind = nn.BatchNorm2d if steps.rank(step) == 4 else nn.BatchNorm1d
    momentum = 1 - float(node.get("momentum", 0.9))
    layer = kind(len(tensors["weight"]), float(node.get("epsilon", 1e-5)), momentum)
    layer.load_state_dict({name: as_tensor(value) for name, value in tensors.items()}, strict=False)
    return steps.layer(node, layer, step)


def _layer_norm(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    weight, bias = node.weights(1), node.constant(2)
    axis = int(node.get("axis", -1)) % steps.rank(step)
    shape = steps.shape(step)[axis:]
    layer: Any = nn.LayerNorm(shape, float(node.get("epsilon", 1e-5)))
    layer.weight = nn.Parameter(as_tensor(np.broadcast_to(weight, shape)))
    layer.bias = nn.Parameter(torch.zeros(shape) if bias is None else as_tensor(np.broadcast_to(bias, shape)))
    return steps.apply(node, layer, step)


def _instance_norm(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    weight, bias, eps = node.weights(1), node.weights(2), float(node.get("epsilon", 1e-5))
    if steps.rank(step) == 4:
        layer = nn.InstanceNorm2d(len(weight), eps, affine=True)
        return steps.apply(node, _with_weights(layer, weight, bias), step)
    scale, shift = (steps.graph.tensor(node.layer_name, as_tensor(value)) for value in (weight, bias))
    result = steps.graph.call(F.instance_norm, step.node, weight=scale, bias=shift, eps=eps)
    return replace(step, node=result)


def _group_norm(steps: OnnxSteps, node: OnnxNode) -> Step:
    step = steps.as_plain(node.step())
    weight, bias, groups = node.weights(1), node.weights(2), int(node.get("num_groups", 1))
    channels = steps.shape(step)[1]
    if len(weight) == groups != channels:  # before version 21
        weight, bias = (np.repeat(value, channels // groups) for value in (weight, bias))
    layer = nn.GroupNorm(groups, channels, float(node.get("epsilon", 1e-5)))
    return steps.apply(node, _with_weights(layer, weight, bias), step)


def _local_response_norm(steps: OnnxSteps, node: OnnxNode) -> Step:
    alpha, beta, bias = (float(node.get(*option)) for option in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return steps.apply(node, nn.LocalResponseNorm(int(node.get("size")), alpha, beta, bias), node.step())


# ---------------------------------------------------------------- number by number


def _activation(make: Callable[[OnnxNode], nn.Module]) -> Operator:
    def apply(steps: OnnxSteps, node: OnnxNode) -> Step:
        return steps.layer(node, make(node), node.step())

    return apply


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
    if layer is None or function not in _SIGNS or value.size != value.shape[channel_axis]:
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
    lists = []
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


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(nn.AdaptiveAvgPool2d),
    "GlobalMaxPool": _global_pool(nn.AdaptiveMaxPool2d),
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _local_response_norm,
    "Relu": _activation(lambda node: nn.ReLU()),
    "LeakyRelu": _activation(lambda node: nn.LeakyReLU(float(node.get("alpha", 0.01)))),
    "Elu": _activation(lambda node: nn.ELU(float(node.get("alpha", 1.0)))),
    "Celu": _activation(lambda node: nn.CELU(float(node.get("alpha", 1.0)))),
    "Selu": _activation(lambda node: nn.SELU()),
    "Sigmoid": _activation(lambda node: nn.Sigmoid()),
    "Tanh": _activation(lambda node: nn.Tanh()),
    "Softplus": _activation(lambda node: nn.Softplus()),
    "Mish": _activation(lambda node: nn.Mish()),
    "Gelu": _activation(lambda node: nn.GELU(str(node.get("approximate", "none")))),
    "HardSwish": _activation(lambda node: nn.Hardswish()),
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
    **RESHAPING,
}
OPERATORS = {name: _on_constants(apply) for name, apply in OPERATORS.items()}
for _name in (
    "Constant", "Equal", "Not", "Where", "And", "Or", "Less", "Greater", "Range", "Floor", "Ceil", "Round", "Sign",
    "ReduceProd", "NonZero", "ScatterND", "GatherND", "OneHot", "DequantizeLinear", "CumSum", "Trilu", "EyeLike",
):  # fmt: skip
    OPERATORS.setdefault(_name, _on_constants(lambda steps, node: _only_constant(node)))


def _only_constant(node: OnnxNode) -> Value:
    raise NotMapped(f"{node}: is known on constants alone")
