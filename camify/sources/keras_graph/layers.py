"""Keras's other layers: dense ones, normalizations, what joins and rearranges, and what rests after training."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torchvision
from torch import nn

from . import activations, convolutions
from .activations import activate
from .config import KerasLayer
from .steps import KerasSteps, keras_axis, number, placed, tensor_of, whole
from .values import Run, Value, arranged, feature_order, flattened, images, laid_out, plain, value_of

__all__ = ["IDLE", "LAYERS", "MERGES", "SIZES", "alike", "joined", "reshaped"]

SIZES = ("Resizing", "CenterCrop")
"""Layers that at the beginning of a network say which images it takes."""
_EPSILON = 1e-3  # of all of Keras's normalizations
_SMALLEST_DEVIATION = 1e-7


# ------------------------------------------------------------ layers with weights


def _dense(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    """Of images a convolution with one cell, of anything else a linear layer; rows in the order of the features."""
    config, units = layer.config, whole(layer.config, "units")
    features = steps.shape(value)[-1]
    shapes: dict[str, tuple[int, ...] | None] = {"kernel": (features, units)}
    if config.get("use_bias", True):
        shapes["bias"] = (units,)
    last = value.axes[-1]
    order = feature_order(value)

    def make() -> nn.Module:
        tensors = steps.weights(layer, **shapes)
        kernel, bias = tensors["kernel"], tensors.get("bias")
        weight = (kernel if order is None else kernel[order]).T
        if len(value.axes) == 4 and last == 1:
            conv = nn.Conv2d(features, units, 1, bias=bias is not None, device="meta")
            return placed(conv, weight=weight[:, :, None, None], bias=bias)
        return placed(nn.Linear(features, units, bias is not None, device="meta"), weight=weight, bias=bias)

    if not (len(value.axes) == 4 and last == 1):
        value = value if value.order else arranged(steps.graph, value, range(len(value.axes)))
    module = steps.once((layer, value.order, value.axes), make)
    dense = steps.layer(layer.title, module, value)._replace(order=())
    return activate(steps, layer, dense, config.get("activation"))


def _batch_norm(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config, rank = layer.config, len(value.axes)
    channel = keras_axis(config.get("axis", -1), rank)
    count = steps.shape(value)[channel]
    before = value
    if value.axes[channel] != 1:
        axes = [0] + [2 + index for index in range(rank - 1)]
        others = [axis for axis in range(1, rank) if axis != channel]
        for place, axis in enumerate(others):
            axes[axis] = 2 + place
        axes[channel] = 1
        value = arranged(steps.graph, value, axes)
    if rank not in (2, 3, 4):
        raise ValueError(f"of a tensor of {rank} axes")
    kind: type[nn.Module] = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d

    def make() -> nn.Module:
        names = ["gamma"] * bool(config.get("scale", True)) + ["beta"] * bool(config.get("center", True))
        tensors = steps.weights(layer, **dict.fromkeys([*names, "moving_mean", "moving_variance"], (count,)))
        order = feature_order(before)
        if order is not None:
            tensors = {name: tensor[order] for name, tensor in tensors.items()}
        momentum = 1 - number(config, "momentum", 0.99)
        norm = kind(count, number(config, "epsilon", _EPSILON), momentum, affine=bool(names), device="meta")
        return placed(
            norm,
            weight=tensors.get("gamma", torch.ones(count)) if names else None,
            bias=tensors.get("beta", torch.zeros(count)) if names else None,
            running_mean=tensors["moving_mean"],
            running_var=tensors["moving_variance"],
        )

    return steps.layer(layer.title, steps.once((layer, value.order), make), value)


def _layer_norm(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config = layer.config
    if keras_axis(config.get("axis", -1), len(value.axes)) != len(value.axes) - 1 or config.get("rms_scaling"):
        raise ValueError("a layer norm over other axes than the last is not read")
    count, order = steps.shape(value)[-1], feature_order(value)
    value = value if value.order else arranged(steps.graph, value, range(len(value.axes)))

    def make() -> nn.Module:
        names = ["gamma"] * bool(config.get("scale", True)) + ["beta"] * bool(config.get("center", True))
        tensors = steps.weights(layer, **dict.fromkeys(names, (count,))) if names else {}
        if order is not None:
            tensors = {name: tensor[order] for name, tensor in tensors.items()}
        norm = nn.LayerNorm(count, number(config, "epsilon", _EPSILON), bool(names), device="meta")
        weight, bias = (
            tensors.get(name, fill(count)) if names else None
            for name, fill in (("gamma", torch.ones), ("beta", torch.zeros))
        )
        return placed(norm, weight=weight, bias=bias)

    return steps.layer(layer.title, steps.once((layer, value.order), make), value)


def _group_norm(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config = layer.config
    if len(value.axes) != 4 or keras_axis(config.get("axis", -1), 4) not in (1, 3):
        raise ValueError("a group norm of other tensors than images is not read")
    first = keras_axis(config.get("axis", -1), 4) == 1
    value = images(steps.graph, value, "channels_first" if first else "channels_last")
    count = steps.graph.shape(value.node)[1]
    groups = count if config.get("groups", 32) == -1 else whole(config, "groups", 32)

    def make() -> nn.Module:
        names = ["gamma"] * bool(config.get("scale", True)) + ["beta"] * bool(config.get("center", True))
        tensors = steps.weights(layer, **dict.fromkeys(names, (count,))) if names else {}
        norm = nn.GroupNorm(groups, count, number(config, "epsilon", _EPSILON), device="meta")
        weight, bias = tensors.get("gamma", torch.ones(count)), tensors.get("beta", torch.zeros(count))
        return placed(norm, weight=weight, bias=bias)

    return steps.layer(layer.title, steps.once(layer, make), value)


def _layer_scale(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    gamma = steps.weights(layer, gamma=(steps.shape(value)[-1],))["gamma"]
    factor = steps.graph.tensor(f"{layer.title}_gamma", laid_out(gamma, value))
    return steps.call(operator.mul, value, factor)


# ------------------------------------------------------------ normalized inputs


def _rescaling(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    scale, offset = tensor_of(layer.config["scale"]), tensor_of(layer.config.get("offset", 0.0))
    if not bool((scale == 1).all()):
        value = steps.call(operator.mul, value, steps.constant(f"{layer.title}_scale", scale, value))
    if bool((offset != 0).any()):
        value = steps.call(operator.add, value, steps.constant(f"{layer.title}_offset", offset, value))
    return value


def _normalization(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config, shape = layer.config, steps.shape(value)
    axes = config.get("axis", -1)
    axes = [] if axes is None else axes if isinstance(axes, list | tuple) else [axes]
    kept = sorted(keras_axis(axis, len(shape)) for axis in axes)
    if config.get("mean") is not None and config.get("variance") is not None:
        mean, variance = tensor_of(config["mean"]), tensor_of(config["variance"])
    else:
        sides = tuple(shape[axis] for axis in kept)
        tensors = steps.weights(layer, mean=sides, variance=sides, count=None)
        mean, variance = tensors["mean"], tensors["variance"]
    sides = tuple(shape[axis] if axis in kept else 1 for axis in range(len(shape)))
    mean, variance = (
        tensor if tensor.numel() == 1 else tensor.reshape(sides) for tensor in (mean.double(), variance.double())
    )
    deviation = variance.sqrt().clamp_min(_SMALLEST_DEVIATION)
    centers, scales = (
        steps.constant(f"{layer.title}_{name}", tensor if tensor.numel() == 1 else tensor.float(), value)
        for name, tensor in (("mean", mean), ("deviation", deviation))
    )
    if config.get("invert"):
        return steps.call(operator.add, steps.call(operator.mul, value, scales), centers)
    return steps.call(operator.truediv, steps.call(operator.sub, value, centers), scales)


# ------------------------------------------------------------ other axes


def _flatten(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    rank = len(value.axes)
    if rank == 2:
        return value
    axes = list(range(1, rank))
    if layer.config.get("data_format") == "channels_first":
        axes = [*axes[1:], axes[0]]
    node = steps.graph.layer(layer.title, nn.Flatten(), value.node)
    return flattened(node, value, steps.shape(value), axes)


def _reshape(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    return reshaped(steps, value, layer.config["target_shape"])


def reshaped(steps: KerasSteps, value: Value, target: Sequence[int]) -> Value:
    """A value in another shape (without N); between (C) and (1, 1, C) no numbers move, and no size is kept."""
    if not all(isinstance(side, int) and -1 <= side < 2**31 for side in target) or len(target) > 6:
        raise ValueError(f"target_shape={target!r}")
    shape = steps.shape(value)
    count = math.prod(shape[1:])
    known = math.prod(side for side in target if side != -1)
    sides = tuple(count // max(known, 1) if side == -1 else side for side in target)
    graph = steps.graph
    if math.prod(sides) != count:
        raise ValueError(f"target_shape={list(target)} of {count} numbers")
    if shape[1:] == sides:
        return value
    if max(shape[1:]) == count and max(sides) == count:  # the numbers stand along one axis, before and after
        flat = value.node if len(shape) == 2 else graph.call(torch.flatten, value.node, 1)
        if len(sides) == 1:
            return value_of(flat, 2) if not value.order else Value(flat, (0, 1), value.order)
        if not value.order:
            if len(sides) == 3 and sides[2] == count:
                return Value(graph.method("unflatten", flat, 1, (count, 1, 1)), (0, 2, 3, 1))
            return value_of(graph.method("unflatten", flat, 1, sides), 1 + len(sides))
    if len(sides) == 2 and len(shape) == 4 and sides == (shape[1] * shape[2], shape[3]) and value.axes == (0, 2, 3, 1):
        return Value(graph.call(torch.flatten, value.node, 2), (0, 2, 1))
    node = plain(graph, value).node
    return value_of(graph.call(torch.reshape, node, (-1, *sides)), 1 + len(sides))


def _permute(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:  # noqa: ARG001
    dims = layer.config["dims"]
    if sorted(dims) != list(range(1, len(value.axes))):
        raise ValueError(f"dims={dims!r}")
    return value if value.order else value._replace(axes=(0, *(value.axes[axis] for axis in dims)))


# ------------------------------------------------------------ several inputs


def alike(steps: KerasSteps, values: Sequence[Value]) -> list[Value]:
    """Values whose axes and features stand in one order: that of the first, where all have it."""
    first = values[0]
    if all(value.axes == first.axes and value.order == first.order for value in values):
        return list(values)
    if len({len(value.axes) for value in values}) > 1:
        raise ValueError("joins tensors of different numbers of axes, which is not read")
    if len(first.axes) == 4:
        axes = next((value.axes for value in values if value.axes in ((0, 2, 3, 1), (0, 1, 2, 3))), first.axes)
        return [arranged(steps.graph, value, axes) for value in values]
    return [plain(steps.graph, value) for value in values]


def _merge(function: Callable[..., Any]) -> Callable[[KerasSteps, KerasLayer, list[Value]], Value]:
    def merge(steps: KerasSteps, layer: KerasLayer, values: list[Value]) -> Value:  # noqa: ARG001
        first, *others = alike(steps, values)
        return reduce(lambda sum_, value: steps.call(function, sum_, value.node), others, first)

    return merge


def _average(steps: KerasSteps, layer: KerasLayer, values: list[Value]) -> Value:
    total = _merge(operator.add)(steps, layer, values)
    return steps.call(operator.truediv, total, float(len(values)))


def _concatenate(steps: KerasSteps, layer: KerasLayer, values: list[Value]) -> Value:
    return joined(steps, values, layer.config.get("axis", -1))


def joined(steps: KerasSteps, values: Sequence[Value], axis: Any) -> Value:
    """Values one behind the other; flattened ones keep their orders."""
    if len(values) == 1:
        return values[0]
    if all(len(value.axes) == 2 for value in values) and any(value.order for value in values):
        runs: list[Run] = []
        for value in values:
            count = steps.shape(value)[1]
            runs += value.order or (Run((count,), (0,)),)
        node = steps.graph.call(torch.cat, [value.node for value in values], 1)
        return Value(node, (0, 1), tuple(runs))
    same = alike(steps, values)
    if keras_axis(axis, len(same[0].axes)) == 0:
        raise ValueError(f"axis={axis}: joins the images of a batch")
    return same[0]._replace(node=steps.graph.call(torch.cat, [value.node for value in same], steps.axis(same[0], axis)))


def _scaled_sum(steps: KerasSteps, layer: KerasLayer, values: list[Value]) -> Value:
    """The ``CustomScaleLayer`` of Keras's InceptionResNetV2."""
    first, second = alike(steps, values)
    scaled = steps.call(operator.mul, second, number(layer.config, "scale", 1.0))
    return steps.call(operator.add, first, scaled.node)


# ------------------------------------------------------------ what rests after training


def _rate(layer: KerasLayer, name: str = "rate") -> float:
    rate = number(layer.config, name, 0.0)
    if not 0 <= rate < 1:
        raise ValueError(f"{name}={rate}")
    return rate


def _dropout(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    noise, rank = layer.config.get("noise_shape"), len(value.axes)
    if noise and all(side == 1 for side in list(noise)[1:]):  # whole images: stochastic depth
        return _stochastic_depth(steps, layer, value)
    channels = list(noise or [])[1:]
    if rank == 4 and len(channels) == 3 and channels[:2] == [1, 1] and value.axes == (0, 2, 3, 1):
        return steps.layer(layer.title, nn.Dropout2d(_rate(layer)), value)
    return steps.layer(layer.title, nn.Dropout(_rate(layer)), value)


def _spatial_dropout(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    value = images(steps.graph, value, layer.config.get("data_format") or "channels_last")
    return steps.layer(layer.title, nn.Dropout2d(_rate(layer)), value)


def _stochastic_depth(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    rate = _rate(layer, "drop_path_rate" if "drop_path_rate" in layer.config else "rate")
    return steps.layer(layer.title, torchvision.ops.StochasticDepth(rate, "row"), value)


def _idle(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    steps.leave_out(layer, IDLE[layer.kind])
    return value


def _same(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:  # noqa: ARG001
    return value


_AUGMENTS, _NOISE = "augments images in training", "adds noise in training"
IDLE = {
    **dict.fromkeys(
        (
            "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness",
            "RandomHeight", "RandomWidth", "RandomShear", "RandomColorJitter", "RandomSaturation", "RandomHue",
            "RandomColorDegeneration", "RandomPosterization", "RandomSharpness", "RandomGrayscale", "RandomInvert",
            "RandomGaussianBlur", "RandomErasing", "RandomPerspective", "RandomElasticTransform", "RandAugment",
            "AugMix", "CutMix", "MixUp",
        ),
        _AUGMENTS,
    ),
    "GaussianNoise": _NOISE,
    "GaussianDropout": _NOISE,
}  # fmt: skip
"""Layers that only training has, and what they do there."""

LAYERS: dict[str, Callable[[KerasSteps, KerasLayer, Value], Value]] = {
    **convolutions.LAYERS,
    **activations.LAYERS,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "BatchNormalizationV1": _batch_norm,
    "BatchNormalizationV2": _batch_norm,
    "SyncBatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "LayerScale": _layer_scale,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Dropout": _dropout,
    "SpatialDropout2D": _spatial_dropout,
    "AlphaDropout": lambda steps, layer, value: steps.layer(layer.title, nn.AlphaDropout(_rate(layer)), value),
    "StochasticDepth": _stochastic_depth,
    "ActivityRegularization": _same,
    "Identity": _same,
    **dict.fromkeys(IDLE, _idle),
}
"""The layers of one input, by class."""
MERGES: dict[str, Callable[[KerasSteps, KerasLayer, list[Value]], Value]] = {
    "Add": _merge(operator.add),
    "Subtract": _merge(operator.sub),
    "Multiply": _merge(operator.mul),
    "Average": _average,
    "Maximum": _merge(torch.max),
    "Minimum": _merge(torch.min),
    "Concatenate": _concatenate,
    "CustomScaleLayer": _scaled_sum,
}
"""The layers of several inputs, by class."""
