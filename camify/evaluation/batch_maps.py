"""The raw maps of a batch by several methods, from one forward, in full or reduced precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..methods import PRECISIONS, Method, check_targets, observe

__all__ = ["BatchMaps", "batch_maps", "precision_error"]


@dataclass(frozen=True)
class BatchMaps:
    """What a network says of N images, and where it looks.

    Attributes:
        logits: (N, K), on the CPU.
        targets: the classes that are explained, (N, T).
        raw: signed maps (N, T, M, h, w) of M methods, on the CPU.
    """

    logits: Tensor
    targets: Tensor
    raw: Tensor


def batch_maps(
    model: nn.Module,
    images: Tensor,
    methods: Mapping[str, Method],
    *,
    targets: Sequence[int] | Tensor = (),
    topk: int = 1,
    layer: str | None = None,
    precision: str = "fp32",
) -> BatchMaps:
    """Look at images (N, C, H, W) by all methods, in one forward.

    Args:
        model: in any mode and memory format, on any device.
        images: normalised as the model expects.
        methods: by name, made for this model.
        targets: the same classes for every image, or (N, T); empty: the ``topk`` most probable of each image.
        topk: how many.
        layer: name of the module whose map is looked at; None is the last spatial map.
        precision: one of ``PRECISIONS`` (autocast).

    Raises:
        ConfigError: the network has no such class, or no such layer.
    """
    parameter = next(model.parameters())
    images = images.to(parameter.device, parameter.dtype)
    if images.device.type == "cpu" and any(p.dim() == 4 and not p.is_contiguous() for p in model.parameters()):
        images = images.to(memory_format=torch.channels_last)
    kind = PRECISIONS[precision]
    gradients = any(method.uses_gradients for method in methods.values())
    with (
        torch.autocast(images.device.type, dtype=kind, enabled=kind is not None),
        observe(model, images, layer, gradients=gradients) as forward,
    ):
        if len(targets) == 0:
            chosen = forward.logits.topk(min(topk, forward.logits.shape[1]), dim=1).indices
        else:
            chosen = torch.as_tensor(targets).expand(len(images), -1)
        chosen = check_targets(chosen, forward.logits)
        raw = torch.stack([method.look(forward, chosen) for method in methods.values()], dim=2)
        return BatchMaps(forward.logits.cpu(), chosen, raw.cpu())


def precision_error(
    model: nn.Module, images: Tensor, methods: Mapping[str, Method], *, layer: str | None, precision: str
) -> tuple[float, float]:
    """What reduced precision changes: the largest difference of a probability, and that of a map in shares of its peak.

    Of the most probable class of every image, found in full precision.
    """
    exact = batch_maps(model, images, methods, layer=layer)
    reduced = batch_maps(model, images, methods, layer=layer, precision=precision, targets=exact.targets)
    peaks = exact.raw.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(exact.raw.dtype).tiny)
    probabilities = (reduced.logits.softmax(1) - exact.logits.softmax(1)).abs().max()
    return float(probabilities), float(((reduced.raw - exact.raw) / peaks).abs().max())
