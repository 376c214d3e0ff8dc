"""Labels as a data set really yields them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..batch import Batch

__all__ = ["has_random_access", "read_labels", "spread"]

_COMPARED = 16  # samples by which a data set's own list is believed


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``total``, evenly spread."""
    return list(range(total)) if total <= count else [index * total // count for index in range(count)]


def has_random_access(loader: Any) -> bool:
    """Whether a loader's samples can be read by number: those of streams cannot, also of a known length."""
    dataset = getattr(loader, "dataset", None)
    known = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return known and not isinstance(dataset, IterableDataset) and getattr(loader, "batch_sampler", None) is not None


def read_labels(loader: Any, most: int | None = None) -> tuple[list[int], Tensor] | None:
    """Numbers of samples and their labels, (N,) or (N, K); None where the data have no length or no labels.

    The data set's own list (``labels`` or ``targets``: a list, a Tensor as in torchvision's MNIST, an array as in SVHN)
    is taken where some samples confirm it. It may stand before a target transform: then, and where there is no list,
    the samples themselves are read.

    Args:
        loader: its ``dataset`` and ``collate_fn`` are used; no batch of it is.
        most: read at most so many samples, evenly spread, where they must be read; None reads all.
    """
    dataset: Any = getattr(loader, "dataset", None)
    collate = getattr(loader, "collate_fn", None)
    if not has_random_access(loader) or collate is None or not len(dataset):
        return None
    listed = _listed(dataset)
    if listed is not None:
        numbers = spread(len(dataset), _COMPARED)
        read = _of_samples(dataset, collate, numbers)
        if read is None:
            return None
        if read.shape == listed[numbers].shape and torch.equal(read, listed[numbers].to(read.dtype)):
            return list(range(len(dataset))), listed
    numbers = list(range(len(dataset))) if most is None else spread(len(dataset), most)
    parts = [_of_samples(dataset, collate, numbers[first : first + 32]) for first in range(0, len(numbers), 32)]
    known = [part for part in parts if part is not None]
    return (numbers, torch.cat(known)) if len(known) == len(parts) else None


def _listed(dataset: Any) -> Tensor | None:
    own = getattr(dataset, "labels", None)
    own = getattr(dataset, "targets", None) if own is None else own
    if own is None:
        return None
    try:
        labels = torch.as_tensor(own)
    except (TypeError, ValueError, RuntimeError):  # names, or lists of unequal length
        return None
    return labels if labels.dim() in (1, 2) and len(labels) == len(dataset) else None


def _of_samples(dataset: Any, collate: Any, numbers: list[int]) -> Tensor | None:
    return Batch.of(collate([dataset[number] for number in numbers])).labels
