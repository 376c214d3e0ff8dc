"""Several processes: who reads which sample, and what one of them does for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import Dataset

from ..errors import CamifyError, DataError

__all__ = ["each_once", "made_by_first"]

Item = TypeVar("Item")


def each_once(dataset: Dataset[Any], trainer: pl.Trainer | None) -> UnrepeatedDistributedSampler | None:
    """For measuring in several processes: every sample in exactly one of them, in order; None in a single process.

    Lightning's own sampler repeats some to give every process as many, which counts them twice.
    """
    if trainer is None or trainer.world_size == 1:
        return None
    return UnrepeatedDistributedSampler(
        dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False
    )


def made_by_first(make: Callable[[], Iterator[Item]], trainer: pl.Trainer | None) -> Iterator[Item]:
    """Items that the first process makes, given to all one by one: nobody waits longer than for one of them.

    Raises:
        CamifyError: as making them raises; in the other processes a DataError of the same words.
    """
    if trainer is None or trainer.world_size == 1:
        yield from make()
        return
    items = make() if trainer.is_global_zero else None
    while True:
        state: tuple[str, Any] = ("end", None)
        if items is not None:
            try:
                state = next((("item", item) for item in items), state)
            except CamifyError as error:
                trainer.strategy.broadcast(("error", str(error)))
                raise
        kind, value = trainer.strategy.broadcast(state)
        if kind == "error":
            raise DataError(value)
        if kind == "end":
            return
        yield value
