"""Functions that were called on Keras's tensors: arithmetic such as ``x / 255``, of Keras 3 and of TensorFlow."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .activations import ACTIVATIONS, named
from .config import KerasLayer
from .layers import alike, joined, reshaped
from .steps import KerasSteps, keras_axis, tensor_of
from .values import Value

__all__ = ["OPERATIONS", "is_operation", "operation_name"]

_Arguments = Mapping[str, Any]
_LAMBDAS = ("TFOpLambda", "SlicingOpLambda")


def is_operation(layer: KerasLayer) -> bool:
    """Whether a layer is a function that was called on tensors."""
    return layer.kind in _LAMBDAS or layer.is_operation


def operation_name(layer: KerasLayer) -> str:
    """The name of its function as ``OPERATIONS`` has it: ``"math.reduce_mean"`` -> ``"reducemean"``."""
    name = str(layer.config.get("function")) if layer.kind in _LAMBDAS else layer.kind
    return name.rpartition(".")[2].replace("_", "").lower()


def _first(args: Sequence[Any], options: _Arguments) -> Value:
    for value in (*args, *(options.get(name) for name in ("x", "a", "input", "input_tensor", "features", "logits"))):
        if isinstance(value, Value):
            return value
    raise ValueError("is called on no tensor")


def _option(layer: KerasLayer, args: Sequence[Any], options: _Arguments, position: int, *names: str) -> Any:
    """What an operation was told, by position, by name or when it was made."""
    if len(args) > position:
        return args[position]
    sources = (options, layer.config)
    return next((source[name] for name in names for source in sources if source.get(name) is not None), None)


def _binary(function: Callable[..., Any]) -> Callable[..., Value]:
    def apply(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
        named_ = [options[key] for key in ("x", "x1", "value", "y", "x2", "bias") if options.get(key) is not None]
        first, second = [*args, *named_][:2]
        if isinstance(first, Value) and isinstance(second, Value):
            first, second = alike(steps, (first, second))
            return steps.call(function, first, second.node)
        value = first if isinstance(first, Value) else second
        name = f"{layer.title}_constant"
        constant = steps.constant(name, tensor_of(second if value is first else first), value)
        if function in (torch.max, torch.min):
            return _clamped(steps, function, value, constant)
        sides = (value.node, constant) if value is first else (constant, value.node)
        return value._replace(node=steps.graph.call(function, *sides))

    return apply


def _clamped(steps: KerasSteps, function: Callable[..., Any], value: Value, constant: Any) -> Value:
    if not isinstance(constant, float):
        return steps.call(function, value, constant)
    return steps.call(torch.clamp, value, **{"min" if function is torch.max else "max": constant})


def _unary(function: Callable[..., Any]) -> Callable[..., Value]:
    def apply(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:  # noqa: ARG001
        return steps.call(function, _first(args, options))

    return apply


def _activation(kind: str) -> Callable[..., Value]:
    def apply(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
        value = _first(args, options)
        axis = _option(layer, args, options, 1, "axis")
        if kind.endswith("softmax") and axis is not None and keras_axis(axis, len(value.axes)) != len(value.axes) - 1:
            raise ValueError(f"axis={axis}: over other axes than the last")
        if any(source.get(name) for source in (options, layer.config) for name in ("approximate", "negative_slope")):
            raise ValueError("has options that are not read")
        return named(steps, layer.title, kind, value)

    return apply


def _reduction(function: Callable[..., Any]) -> Callable[..., Value]:
    def apply(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
        value = _first(args, options)
        rank = len(value.axes)
        given = _option(layer, args, options, 1, "axis", "axes")
        axes = list(range(rank)) if given is None else given if isinstance(given, list) else [given]
        gone = [keras_axis(axis, rank) for axis in axes]
        if 0 in gone:
            raise ValueError("joins the images of a batch")
        dims = sorted(value.axes[axis] for axis in gone)
        keep = bool(_option(layer, args, options, 2, "keepdims", "keep_dims"))
        node = steps.graph.call(function, value.node, tuple(dims), keepdim=keep)
        if keep:
            return Value(node, value.axes)
        left = [place for axis, place in enumerate(value.axes) if axis not in gone]
        return Value(node, tuple(sorted(left).index(place) for place in left))

    return apply


def _square(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:  # noqa: ARG001
    value = _first(args, options)
    return steps.call(operator.mul, value, value.node)


def _power(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
    exponent = _option(layer, args, options, 1, "y", "x2")
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or abs(exponent) > 64:
        raise ValueError("an exponent that is no usual number")
    return steps.call(torch.pow, _first(args, options), exponent)


def _same(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:  # noqa: ARG001
    return _first(args, options)


def _concatenate(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
    values = args[0] if args else options.get("values", options.get("xs"))
    values = values if isinstance(values, list) else list(args)
    if not values or not all(isinstance(value, Value) for value in values):
        raise ValueError("joins what is no tensor of the network")
    axis = _option(layer, [], options, 0, "axis")
    return joined(steps, values, axis if axis is not None else args[1] if len(args) > 1 else -1)


def _reshape(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
    target = _option(layer, args, options, 1, "shape", "newshape")
    if not isinstance(target, list) or len(target) < 2:
        raise ValueError(f"shape={target!r}")
    return reshaped(steps, _first(args, options), target[1:])


def _expand_dims(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
    value = _first(args, options)
    shape = list(steps.shape(value))
    shape.insert(keras_axis(_option(layer, args, options, 1, "axis"), len(shape) + 1), 1)
    return reshaped(steps, value, shape[1:])


def _squeeze(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
    value = _first(args, options)
    shape, axes = steps.shape(value), _option(layer, args, options, 1, "axis")
    gone = [keras_axis(axis, len(shape)) for axis in (axes if isinstance(axes, list) else [axes])]
    if any(shape[axis] != 1 for axis in gone) or 0 in gone:
        raise ValueError(f"axis={axes!r} of {shape}")
    return reshaped(steps, value, [side for axis, side in enumerate(shape) if axis not in gone][1:])


def _get_item(steps: KerasSteps, layer: KerasLayer, args: Sequence[Any], options: _Arguments) -> Value:
    """Parts along axes, and the channels in reverse."""
    value = _first(args, options)
    key = _option(layer, args, options, 1, "slice_spec", "key")
    parts = [_slice(part) for part in (key if isinstance(key, list) else [key])]
    rank = len(value.axes)
    if Ellipsis in parts:
        index = parts.index(Ellipsis)
        parts[index : index + 1] = [slice(None)] * (rank - len(parts) + 1)
    if value.order or len(parts) > rank or parts[0] != slice(None):
        raise ValueError("takes parts of the batch or of flattened features, which is not read")
    turned = [axis for axis, part in enumerate(parts) if part == slice(None, None, -1)]
    if turned:
        value = steps.call(torch.flip, value, [value.axes[axis] for axis in turned])
    cut = {value.axes[axis]: part for axis, part in enumerate(parts) if part != slice(None) and axis not in turned}
    if not cut:
        return value
    return steps.call(operator.getitem, value, tuple(cut.get(place, slice(None)) for place in range(rank)))


def _slice(part: Any) -> Any:
    if isinstance(part, dict) and part.get("class_name") == "__ellipsis__":
        return Ellipsis
    fields = part.get("config", part) if isinstance(part, dict) else None
    if not isinstance(fields, dict) or not {"start", "stop", "step"} <= fields.keys():
        raise ValueError("takes single rows, columns or channels, which is not read")
    start, stop, step = (fields[name] for name in ("start", "stop", "step"))
    if not all(side is None or (isinstance(side, int) and abs(side) < 2**31) for side in (start, stop, step)):
        raise ValueError("takes parts that depend on other values, which is not read")
    if (start, stop, step) == (None, None, -1):
        return slice(None, None, -1)
    if step is not None and step < 1:
        raise ValueError("takes parts backwards, which is not read")
    return slice(None) if start in (None, 0) and stop is None and step in (None, 1) else slice(start, stop, step)


OPERATIONS: dict[str, Callable[[KerasSteps, KerasLayer, Sequence[Any], _Arguments], Value]] = {
    **dict.fromkeys(("add", "biasadd"), _binary(operator.add)),
    **dict.fromkeys(("subtract", "sub"), _binary(operator.sub)),
    **dict.fromkeys(("multiply", "mul"), _binary(operator.mul)),
    **dict.fromkeys(("truedivide", "truediv", "divide", "realdiv"), _binary(operator.truediv)),
    "maximum": _binary(torch.max),
    "minimum": _binary(torch.min),
    **dict.fromkeys(("negative", "neg"), _unary(torch.neg)),
    **dict.fromkeys(("absolute", "abs"), _unary(torch.abs)),
    "exp": _unary(torch.exp),
    "sqrt": _unary(torch.sqrt),
    "square": _square,
    **dict.fromkeys(("power", "pow"), _power),
    **{name.replace("_", ""): _activation(name) for name in ACTIVATIONS if name not in ("leaky_relu", "elu", "celu")},
    "softmax": _activation("softmax"),
    "logsoftmax": _activation("log_softmax"),
    **dict.fromkeys(("mean", "reducemean"), _reduction(torch.mean)),
    **dict.fromkeys(("sum", "reducesum"), _reduction(torch.sum)),
    **dict.fromkeys(("max", "reducemax"), _reduction(torch.amax)),
    **dict.fromkeys(("min", "reducemin"), _reduction(torch.amin)),
    **dict.fromkeys(("cast", "identity", "stopgradient", "converttotensor"), _same),
    **dict.fromkeys(("concatenate", "concat"), _concatenate),
    "reshape": _reshape,
    "expanddims": _expand_dims,
    "squeeze": _squeeze,
    "getitem": _get_item,
}
"""The functions, by name."""
