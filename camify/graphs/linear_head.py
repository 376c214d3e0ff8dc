"""Is a head linear after pooling? Found out by asking it, not by reading it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["fold_linear_head", "gives"]

_TOLERANCE = 1e-4


def fold_linear_head(
    head: Callable[[Tensor], Tensor], features_NCHW: Tensor, guess: nn.Module | None = None
) -> nn.Linear | None:
    """The linear layer that equals ``head`` after global average pooling, or None where there is none.

    Such a head depends on the mean of each channel only, and is affine in it. Both are tested on the features
    of real images and on noise; then the layer is read off from the answers to C + 1 constant maps. This
    covers dropout, batch norm, several linear layers in a row and 1x1 convolutions alike.

    Args:
        head: last spatial map (2, C, h, w) -> logits (2, K), in eval mode.
        features_NCHW: the map of two images.
        guess: the head's only layer with weights; where it is the answer, a copy of it is, bit for bit.
    """
    same = isinstance(guess, nn.Linear) and guess.in_features == features_NCHW.shape[1]
    noise = torch.randn(features_NCHW.shape, generator=torch.Generator().manual_seed(0)).to(features_NCHW)
    for maps in (features_NCHW, noise * features_NCHW.std().clamp_min(1e-3), 10 * noise):
        mean = maps.mean((-2, -1), keepdim=True).expand_as(maps)
        if not _close(head(maps), head(mean.contiguous())):
            return None
        swapped = maps.flip(0)  # the other image: two points on one line
        if not _close(head(3 * mean - 2 * swapped), 3 * head(mean.contiguous()) - 2 * head(swapped)):
            return None
        same = same and _close(head(maps), guess(mean[:, :, 0, 0]))  # type: ignore[misc]
    return copy.deepcopy(guess) if same else _read_off(head, features_NCHW)  # type: ignore[return-value]


def gives(linear: nn.Linear, maps_NCHW: Tensor, logits_NK: Tensor) -> bool:
    """Whether a linear layer after global average pooling gives these logits of these maps."""
    return _close(linear(maps_NCHW.mean((2, 3))), logits_NK)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:  # more follows upon the layer, such as a maximum over groups of its outputs
        return False
    scale = max(float(a.abs().max()), float(b.abs().max()))
    return float((a - b).abs().max()) <= _TOLERANCE * scale


def _read_off(head: Callable[[Tensor], Tensor], like: Tensor) -> nn.Linear:
    """Weights and bias of an affine head: its answers to unit maps and to the zero map."""
    zero = torch.zeros_like(like)
    bias = head(zero)[0]
    scale = float(like.abs().max().clamp_min(1.0))  # large against the bias: the difference stays exact
    columns = []
    for first in range(0, like.shape[1], 2):  # the head takes two maps at a time
        unit = zero.clone()
        for row, channel in enumerate(range(first, min(first + 2, like.shape[1]))):
            unit[row, channel] = scale
        columns += list((head(unit)[: min(2, like.shape[1] - first)] - bias) / scale)
    layer = nn.Linear(like.shape[1], len(bias), device="meta", dtype=like.dtype)  # draws no random numbers
    layer.to_empty(device=like.device)
    with torch.no_grad():
        layer.weight.copy_(torch.stack(columns, dim=1))
        layer.bias.copy_(bias)
    return layer
