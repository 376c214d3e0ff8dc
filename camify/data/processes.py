"""Several processes: who reads which sample."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import Dataset

__all__ = ["each_once"]


def each_once(dataset: Dataset[Any], trainer: pl.Trainer | None) -> UnrepeatedDistributedSampler | None:
    """For measuring in several processes: every sample in exactly one of them, in order; None in a single process.

    Lightning's own sampler repeats some to give every process as many, which counts them twice.
    """
    if trainer is None or trainer.world_size == 1:
        return None
    return UnrepeatedDistributedSampler(
        dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False
    )
