"""Keras's layers over windows of images: convolutions, pools, borders and sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...graphs.padded_layers import PaddedAvgPool2d, SamePad2d
from .activations import activate
from .config import KerasLayer
from .steps import KerasSteps, pair, placed, whole
from .values import Value, images, value_of

__all__ = ["LAYERS"]

_Pair = tuple[int, int]


def _as_images(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    data_format = layer.config.get("data_format") or "channels_last"
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(f"data_format={data_format!r}")
    return images(steps.graph, value, data_format)


def _is_same(layer: KerasLayer) -> bool:
    padding = layer.config.get("padding", "valid")
    if padding not in ("valid", "same"):
        raise ValueError(f"padding={padding!r}")
    return bool(padding == "same")


def _padding(
    steps: KerasSteps, layer: KerasLayer, value: Value, kernel: _Pair, stride: _Pair, dilation: _Pair = (1, 1)
) -> tuple[Value, _Pair]:
    """Images with the border that ``padding="same"`` gives them, and the padding that the layer itself can do."""
    if not _is_same(layer) or kernel == (1, 1):
        return value, (0, 0)
    reach = [(size - 1) * far for size, far in zip(kernel, dilation, strict=True)]
    if stride == (1, 1) and not any(size % 2 for size in reach):
        return value, (reach[0] // 2, reach[1] // 2)
    return steps.layer(f"{layer.title}_pad", SamePad2d(kernel, stride, dilation), value), (0, 0)


# ------------------------------------------------------------ convolutions


def _biased(config: dict[str, Any], count: int) -> dict[str, tuple[int, ...] | None]:
    return {"bias": (count,)} if config.get("use_bias", True) else {}


def _conv(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config, value = layer.config, _as_images(steps, layer, value)
    kernel, stride, dilation = pair(config, "kernel_size"), pair(config, "strides"), pair(config, "dilation_rate")
    groups, filters, channels = whole(config, "groups", 1), whole(config, "filters"), steps.graph.shape(value.node)[1]

    def make(padding: _Pair) -> nn.Module:
        shapes = {"kernel": (*kernel, channels // groups, filters), **_biased(config, filters)}
        tensors = steps.weights(layer, **shapes)
        conv = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, "bias" in tensors, device="meta")
        return placed(conv, weight=tensors["kernel"].permute(3, 2, 0, 1), bias=tensors.get("bias"))

    padded, padding = _padding(steps, layer, value, kernel, stride, dilation)
    conv = steps.once((layer, channels), lambda: make(padding))
    return activate(steps, layer, steps.layer(layer.title, conv, padded), config.get("activation"))


def _depthwise_conv(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config, value = layer.config, _as_images(steps, layer, value)
    count = steps.graph.shape(value.node)[1] * whole(config, "depth_multiplier", 1)
    kernel = pair(config, "kernel_size")
    shapes = {"kernel": (*kernel, *_multiplied(steps, layer, value)), **_biased(config, count)}
    tensors = steps.weights(layer, **shapes)
    value = _depthwise(steps, layer, value, layer.title, tensors["kernel"], tensors.get("bias"))
    return activate(steps, layer, value, config.get("activation"))


def _multiplied(steps: KerasSteps, layer: KerasLayer, value: Value) -> _Pair:
    return steps.graph.shape(value.node)[1], whole(layer.config, "depth_multiplier", 1)


def _depthwise(
    steps: KerasSteps, layer: KerasLayer, value: Value, name: str, kernel_hwcm: Tensor, bias: Tensor | None
) -> Value:
    height, width, channels, multiplier = kernel_hwcm.shape
    kernel, stride, dilation = (height, width), pair(layer.config, "strides"), pair(layer.config, "dilation_rate")
    value, padding = _padding(steps, layer, value, kernel, stride, dilation)
    count = channels * multiplier

    def make() -> nn.Module:
        conv = nn.Conv2d(channels, count, kernel, stride, padding, dilation, channels, bias is not None, device="meta")
        return placed(conv, weight=kernel_hwcm.permute(2, 3, 0, 1).reshape(count, 1, height, width), bias=bias)

    return steps.layer(name, steps.once((layer, "depthwise"), make), value)


def _separable_conv(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config, value = layer.config, _as_images(steps, layer, value)
    filters, (channels, multiplier) = whole(config, "filters"), _multiplied(steps, layer, value)
    tensors = steps.weights(
        layer,
        depthwise_kernel=(*pair(config, "kernel_size"), channels, multiplier),
        pointwise_kernel=(1, 1, channels * multiplier, filters),
        **_biased(config, filters),
    )
    value = _depthwise(steps, layer, value, f"{layer.title}_depthwise", tensors["depthwise_kernel"], None)

    def make() -> nn.Module:
        conv = nn.Conv2d(channels * multiplier, filters, 1, bias="bias" in tensors, device="meta")
        return placed(conv, weight=tensors["pointwise_kernel"].permute(3, 2, 0, 1), bias=tensors.get("bias"))

    value = steps.layer(f"{layer.title}_pointwise", steps.once((layer, "pointwise"), make), value)
    return activate(steps, layer, value, config.get("activation"))


def _conv_transpose(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    config, value = layer.config, _as_images(steps, layer, value)
    if config.get("output_padding") is not None:
        raise ValueError("output_padding is not read")
    kernel, stride, dilation = pair(config, "kernel_size"), pair(config, "strides"), pair(config, "dilation_rate")
    groups, filters, channels = whole(config, "groups", 1), whole(config, "filters"), steps.graph.shape(value.node)[1]
    if groups != 1:
        raise ValueError("groups of a transposed convolution are not read")
    reach = [(size - 1) * far + 1 for size, far in zip(kernel, dilation, strict=True)]
    beyond = [max(step - size, 0) for step, size in zip(stride, reach, strict=True)]
    cut = [max(size - step, 0) if _is_same(layer) else 0 for step, size in zip(stride, reach, strict=True)]

    def make() -> nn.Module:
        tensors = steps.weights(layer, kernel=(*kernel, filters, channels), **_biased(config, filters))
        conv = nn.ConvTranspose2d(
            channels, filters, kernel, stride, (cut[0] // 2, cut[1] // 2), (beyond[0], beyond[1]),
            bias="bias" in tensors, dilation=dilation, device="meta",
        )  # fmt: skip
        return placed(conv, weight=tensors["kernel"].permute(3, 2, 0, 1), bias=tensors.get("bias"))

    value = steps.layer(layer.title, steps.once(layer, make), value)
    if cut[0] % 2 or cut[1] % 2:  # the odd row and column go at the end
        value = steps.call(F.pad, value, (0, -(cut[1] % 2), 0, -(cut[0] % 2)))
    return activate(steps, layer, value, config.get("activation"))


# ------------------------------------------------------------ pools


def _max_pool(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    value, size = _as_images(steps, layer, value), pair(layer.config, "pool_size", 2)
    stride = size if layer.config.get("strides") is None else pair(layer.config, "strides")
    if _is_same(layer):
        value = steps.layer(f"{layer.title}_pad", SamePad2d(size, stride, value=float("-inf")), value)
    return steps.layer(layer.title, nn.MaxPool2d(size, stride), value)


def _average_pool(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    value, size = _as_images(steps, layer, value), pair(layer.config, "pool_size", 2)
    stride = size if layer.config.get("strides") is None else pair(layer.config, "strides")
    pool = PaddedAvgPool2d(size, stride) if _is_same(layer) else nn.AvgPool2d(size, stride)
    return steps.layer(layer.title, pool, value)


def _global_pool(function: Callable[..., Any]) -> Callable[[KerasSteps, KerasLayer, Value], Value]:
    def pool(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
        value = _as_images(steps, layer, value)
        if layer.config.get("keepdims"):
            return steps.call(function, value, (2, 3), keepdim=True)
        return value_of(steps.graph.call(function, value.node, (2, 3)), 2)

    return pool


def _adaptive_pool(kind: type[nn.Module]) -> Callable[[KerasSteps, KerasLayer, Value], Value]:
    def pool(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
        size = pair(layer.config, "output_size")
        return steps.layer(layer.title, kind(size), _as_images(steps, layer, value))

    return pool


# ------------------------------------------------------------ borders and sizes


def _border(layer: KerasLayer, name: str) -> tuple[int, int, int, int]:
    """Left, right, top, bottom."""
    value = layer.config.get(name, 1)
    rows, columns = value if isinstance(value, list | tuple) else (value, value)
    top, bottom = rows if isinstance(rows, list | tuple) else (rows, rows)
    left, right = columns if isinstance(columns, list | tuple) else (columns, columns)
    sides = (left, right, top, bottom)
    if not all(isinstance(side, int) and 0 <= side < 2**20 for side in sides):
        raise ValueError(f"{name}={value!r}")
    return sides


def _zero_padding(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    value = _as_images(steps, layer, value)
    return steps.layer(layer.title, nn.ZeroPad2d(_border(layer, "padding")), value)


def _cropping(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    left, right, top, bottom = _border(layer, "cropping")
    return steps.call(F.pad, _as_images(steps, layer, value), (-left, -right, -top, -bottom))


def _up_sampling(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    value, mode = _as_images(steps, layer, value), layer.config.get("interpolation", "nearest")
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"interpolation={mode!r} is not read")
    height, width = pair(layer.config, "size", 2)
    return steps.layer(layer.title, nn.Upsample(scale_factor=(float(height), float(width)), mode=mode), value)


def _resizing(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    """In the middle of a network; see ``keras_network`` for one that stands at its beginning."""
    config, value = layer.config, _as_images(steps, layer, value)
    size = (whole(config, "height"), whole(config, "width"))
    if steps.graph.shape(value.node)[2:] == size:
        return value
    if any(config.get(name) for name in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")):
        raise ValueError("resizing with its aspect kept, or antialiased, is not read")
    if config.get("interpolation", "bilinear") != "bilinear":
        raise ValueError(f"interpolation={config['interpolation']!r} is not read")
    return steps.call(F.interpolate, value, size=size, mode="bilinear", align_corners=False)


def _center_crop(steps: KerasSteps, layer: KerasLayer, value: Value) -> Value:
    value = _as_images(steps, layer, value)
    height, width = steps.graph.shape(value.node)[2:]
    rows, columns = height - whole(layer.config, "height"), width - whole(layer.config, "width")
    if min(rows, columns) < 0:
        raise ValueError(f"crops more than the {height} x {width} cells that it is given")
    top, left = rows // 2, columns // 2
    return steps.call(F.pad, value, (-left, left - columns, -top, top - rows)) if rows or columns else value


LAYERS: dict[str, Callable[[KerasSteps, KerasLayer, Value], Value]] = {
    "Conv2D": _conv,
    "Convolution2D": _conv,
    "DepthwiseConv2D": _depthwise_conv,
    "SeparableConv2D": _separable_conv,
    "SeparableConvolution2D": _separable_conv,
    "Conv2DTranspose": _conv_transpose,
    "MaxPooling2D": _max_pool,
    "MaxPool2D": _max_pool,
    "AveragePooling2D": _average_pool,
    "AvgPool2D": _average_pool,
    "GlobalAveragePooling2D": _global_pool(torch.mean),
    "GlobalAvgPool2D": _global_pool(torch.mean),
    "GlobalMaxPooling2D": _global_pool(torch.amax),
    "GlobalMaxPool2D": _global_pool(torch.amax),
    "AdaptiveAveragePooling2D": _adaptive_pool(nn.AdaptiveAvgPool2d),
    "AdaptiveMaxPooling2D": _adaptive_pool(nn.AdaptiveMaxPool2d),
    "ZeroPadding2D": _zero_padding,
    "Cropping2D": _cropping,
    "UpSampling2D": _up_sampling,
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
}
"""The layers of images, by class."""
