"""Several processes: who reads which sample, and what one of them does for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import Dataset

from ..ranks import Ranks

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


def made_by_first(make: Callable[[], Iterator[Item]], ranks: Ranks) -> Iterator[Item]:
    """Items that the first process makes, given to all one by one: nobody waits longer than for one of them.

    Raises:
        EndedElsewhere: in the others, where making them raises in the first.
    """
    if ranks.world_size == 1:
        yield from make()
        return
    items = make() if ranks.is_first else iter(())
    while given := ranks.first(lambda: list(islice(items, 1))):
        yield from given
