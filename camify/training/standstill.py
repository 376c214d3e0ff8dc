"""A training that stands still is stopped by name: rates that are 0, parameters that do not move."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ..errors import TrainingError

__all__ = ["Standstill"]


class Standstill:
    """Watches an epoch: the largest rate of every group, and whether a parameter that may learn has moved.

    Attributes:
        expects_steps: whether a gradient was asked for in this epoch.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._sums: Tensor | None = None
        self._first_step, self._next_look = 0, 1
        self._moved = self.expects_steps = False

    def begin(self, trainer: pl.Trainer) -> None:
        """Take what the epoch starts with."""
        self._rates, self._first_step, self._next_look = {}, trainer.global_step, 1
        self._moved = self.expects_steps = False
        self._sums = _sums(trainer)

    def look(self, trainer: pl.Trainer) -> None:
        """See whether something has moved: after 1, 2, 4, 8, ... steps, until it has."""
        if not self._moved and trainer.global_step - self._first_step >= self._next_look:
            self._next_look *= 2
            self._moved = self._has_moved(trainer)

    def _has_moved(self, trainer: pl.Trainer) -> bool:
        sums = _sums(trainer)
        return sums is None or self._sums is None or sums.shape != self._sums.shape or not torch.equal(sums, self._sums)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the rates of a step that will be made."""
        for number, group in enumerate(optimizer.param_groups):
            learns = any(parameter.requires_grad for parameter in group["params"])
            if learns and group.get("initial_lr", group["lr"]) > 0:
                name = str(group.get("name", f"group {number}"))
                self._rates[name] = max(self._rates.get(name, 0.0), float(group["lr"]))

    def end(self, trainer: pl.Trainer) -> None:
        """Refuse an epoch with steps in which a group that may learn had no rate, or nothing moved.

        Raises:
            TrainingError: names epoch, groups and rates, and says what to look at.
        """
        if trainer.global_step == self._first_step or self._sums is None or not self.expects_steps:
            return
        steps = trainer.global_step - self._first_step
        still = [name for name, rate in self._rates.items() if rate == 0]
        if still:
            raise TrainingError(
                f"Epoch {trainer.current_epoch}: the learning rate of {', '.join(still)} was 0 in all {steps} steps, so"
                " nothing of it was trained. Look at the schedule: max_epochs, max_steps, freeze_epochs and schedule."
            )
        moved = self._moved or self._has_moved(trainer)
        if not trainer.strategy.reduce_boolean_decision(moved, all=False):
            rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self._rates.items()) or "none"
            raise TrainingError(
                f"Epoch {trainer.current_epoch}: no parameter has moved in {steps} steps (largest rates: {rates})."
                " All gradients were zero, all steps were left out (16-mixed), or nothing may learn (requires_grad)."
            )


def _sums(trainer: pl.Trainer) -> Tensor | None:
    """A sum and a weighted sum of every parameter that an optimizer has; None where there are none here."""
    sums = [value for parameter in _parameters(trainer) for value in _sums_of(parameter)]
    return torch.stack(sums).cpu() if sums else None


def _parameters(trainer: pl.Trainer) -> Iterator[nn.Parameter]:
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            yield from (parameter for parameter in group["params"] if parameter.numel() > 0)


def _sums_of(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    values = parameter.detach().flatten().double()
    return values.sum(), values.square().sum()
