"""What ONNX's operators (onnx/docs/Operators.md, versions from 9) are in layers and functions that camify can store.

A function for each kind of operator takes the step of the file and gives its value. Operators on constants are run at
once by ONNX's own reference implementation.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .convolutions import CONVOLUTIONS
from .elementwise import ELEMENTWISE
from .joining import JOINING
from .linear_layers import LINEAR_LAYERS
from .reshaping import RESHAPING
from .steps import LARGEST_CONSTANT, NotMapped, OnnxNode, OnnxSteps, Operator, Sizes, Step, Value

__all__ = ["OPERATORS"]

_EXPANDING = ("ConstantOfShape", "Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot", "EyeLike")
_MOST_AXES = 16


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


_ON_CONSTANTS = """
Constant Not And Or Less Greater Range Floor Ceil Round Sign ReduceProd NonZero ScatterND GatherND OneHot
DequantizeLinear CumSum Trilu EyeLike
"""


def _only_constant(steps: OnnxSteps, node: OnnxNode) -> Value:  # noqa: ARG001 - an operator
    raise NotMapped(f"{node}: is known on constants alone")


def _fused_conv(steps: OnnxSteps, node: OnnxNode) -> Value:
    """Onnxruntime's own convolution with what it puts behind it: a sum, an activation."""
    result = CONVOLUTIONS["Conv"](steps, replace(node, op="Conv", inputs=node.inputs[:3]))
    if node.value(3) is not None:
        result = ELEMENTWISE["Add"](steps, replace(node, op="Add", inputs=[result, node.value(3)]))
    activation = str(node.get("activation", ""))
    numbers = [float(number) for number in node.get("activation_params", [])]
    options = dict(zip(_ACTIVATION_OPTIONS.get(activation, ()), numbers, strict=False))
    if not activation:
        return result
    if activation not in ELEMENTWISE or len(options) != len(numbers):
        raise NotMapped(f"{node}: its activation {activation[:40]} is not known")
    behind = replace(
        node, op=activation, inputs=[result], attributes=options, layer_name=f"{node.layer_name}_{activation.lower()}"
    )
    return ELEMENTWISE[activation](steps, behind)


_ACTIVATION_OPTIONS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}
_OF_ONNXRUNTIME: dict[str, Operator] = {
    "com.microsoft.FusedConv": _fused_conv,
    "com.microsoft.Gelu": ELEMENTWISE["Gelu"],
}
_APPLIED = CONVOLUTIONS | LINEAR_LAYERS | ELEMENTWISE | RESHAPING | JOINING | _OF_ONNXRUNTIME
OPERATORS: dict[str, Operator] = {
    name: _on_constants(_APPLIED.get(name, _only_constant)) for name in (*_APPLIED, *_ON_CONSTANTS.split())
}
"""Every operator that is known, by name."""
