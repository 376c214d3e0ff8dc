"""ONNX's matrix products and norms as layers."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from .steps import AFFINE, NotMapped, OnnxNode, OnnxSteps, Operator, Step, as_tensor, with_weights

__all__ = ["LINEAR_LAYERS"]


def _gemm(steps: OnnxSteps, node: OnnxNode) -> Step:
    if node.get("transA", 0):
        raise NotMapped(f"{node}: its first input is transposed")
    weight = node.weights(1)
    weight = weight if node.get("transB", 0) else weight.T
    bias = node.constant(2)
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1) * node.get("beta", 1.0), (weight.shape[0],))
    alpha = float(node.get("alpha", 1.0))
    return _linear(steps, node, node.step(), weight if alpha == 1 else weight * np.float32(alpha), bias)


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
    layer: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, int(weight.shape[1]), int(weight.shape[0]), has_bias
    )
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
    if node.op != "call_function" or node.target not in AFFINE or node in steps.shared or len(node.args) != 2:
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
        return steps.apply(node, with_weights(layer, weight, bias), step)
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
    return steps.apply(node, with_weights(layer, weight, bias), step)


def _attention(steps: OnnxSteps, node: OnnxNode) -> Step:
    """Scaled dot-product attention of (N, heads, S, E), without mask and past."""
    query, key, value = (steps.as_plain(node.step(index)) for index in range(3))
    others = [node.value(index) for index in range(3, len(node.inputs))]
    odd = any(other is not None for other in others) or node.get("is_causal", 0) or node.get("softcap", 0)
    if odd or steps.rank(query) != 4 or len(node.outputs) > 1 or steps.shape(query)[1] != steps.shape(key)[1]:
        raise NotMapped(f"{node}: attention of a kind that is not known")
    scale = {"scale": float(node.get("scale"))} if "scale" in node.attributes else {}
    result = steps.graph.call(F.scaled_dot_product_attention, query.node, key.node, value.node, **scale)
    return replace(query, node=result)


def _local_response_norm(steps: OnnxSteps, node: OnnxNode) -> Step:
    alpha, beta, bias = (float(node.get(*option)) for option in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return steps.apply(node, nn.LocalResponseNorm(int(node.get("size")), alpha, beta, bias), node.step())


LINEAR_LAYERS: dict[str, Operator] = {
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Attention": _attention,
    "LRN": _local_response_norm,
}
