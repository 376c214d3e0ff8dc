"""Running a network for a look, leaving it as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["channels_last", "eval_mode", "without_hooks"]

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
