"""Loading processes that stay from epoch to epoch, and draw the same again where a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

__all__ = ["TrainingLoader", "seed_sample"]

_LARGEST = 2**62


class TrainingLoader(DataLoader[Any]):
    """Batches of samples that chance changes: each draws from a seed of the epoch and its number.

    Loading processes that stay would otherwise draw on from epoch to epoch, which a resumed run could not repeat. The
    epoch's seed is drawn where the epoch begins, and lies in memory that all processes share (``epoch_seed`` of the
    data set). Without loading processes samples draw from the process's own generator, as usual.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch."""
        seed = getattr(self.dataset, "epoch_seed", None)
        if self.num_workers > 0 and isinstance(seed, Tensor):
            seed.fill_(int(torch.randint(_LARGEST, ())))
        return super().__iter__()


def seed_sample(epoch_seed: Tensor, number: int) -> None:
    """In a loading process, let what is drawn for a sample depend on the epoch and its number alone."""
    if get_worker_info() is not None:
        torch.manual_seed((int(epoch_seed) * 1_000_003 + number) % _LARGEST)
