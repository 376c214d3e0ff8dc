"""What runs fastest here: the memory format, by trying."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..modes import evaluating, without_hooks

__all__ = ["fastest_format"]

_WORTH_IT = 0.95  # of the time: less gain is noise


def fastest_format(model: nn.Module, images: Tensor) -> str:
    """Put a network into the memory format in which it runs such images fastest; returns ``channels_last`` or not.

    Six forwards of at most four images. The values are the same up to rounding.
    """
    parameter = next(model.parameters())
    images = images[:4].to(parameter.device, parameter.dtype)
    with torch.no_grad(), evaluating(model), without_hooks(model):  # inference_mode would stay in the parameters
        plain = _seconds(model, images)
        model.to(memory_format=torch.channels_last)
        last = _seconds(model, images.contiguous(memory_format=torch.channels_last))
    if last < _WORTH_IT * plain:
        return "channels_last"
    model.to(memory_format=torch.contiguous_format)
    return "contiguous"


def _seconds(model: nn.Module, images: Tensor) -> float:
    """Of the faster of two forwards, after one that is not counted."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
