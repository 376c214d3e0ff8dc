"""How long a run is, as far as that is known: data without a length, runs without an end, times instead of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler, Timer

from ..errors import ConfigError
from .options import OptimizationOptions
from .schedule import lr_factor, one_cycle_factor

__all__ = ["RateFactor", "RunLength", "renew_rates", "run_length_of", "scale_rates"]


@dataclass(frozen=True)
class RunLength:
    """What is known of a run's length before it starts.

    Attributes:
        epochs: that it has at most; None without such an end.
        steps: of the optimizer that it has at most; None without such an end.
        epoch_steps: of the optimizer in each epoch, the last number for all that follow; empty where the training data
            have no length.
        seconds: that it may take; None without such an end.
    """

    epochs: int | None
    steps: int | None
    epoch_steps: tuple[int, ...]
    seconds: float | None

    def first_step(self, epoch: int, measured: float | None = None) -> int | None:
        """The step with which an epoch starts; None where that is not known.

        Args:
            epoch: its number.
            measured: steps of an epoch, where data without a length have shown them.
        """
        if epoch == 0:
            return 0
        if not self.epoch_steps:
            return None if measured is None else round(epoch * measured)
        *first, last = self.epoch_steps
        return sum(first[:epoch]) + last * max(0, epoch - len(first))

    def last_step(self, measured: float | None = None) -> int | None:
        """The number of steps in all; None where it is open, or only the clock says it."""
        by_epochs = None if self.epochs is None else self.first_step(self.epochs, measured)
        ends = [end for end in (self.steps, by_epochs) if end is not None]
        return min(ends) if ends else None

    def describe(self) -> str:
        """Its end in words: ``"4 epochs"``, ``"32 steps (4 epochs of 8)"``."""
        ends = []
        if self.epochs is not None:
            ends.append(f"{self.epochs} epoch{'s' * (self.epochs != 1)}")
        if self.steps is not None:
            length = self.epoch_steps[-1] if self.epoch_steps else 0
            ends.append(f"{self.steps} steps" + (f" (epochs of {length})" if length else ""))
        if self.seconds is not None:
            ends.append(f"{self.seconds:.0f} s")
        return " or ".join(ends) + (" at most" if len(ends) > 1 else "") if ends else "no end: stop it with Ctrl-C"


def run_length_of(trainer: pl.Trainer) -> RunLength:
    """The length of a trainer's fit. Its data are set up for it, where they are not yet."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    steps = trainer.max_steps if trainer.max_steps >= 0 else None
    timer = next((callback for callback in _callbacks(trainer) if isinstance(callback, Timer)), None)
    left = None if timer is None else timer.time_remaining()
    duration = None if timer is None or left is None else left + timer.time_elapsed()
    batches = trainer.num_training_batches
    epoch_steps: tuple[int, ...] = ()
    if math.isfinite(batches):
        changes = [0]
        several = next((c for c in _callbacks(trainer) if isinstance(c, GradientAccumulationScheduler)), None)
        if several is not None:
            changes = list(range(max(several.scheduling) + 1))
        accumulated = [
            trainer.accumulate_grad_batches if several is None else several.get_accumulate_grad_batches(epoch)
            for epoch in changes
        ]
        epoch_steps = tuple(math.ceil(batches / count) for count in accumulated)
    return RunLength(epochs, steps, epoch_steps, duration)


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def renew_rates(trainer: pl.Trainer) -> None:
    """Give every group the rate of the next step by this run's length, whatever was known when the rates were made.

    A checkpoint brought that of another run: of one that has ended the stored rate is 0, also where it goes on with
    more epochs. A callback has changed the size of the batches. Or a trainer goes on with a new optimizer.
    """
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        factors = [factor for factor in getattr(scheduler, "lr_lambdas", []) if isinstance(factor, RateFactor)]
        for factor in factors:
            factor.measure_run()
        if not factors or not all(factor.knows_epochs for factor in factors):
            continue
        if scheduler.last_epoch == 0:
            scheduler.last_epoch = trainer.global_step
        rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates


def scale_rates(trainer: pl.Trainer, factor: float) -> None:
    """Multiply the rates that a run's schedules start from."""
    for config in trainer.lr_scheduler_configs:
        scheduler: Any = config.scheduler
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


class RateFactor:
    """The factor on the learning rate of a group of parameters, by step: a ``lr_lambda`` that knows its run.

    Where the training data have no length, the first epoch shows it: until then the schedule stands at its beginning,
    without warm-up. Where a run ends by the clock, so does its schedule. Where it has no end, the rate stays. What was
    shown is plain data in ``__dict__``, which torch keeps in checkpoints.

    Args:
        trainer: of the run.
        options: settled ones.
        waits: whether the group is frozen for ``freeze_epochs``.

    Raises:
        ConfigError: the schedule needs a number of steps, and there is none.
    """

    __slots__ = ("__dict__", "_length", "_options", "_trainer", "_waits")

    def __init__(self, trainer: pl.Trainer, options: OptimizationOptions, *, waits: bool) -> None:
        self._trainer, self._length, self._options, self._waits = trainer, run_length_of(trainer), options, waits
        self.measured: float | None = None
        """Steps of an epoch, as data without a length have shown them."""
        self.freed: int | None = None
        """The step from which on the group learns, where that could not be known before."""
        if options.schedule != "cosine" and self._length.last_step() is None and self._length.seconds is None:
            length = "" if self._length.epoch_steps else "; the training data have no length"
            raise ConfigError(
                f"schedule={options.schedule!r} needs the number of steps, and this run has none"
                f" ({self._length.describe()}{length})."
                " Give trainer.max_steps, or trainer.limit_train_batches and max_epochs; or schedule='cosine'."
            )

    def measure_run(self) -> None:
        """Take the length of the run as it is known now."""
        self._length = run_length_of(self._trainer)

    @property
    def knows_epochs(self) -> bool:
        """Whether the training data have a length."""
        return bool(self._length.epoch_steps)

    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 0."""
        trainer, options, run = self._trainer, self._options, self._length
        if not run.epoch_steps and step > 0 and trainer.is_last_batch:
            self.measured = step / (trainer.current_epoch + 1)
        epoch = trainer.current_epoch + int(step > 0 and trainer.is_last_batch)
        start = run.first_step(options.freeze_epochs, self.measured) if self._waits else 0
        if start is None or (not run.epoch_steps and self._waits):
            if epoch < options.freeze_epochs:
                return 0.0
            self.freed = start = step if self.freed is None else self.freed
        length = run.epoch_steps[0] if run.epoch_steps else self.measured or 0
        warmup, total = round(options.warmup_epochs * length), self._total(step)
        if options.schedule == "one_cycle":
            return one_cycle_factor(step, total, start=start)
        return lr_factor(step, total, warmup=warmup, start=start, drops=options.lr_drops)

    def _total(self, step: int) -> float:
        """The step with which the schedule ends: infinity where nothing does."""
        last = self._length.last_step(self.measured)
        ends = [float(last)] if last is not None else []
        timer: Any = next((callback for callback in _callbacks(self._trainer) if isinstance(callback, Timer)), None)
        if timer is not None and self._length.seconds:
            share = timer.time_elapsed() / self._length.seconds
            ends.append(max(step + 1, step / share) if share > 0 and step > 0 else math.inf)
        return min(ends, default=math.inf)
