"""The schedule: what is trained when, and how fast; pure functions of step and epoch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from torch import nn

from ..model import CAMNet

__all__ = ["lr_factor", "one_cycle_factor", "set_frozen"]

_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 25 / 1e4  # as torch.optim.lr_scheduler.OneCycleLR


def lr_factor(step: int, total: float, *, warmup: int = 0, start: int = 0, drops: Sequence[float] = ()) -> float:
    """Factor in [0, 1] on a learning rate: 0 before ``start``, linear warm-up, then half a cosine to ``total``.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts; steps count from 0. With ``drops``, instead of the
    cosine, tenfold less after each of these fractions of ``total``. With an infinite ``total`` the rate stays.
    """
    if step < start:
        return 0.0
    rise = min(1.0, (step - start + 1) / (warmup + 1))
    if drops:
        return float(rise * 0.1 ** sum(step >= round(drop * total) for drop in drops if math.isfinite(total)))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def one_cycle_factor(step: int, total: float, *, start: int = 0) -> float:
    """Factor in [0, 1] on a learning rate: 0 before ``start``, then one cycle that ends with step ``total - 1``.

    Smith & Topin 2018, "Super-Convergence"; the shape and the numbers are those of torch's ``OneCycleLR``: half a
    cosine from 1/25 up to 1 in 0.3 of the steps, another down to 1/250,000. The momentum stays.
    """
    if step < start:
        return 0.0
    last = max(1, total - start - 1)
    peak, current = _RISE * (last + 1) - 1, min(step - start, last)
    if current <= peak:
        return _between(_FIRST, 1.0, current / peak if peak > 0 else 1.0)
    return _between(1.0, _LAST, (current - peak) / (last - peak))


def _between(first: float, last: float, share: float) -> float:
    """Half a cosine from one value to another."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


def set_frozen(model: CAMNet, frozen: bool, own: Collection[nn.Parameter] = ()) -> None:
    """Freeze or free the legacy's features: no gradients, and batch norm as in evaluation while frozen.

    Call it at the start of every epoch: nothing is remembered, so resuming is right by construction. What the user had
    frozen (``own``) stays so.
    """
    stays_frozen = {id(parameter) for parameter in own}
    for parameter in model.parameter_groups()["features"]:
        parameter.requires_grad_(not frozen and id(parameter) not in stays_frozen)
    head = {model.features.get_submodule(name) for name in model.head_layers}
    for module in model.features.modules():
        if module not in head:
            module.training = model.training and not frozen
