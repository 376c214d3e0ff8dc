"""What training need not wait for: one thread per run, in order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
import torch

__all__ = ["Background"]

_T = TypeVar("_T")


class Background:
    """The thread of one trainer; jobs of all its callbacks run one after the other, in the order they are handed over.

    A job holds everything it needs, and nobody changes that any more. What it raises is raised where its result
    is asked for. Also where the process ends without asking, Python's own end waits for what was handed over; only a
    killed process leaves jobs undone.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Background:
        """That of a trainer."""
        return _THREADS.setdefault(trainer, cls())

    def start(self, job: Callable[[], _T]) -> Future[_T]:
        """Hand a job over."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "camify-background")
        return self._thread.submit(torch.no_grad()(job))  # such modes are a thread's own

    def finish(self) -> None:
        """Wait until everything is done, and end the thread; the next job gets a new one."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


_THREADS: WeakKeyDictionary[pl.Trainer, Background] = WeakKeyDictionary()
