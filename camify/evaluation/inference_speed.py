"""What runs fastest here: batch norms folded into convolutions, and the memory format, by trying."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ..model import CAMNet
from ..modes import evaluating, without_hooks

__all__ = ["fastest_format", "folded"]

_WORTH_IT = 0.95  # of the time: less gain is noise


def folded(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are part of the convolutions before them: the same values up to rounding.

    The model itself where it has none, or torch.fx cannot trace it. No hook of it is copied.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return model
    with without_hooks(model):
        network = copy.deepcopy(model).eval()
    try:
        if not isinstance(network, CAMNet):
            return fuse(network, inplace=True)
        network.features = fuse(network.features, inplace=True)
    except Exception:  # noqa: BLE001 - whatever the tracer says of somebody's code: then it stays as it is
        return model
    return network


def fastest_format(model: nn.Module, images: Tensor) -> str:
    """Put a network into the memory format in which it runs such images fastest; returns ``channels_last`` or not.

    Six forwards of at most four images. The values are the same up to rounding.
    """
    parameter = next(model.parameters())
    images = images[:4].to(parameter.device, parameter.dtype)
    plain, last = [], []
    with torch.no_grad(), evaluating(model), without_hooks(model):  # inference_mode would stay in the parameters
        for _ in range(3):  # in turns, as a machine is not equally fast all the time
            model.to(memory_format=torch.contiguous_format)
            plain.append(_seconds(model, images))
            model.to(memory_format=torch.channels_last)
            last.append(_seconds(model, images.contiguous(memory_format=torch.channels_last)))
    if min(last[1:]) < _WORTH_IT * min(plain[1:]):
        return "channels_last"
    model.to(memory_format=torch.contiguous_format)
    return "contiguous"


def _seconds(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
