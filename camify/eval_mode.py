"""Running a network for a look, leaving it as it was, whatever PyTorch is set to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

import torch
from torch import nn

__all__ = ["channels_last", "eval_mode", "full_precision", "one_at_a_time", "plain_tensors", "without_hooks"]

one_at_a_time = RLock()
"""Held by the thread that looks into a network: its modes, hooks, weights and forwards are changed meanwhile, and
settings of PyTorch; another thread that did the same would put back what was never there."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards every module has the mode it had before, one by one."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """No hook of the model runs, nor is copied, for a while; afterwards every module has its own again."""
    hooks = [(module, kind, getattr(module, kind)) for module in model.modules() for kind in _HOOKS]
    for module, kind, _ in hooks:
        setattr(module, kind, OrderedDict())
    try:
        yield
    finally:
        for module, kind, own_hooks in hooks:
            setattr(module, kind, own_hooks)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """The kernels of a network in the memory order in which CPUs convolve faster, for a while: the same values."""
    kernels = [(p, p.data) for p in model.parameters() if p.dim() == 4 and not p.is_inference()]
    try:
        for parameter, values in kernels:
            parameter.data = values.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for parameter, values in kernels:
            parameter.data = values


@contextmanager
def plain_tensors() -> Iterator[None]:
    """New tensors are float32, on the CPU, and can be trained later, for a while; also a decorator.

    So they are without ``torch.set_default_device``, ``torch.set_default_dtype`` and ``torch.inference_mode``.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # as it was
        if torch.empty(0).device.type != "cpu":  # `get_default_device` of torch 2.6 knows no `with torch.device`
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions and matrix products of float32 in float32, of plain tensors, for a while; also a decorator.

    Else a GPU convolves in TF32, whose rounding of 1e-3 no proof of 1e-4 survives: torch's default. Autocast, whose
    rounding is larger, is off as well. Meanwhile no other thread does the same.
    """
    with one_at_a_time, plain_tensors(), _without_autocast(), _without_tf32():
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    backends: Any = torch.backends
    matmul = _unless_mixed(torch.get_float32_matmul_precision)
    convolutions = _unless_mixed(lambda: backends.cudnn.allow_tf32)
    parts = []
    if hasattr(backends, "fp32_precision"):  # since torch 2.9
        parts = [backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]
    precisions = [part.fp32_precision for part in parts]
    try:
        if matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if convolutions is not None:
            backends.cudnn.allow_tf32 = False
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for part, precision in zip(parts, precisions, strict=True):
            part.fp32_precision = precision


def _unless_mixed(setting: Callable[[], Any]) -> Any:
    """An older setting of PyTorch; None where a newer one says something else: PyTorch refuses to read it then."""
    try:
        return setting()
    except RuntimeError:
        return None
