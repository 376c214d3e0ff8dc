"""What runs fastest here: the memory format, by trying; reduced precision, with its error."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..modes import evaluating, without_hooks

__all__ = ["PRECISIONS", "fastest_format", "precision_error"]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_WORTH_IT = 0.95  # of the time: less gain is noise


def fastest_format(model: nn.Module, images: Tensor) -> str:
    """Put a network into the memory format in which it runs such images fastest; returns ``channels_last`` or not.

    Four forwards of at most four images. The values are the same up to rounding.
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
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def precision_error(model: nn.Module, images: Tensor, precision: str) -> float:
    """The largest difference of a probability between a network in reduced precision and as it is."""
    parameter = next(model.parameters())
    images = images.to(parameter.device, parameter.dtype)
    with torch.inference_mode(), evaluating(model), without_hooks(model):
        exact = model(images).float().softmax(1)
        with torch.autocast(images.device.type, dtype=PRECISIONS[precision]):
            reduced = model(images)
    return float((reduced.float().softmax(1) - exact).abs().max())
