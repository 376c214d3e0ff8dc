"""Layers that exporters write as many steps: layer norm, GELU and hard swish become one layer again."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..layer_graph import LayerGraph

__all__ = ["fuse"]


def fuse(graph: LayerGraph, output: fx.Node) -> fx.Node:
    """Replace the steps of known layers by the layers, in place; the step that is the output afterwards."""
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            fused = _gelu(graph, node) or _hard_swish(graph, node) or _layer_norm(graph, node)
        if fused is not None:
            node.replace_all_uses_with(fused)
            output = fused if output is node else output
    return output


def _gelu(graph: LayerGraph, node: fx.Node) -> fx.Node | None:
    """``x * (1 + erf(x / sqrt(2))) / 2``, in any order of the factors."""
    factors, number = _factors(node)
    if len(factors) != 2 or not math.isclose(number, 0.5, rel_tol=1e-5):
        return None
    for source, other in (factors, factors[::-1]):
        inner = _plus(other, 1)
        if inner is not None and inner.target is torch.erf:
            scaled, scale = _factors(_only_input(inner))
            if scaled == [source] and math.isclose(scale, math.sqrt(0.5), rel_tol=1e-5):
                return graph.layer("gelu", nn.GELU(), source)
    return None


def _hard_swish(graph: LayerGraph, node: fx.Node) -> fx.Node | None:
    """``x * relu6(x + 3) / 6``."""
    factors, number = _factors(node)
    if len(factors) != 2 or not math.isclose(number, 1 / 6, rel_tol=1e-5):
        return None
    for source, other in (factors, factors[::-1]):
        if isinstance(_layer(graph, other), nn.ReLU6) and _plus(_only_input(other), 3) is source:
            return graph.layer("hardswish", nn.Hardswish(), source)
    return None


def _layer_norm(graph: LayerGraph, node: fx.Node) -> fx.Node | None:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps)`` over the features, times a weight, plus a bias."""
    if node.target is not operator.add or len(node.args) != 2:
        return None
    product, bias = node.args
    if not isinstance(product, fx.Node) or product.target is not operator.mul or len(product.users) != 1:
        return None
    quotient, weight = product.args
    if not isinstance(quotient, fx.Node) or quotient.target is not operator.truediv:
        return None
    centered, deviation = quotient.args
    source, axis = _centered(graph, centered)
    if source is None or not isinstance(deviation, fx.Node) or deviation.target is not torch.sqrt:
        return None
    eps = _eps(graph, _only_input(deviation), centered, axis)
    scale, shift = _vector(graph, weight), _vector(graph, bias)
    shape = graph.shape(source)
    last = axis == len(shape) - 1
    if eps is None or scale is None or shift is None or (not last and (len(shape), axis) != (4, 1)):
        return None
    if len(scale) != shape[axis] or len(shift) != shape[axis]:
        return None
    layer = nn.LayerNorm(shape[axis], eps)
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(shift)
    if last:
        return graph.layer("layernorm", layer, source)
    normed = graph.layer("layernorm", layer, graph.method("permute", source, 0, 2, 3, 1))
    return graph.method("permute", normed, 0, 3, 1, 2)


def _centered(graph: LayerGraph, node: Any) -> tuple[fx.Node | None, int]:
    """The tensor of which a step takes off the mean over an axis, and that axis."""
    if not isinstance(node, fx.Node) or node.target is not operator.sub or len(node.args) != 2:
        return None, 0
    source, mean = node.args
    axis = _mean_axis(graph, mean)
    if axis is None or not isinstance(mean, fx.Node) or not isinstance(source, fx.Node) or mean.args[0] is not source:
        return None, 0
    return source, axis


def _eps(graph: LayerGraph, node: fx.Node | None, centered: Any, axis: int) -> float | None:
    """What is added to the mean square of a tensor."""
    if node is None or node.target is not operator.add or not isinstance(node.args[1], int | float):
        return None
    mean = node.args[0]
    if not isinstance(mean, fx.Node) or _mean_axis(graph, mean) != axis:
        return None
    square: Any = mean.args[0]
    squared = square.target is operator.mul and square.args == (centered, centered)
    return float(node.args[1]) if squared else None


def _mean_axis(graph: LayerGraph, node: Any) -> int | None:
    """The axis over which a step takes the mean, where it is one, which stays."""
    if not isinstance(node, fx.Node) or node.target is not torch.mean or node.kwargs != {"keepdim": True}:
        return None
    source, axes = node.args
    if not isinstance(axes, list | tuple) or len(axes) != 1 or not isinstance(source, fx.Node):
        return None
    return int(axes[0]) % len(graph.shape(source))  # type: ignore[arg-type]


def _factors(node: fx.Node | None) -> tuple[list[fx.Node], float]:
    """The steps of which a step is the product, and the number that it is multiplied by."""
    factors: list[fx.Node] = []
    number, pending = 1.0, [node]
    while pending:
        one = pending.pop(0)
        if one is None:
            continue
        inner = one is node or (len(one.users) == 1 and len(pending) + len(factors) < 4)
        if inner and one.target is operator.mul and one.op == "call_function":
            for argument in one.args:
                if isinstance(argument, fx.Node):
                    pending.append(argument)
                elif isinstance(argument, int | float):
                    number *= argument
        elif inner and one.target is operator.truediv and isinstance(one.args[1], int | float):
            number /= one.args[1] or math.nan
            pending.append(one.args[0] if isinstance(one.args[0], fx.Node) else None)
        elif one is not node:
            factors.append(one)
    return factors, number


def _plus(node: fx.Node | None, number: float) -> fx.Node | None:
    """The step to which a step adds a number."""
    if node is None or node.target is not operator.add or len(node.args) != 2 or node.args[1] != number:
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


def _only_input(node: fx.Node) -> fx.Node | None:
    return node.args[0] if len(node.args) == 1 and isinstance(node.args[0], fx.Node) else None


def _layer(graph: LayerGraph, node: fx.Node) -> nn.Module | None:
    return graph.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _vector(graph: LayerGraph, node: Any) -> Tensor | None:
    """A tensor of the file that varies along one axis."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Tensor = getattr(graph.root, str(node.target)).detach()
    return value.reshape(-1) if value.numel() == max(value.shape, default=0) else None
