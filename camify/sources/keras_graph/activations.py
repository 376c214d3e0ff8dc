"""Keras's activations, by name or as layers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .config import KerasLayer
from .steps import KerasSteps, keras_axis, number
from .values import Value, laid_out

__all__ = ["ACTIVATIONS", "LAYERS", "activate", "activation_kind", "is_known", "named"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": lambda: nn.LeakyReLU(0.2), "elu": nn.ELU, "selu": nn.SELU,
    "celu": nn.CELU, "gelu": nn.GELU, "silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh, "softplus": nn.Softplus, "softsign": nn.Softsign, "hard_tanh": nn.Hardtanh,
    "hard_silu": nn.Hardswish, "hard_swish": nn.Hardswish, "log_sigmoid": nn.LogSigmoid,
    "tanh_shrink": nn.Tanhshrink, "soft_shrink": nn.Softshrink, "hard_shrink": nn.Hardshrink,
}  # fmt: skip
_OTHERS = ("linear", "softmax", "log_softmax", "exponential", "hard_sigmoid")
_FUNCTIONS = ("function", "builtin_function")


def activation_kind(spec: Any) -> str:
    """The name of an activation as a file has it: of a function, or of a layer."""
    if isinstance(spec, dict):
        kind = str(spec.get("class_name")).rpartition(">")[2]
        return str(spec.get("config"))[:80] if kind in _FUNCTIONS else kind
    return "linear" if spec is None else str(spec).rpartition(">")[2]


def is_known(spec: Any) -> bool:
    """Whether an activation can be read."""
    kind = activation_kind(spec)
    return kind in LAYERS if isinstance(spec, dict) and kind in LAYERS else kind in ACTIVATIONS or kind in _OTHERS


def activate(steps: KerasSteps, layer: KerasLayer, value: Value, spec: Any) -> Value:
    """A value behind an activation that a layer has among its options."""
    kind = activation_kind(spec)
    if isinstance(spec, dict) and kind in LAYERS:
        inner = KerasLayer(kind, layer.name, spec.get("config") or {}, [], (), "", f"{layer.title}_{kind}")
        return LAYERS[kind](steps, inner, value)
    name = layer.title if layer.kind == "Activation" else f"{layer.title}_{kind}"
    return named(steps, name, kind, value)


def named(steps: KerasSteps, name: str, kind: str, value: Value) -> Value:
    """A value behind an activation by name."""
    if kind == "linear":
        return value
    if kind in ("softmax", "log_softmax"):
        return _softmax(steps, name, value, -1, nn.Softmax if kind == "softmax" else nn.LogSoftmax)
    if kind == "exponential":
        return steps.call(torch.exp, value)
    if kind == "hard_sigmoid":
        if not steps.hard_sigmoid_of_2:
            return steps.layer(name, nn.Hardsigmoid(), value)
        value = steps.call(operator.add, steps.call(operator.mul, value, 0.2), 0.5)
        return steps.call(torch.clamp, value, 0.0, 1.0)
    return steps.layer(name, ACTIVATIONS[kind](), value)


def _softmax(steps: KerasSteps, name: str, value: Value, axis: Any, kind: type[nn.Module]) -> Value:
    if keras_axis(axis, len(value.axes)) == 0:
        raise ValueError(f"axis={axis}: over the images of a batch")
    return steps.layer(name, kind(dim=steps.axis(value, axis)), value)


def _softmax_layer(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    return _softmax(steps, layer.title, value, layer.config.get("axis", -1), nn.Softmax)


def _activation_layer(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    return activate(steps, layer, value, layer.config.get("activation"))


def _relu_layer(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    slope = number(layer.config, "negative_slope", 0.0)
    if number(layer.config, "threshold", 0.0) != 0:
        raise ValueError("a threshold other than 0 is not read")
    largest = layer.config.get("max_value")
    largest = None if largest is None else number(layer.config, "max_value", 0.0)
    if slope:
        value = steps.layer(layer.title, nn.LeakyReLU(slope), value)
        return value if largest is None else steps.call(torch.clamp, value, max=largest)
    if largest is None:
        return steps.layer(layer.title, nn.ReLU(), value)
    return steps.layer(layer.title, nn.ReLU6() if largest == 6 else nn.Hardtanh(0.0, largest), value)


def _leaky_relu_layer(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    slope = number(layer.config, "negative_slope", number(layer.config, "alpha", 0.3))
    return steps.layer(layer.title, nn.LeakyReLU(slope), value)


def _elu_layer(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    return steps.layer(layer.title, nn.ELU(number(layer.config, "alpha", 1.0)), value)


def _prelu_layer(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    """A slope per channel is a layer of torch; one per cell is put together."""
    shape = steps.shape(value)
    shared = {keras_axis(axis, len(shape)) for axis in layer.config.get("shared_axes") or []}
    slopes = steps.weights(
        layer, alpha=tuple(1 if axis in shared else side for axis, side in enumerate(shape) if axis > 0)
    )["alpha"]
    channel_axis = next(axis for axis, place in enumerate(value.axes) if place == 1)
    if slopes.numel() in (1, slopes.shape[channel_axis - 1]) and not value.order:
        module = steps.once(layer, lambda: nn.PReLU(slopes.numel()))
        module.load_state_dict({"weight": slopes.flatten()})
        return steps.layer(layer.title, module, value)
    alpha = steps.graph.tensor(f"{layer.title}_alpha", laid_out(slopes.unsqueeze(0), value))
    negative = steps.call(torch.neg, steps.call(torch.relu, steps.call(torch.neg, value)))
    scaled = steps.call(operator.mul, negative, alpha)
    return steps.call(operator.add, steps.call(torch.relu, value), scaled.node)


LAYERS: dict[str, Callable[[KerasSteps, KerasLayer, Value], Value]] = {
    "Activation": _activation_layer,
    "ReLU": _relu_layer,
    "LeakyReLU": _leaky_relu_layer,
    "ELU": _elu_layer,
    "PReLU": _prelu_layer,
    "Softmax": _softmax_layer,
}
"""The layers that are activations."""
