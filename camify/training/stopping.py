"""Ctrl-C and SIGTERM: training stops after the batch and keeps its state."""

from __future__ import annotations

import signal
import threading
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ..console import console
from .checkpoint_files import keep_checkpoints_whole
from .loaders import is_dry_run
from .run_folder import run_folder

__all__ = ["StopSafely"]


class StopSafely(pl.Callback):
    """On SIGTERM and Ctrl-C leaves ``last.ckpt`` of the very batch in the run's folder; the run can go on from there.

    What comes in the last batch of an epoch or during validation waits for the end of the epoch, which is kept. A
    second Ctrl-C stops at once. Of several processes one may get the signal: all stop after the same batch.
    ``train.py`` exits with 143 or 130.
    """

    def __init__(self) -> None:
        self._signal = signal.SIGTERM
        self._requested = False  # in this process
        self._agreed = False  # in all
        self._handlers_before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Checkpoints are written whole on every filesystem, and read without running code."""
        keep_checkpoints_whole(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """From here on signals wait for the batch; before, nothing is lost."""
        if threading.current_thread() is not threading.main_thread():
            return
        handle = partial(self._request, trainer)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers_before[signal.SIGINT] = signal.signal(signal.SIGINT, handle)
        of_the_user = callable(trainer._signal_connector._original_handlers.get(signal.SIGTERM))
        if not of_the_user:
            # Lightning's own handler leaves other processes waiting, and ends validation with nothing kept; of a job
            # of SLURM that it is to queue again it heeds no SIGTERM at all.
            self._handlers_before[signal.SIGTERM] = signal.signal(signal.SIGTERM, handle)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop where one of the processes was asked to."""
        self._agree(trainer, now=not trainer.is_last_batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Validation is not cut off: what stands before it could not be kept."""
        if self._agreed:
            trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop after a validation within an epoch."""
        if self._agreed:
            trainer._signal_connector.received_sigterm = not trainer.is_last_batch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop when the epoch's checkpoints are written."""
        self._agree(trainer, now=True)

    def _agree(self, trainer: pl.Trainer, *, now: bool) -> None:
        self._agreed = self._requested
        if trainer.world_size > 1:
            self._agreed = trainer.strategy.reduce_boolean_decision(self._requested, all=False)
        if self._agreed:
            trainer._signal_connector.received_sigterm = now  # Lightning's loops look for it

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Signals do what they did before."""
        self._restore(*tuple(self._handlers_before))

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, self._handlers_before.pop(number))

    def _request(self, trainer: pl.Trainer, number: int, frame: Any) -> None:  # noqa: ARG002 - of signal handlers
        self._signal, self._requested = signal.Signals(number), True
        if hasattr(signal, "SIGCHLD"):  # loading processes may have got the signal too: their end is no error now
            signal.signal(
                signal.SIGCHLD, _nothing
            )  # not SIG_DFL: of a signal on its way Python would write a traceback
        if self._signal is signal.SIGINT:
            self._restore(signal.SIGINT)
            if trainer.is_global_zero:
                console().print("\nCtrl-C: training stops after this batch and keeps its state. Once more: at once.")
        if trainer.world_size == 1 and trainer.training and not trainer.is_last_batch:
            self._agreed = trainer._signal_connector.received_sigterm = True

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        exception: BaseException,
    ) -> None:
        """Save, unless nothing is to be kept."""
        self._restore(*tuple(self._handlers_before))
        if not isinstance(exception, SIGTERMException):
            return
        exception.signal = self._signal  # type: ignore[attr-defined]  # for the exit code
        if trainer.state.fn != "fit" or is_dry_run(trainer):
            return
        if trainer.training and trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(run_folder(trainer) / "last.ckpt")


def _nothing(*_: object) -> None:
    """A handler of signals that have nothing to say."""
