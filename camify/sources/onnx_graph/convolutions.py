"""ONNX's convolutions and pools as layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ...graphs.padded_layers import PaddedAvgPool2d, SamePad2d
from .steps import NotMapped, OnnxNode, OnnxSteps, Operator, Step, with_weights

__all__ = ["CONVOLUTIONS"]


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
    if _is_symmetric(pads):
        padding = (int(pads[2]), int(pads[0]))
    else:
        layer = nn.ZeroPad2d(tuple(int(side) for side in pads))  # type: ignore[arg-type]
        step = replace(step, node=steps.graph.layer(f"{node.layer_name}_pad", layer, step.node))
    channels = int(weight.shape[1]) * groups
    if groups < 1 or channels != steps.shape(step)[1] or weight.shape[0] % groups:
        raise NotMapped(f"{node}: its weights are for {channels} channels, and it gets {steps.shape(step)[1]}")
    conv = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, channels, int(weight.shape[0]), kernel, stride, padding, dilation, groups, bias is not None
    )
    return steps.apply(node, with_weights(conv, weight, bias), step)


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
    return steps.apply(node, with_weights(layer, weight, bias), node.step())


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


CONVOLUTIONS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(nn.AdaptiveAvgPool2d),
    "GlobalMaxPool": _global_pool(nn.AdaptiveMaxPool2d),
}
