"""Loggers that never stop training: the first failure of a method is named, then the method is silent."""

from __future__ import annotations

import inspect
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_warn

from ..console import shown

__all__ = ["guard_loggers"]

_CALLED = ("save", "after_save_checkpoint", "finalize", "watch", "unwatch")  # and everything that is called log_...


class _Guarded:
    """A method of one logger that never raises. It stands in the logger itself, which stays of its own type."""

    def __init__(self, logger: Logger, method: str) -> None:
        self.logger, self.method, self.has_failed = logger, method, False
        self.own = vars(logger).get(method)  # one that was set on the logger itself

    def __call__(self, *given: Any, **options: Any) -> Any:
        """What the method gives; None after its first failure."""
        if self.has_failed:
            return None
        try:
            if self.own is not None:
                return self.own(*given, **options)
            return getattr(type(self.logger), self.method)(self.logger, *given, **options)
        except Exception as error:  # noqa: BLE001 - a logger never stops training
            self.has_failed = True
            _name(f"{type(self.logger).__name__}.{self.method}", error, "It is not called again.")
            return None


def guard_loggers(trainer: pl.Trainer) -> None:
    """Let no logger of a trainer stop its training.

    Every method by which Lightning or camify hands a logger something (``log_...``, ``save``, ``finalize``, ...) is
    guarded: what it raises becomes one warning, and the method is silent from then on. A logger that cannot even begin
    is left out. Guarding twice changes nothing.
    """
    # In the order in which the trainer begins them.
    order = sorted(trainer.loggers, key=lambda logger: not isinstance(logger, WandbLogger))
    usable = {id(logger) for logger in order if _begins(logger)}
    if len(usable) < len(order):
        kept = [logger for logger in trainer.loggers if id(logger) in usable]
        trainer.loggers = kept or [DummyLogger()]  # some callbacks refuse to be without one
    for logger in trainer.loggers:
        for name in {*dir(type(logger)), *vars(logger)}:
            if not (name.startswith("log_") or name in _CALLED):
                continue
            method = inspect.getattr_static(logger, name)
            # No property, such as log_dir, and nothing that is guarded already.
            if inspect.isfunction(method) or (name in vars(logger) and inspect.ismethod(method)):
                setattr(logger, name, _Guarded(logger, name))


def _begins(logger: Logger) -> bool:
    """Whether its experiment can be begun, which the trainer does next, unguarded."""
    try:
        getattr(logger, "experiment", None)
    except Exception as error:  # noqa: BLE001 - a logger never stops training
        _name(type(logger).__name__, error, "It is left out.")
        return False
    return True


def _name(what: str, error: Exception, consequence: str) -> None:
    rank_zero_warn(shown(f"{what} failed ({type(error).__name__}: {error}). {consequence} Training goes on."))
