"""What callbacks ask a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset
from torch.utils.data.distributed import DistributedSampler

from ..batch import Batch
from ..progress import tracked
from ..ranks import ONE, Ranks
from .labels import has_random_access, spread

__all__ = [
    "CHUNK",
    "count_batches",
    "count_samples",
    "has_boxes",
    "indexed",
    "is_dry_run",
    "read_images",
    "single_loader",
    "some_batches",
    "told",
    "whole_split",
]


_Item = TypeVar("_Item")
_PATIENCE = 3.0  # seconds
CHUNK = 32  # samples of a batch of `some_batches`
_KEPT = 128  # samples of a stream


def is_dry_run(trainer: pl.Trainer) -> bool:
    """Whether this is ``fast_dev_run``: nothing is kept of it."""
    return bool(getattr(trainer, "fast_dev_run", False))


def single_loader(loaders: Any) -> Any:
    """The first of several loaders, or the one there is."""
    return loaders[0] if isinstance(loaders, list | tuple) else loaders


class FirstSamples(Dataset[Any]):
    """The first samples of a stream, kept: what looks at single samples again and again takes these."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


_first_samples: WeakKeyDictionary[Any, FirstSamples] = WeakKeyDictionary()


def indexed(loaders: Any) -> Any:
    """The loader whose samples can be asked for by number: of a stream one of its first 128 samples.

    They are read once, in this process, as they stand there: shards are written in the order of chance. No random
    numbers are drawn.
    """
    loader = single_loader(loaders)
    stream = getattr(loader, "dataset", None)
    if not isinstance(stream, IterableDataset) or getattr(loader, "collate_fn", None) is None:
        return loader
    kept = _first_samples.get(stream)
    if kept is None:
        with isolate_rng():
            kept = _first_samples[stream] = FirstSamples(list(islice(iter(stream), _KEPT)))
    return DataLoader(kept, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def count_samples(loaders: Any) -> int | None:
    """Number of samples behind a loader, or None where it is not known."""
    dataset: Any = getattr(single_loader(loaders), "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None


def has_boxes(loaders: Any) -> bool:
    """Whether some sample may have a box: True unless a single data set says that none has."""
    several = isinstance(loaders, list | tuple) and len(loaders) > 1
    return several or bool(getattr(getattr(single_loader(loaders), "dataset", None), "has_boxes", True))


def read_images(loader: Any, numbers: Sequence[int]) -> Tensor:
    """The images (N, C, H, W) of a loader's samples by number, as the network takes them."""
    return Batch.of(loader.collate_fn([loader.dataset[number] for number in numbers])).images


def told(items: Iterable[_Item], label: str, total: int | None, ranks: Ranks) -> Iterator[_Item]:
    """The items of a pass outside the epochs; of one that takes long it is said how far it is, by the first process."""
    return tracked(items, label, total if ranks.is_first else None, patience=_PATIENCE)


def count_batches(loader: Any) -> int | None:
    """Number of batches of a loader, or None where it is not known."""
    try:
        return len(single_loader(loader))
    except TypeError:
        return None


def some_batches(loader: Any, most: int, ranks: Ranks = ONE) -> Iterator[Batch]:
    """At most so many samples, evenly spread; of data without length, or whose samples are batches, the first batches.

    Of several processes each gets its part. Random numbers are drawn: isolate them where that matters.
    """
    if not has_random_access(single_loader(loader)):
        seen = 0
        for given in loader:
            batch = Batch.of(given)
            yield batch
            seen += len(batch)
            if seen * ranks.world_size >= most:
                return
        return
    dataset = single_loader(loader).dataset
    numbers = ranks.share(spread(len(dataset), most))
    for first in range(0, len(numbers), CHUNK):
        yield Batch.of(loader.collate_fn([dataset[number] for number in numbers[first : first + CHUNK]]))


def whole_split(loaders: Any, rank: int = 0, world_size: int = 1, *, every: int = 1) -> Any:
    """A loader's samples in order, each once; of several processes each one's own part, every ``world_size``-th.

    A loader that neither shuffles nor shares its samples among processes, or that has a way of its own, is taken as it
    is.

    Args:
        loaders: a loader, or several of which the first one is taken.
        rank: of this process.
        world_size: number of processes.
        every: take every so many-th sample alone.
    """
    loader = single_loader(loaders)
    sampler = getattr(loader, "sampler", None)
    shuffles = type(sampler) is RandomSampler and not sampler.replacement
    if not has_random_access(loader):
        return loader
    if not isinstance(sampler, DistributedSampler) and not shuffles and every == 1:
        return loader
    data = loader.dataset
    step = every * world_size
    return DataLoader(
        data if step == 1 else Subset(data, range(rank * every, len(data), step)),
        batch_size=loader.batch_size or CHUNK,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )
