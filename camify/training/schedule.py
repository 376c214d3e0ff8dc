"""The schedule: what is trained when, and how fast; pure functions of step and epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..model import CAMNet

__all__ = ["lr_factor", "set_frozen"]


def lr_factor(step: int, total: int, *, warmup: int = 0, start: int = 0, drops: Sequence[float] = ()) -> float:
    """Factor in [0, 1] on a learning rate: 0 before ``start``, linear warm-up, then half a cosine to ``total``.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts; steps count from 0. With ``drops``, instead of the
    cosine, tenfold less after each of these fractions of ``total``.
    """
    if step < start:
        return 0.0
    rise = min(1.0, (step - start + 1) / (warmup + 1))
    if drops:
        return float(rise * 0.1 ** sum(step >= round(drop * total) for drop in drops))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def set_frozen(model: CAMNet, frozen: bool) -> None:
    """Freeze or free the legacy's features: no gradients, and batch norm as in evaluation while frozen.

    Call it at the start of every epoch: nothing is remembered, so resuming is right by construction.
    """
    for parameter in model.parameter_groups()["features"]:
        parameter.requires_grad_(not frozen)
    head = {model.features.get_submodule(name) for name in model.head_layers}
    for module in model.features.modules():
        if module not in head:
            module.training = model.training and not frozen
