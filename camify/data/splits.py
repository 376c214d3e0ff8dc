"""Training, validation and test images: what they are called, and how a part is set aside where nobody did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .labeled_images import LabeledFiles, LabelSets

__all__ = ["SPLITS", "SPLIT_NAMES", "class_order", "set_aside", "with_val"]

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
"""How they are usually called, in small letters, by number in ``SPLITS``."""


def class_order(names: Iterable[str]) -> list[str]:
    """Classes sorted by name; by number where all are numbers.

    Example:
        >>> class_order(["10", "9"]), class_order(["b", "10", "a"])
        (['9', '10'], ['10', 'a', 'b'])
    """
    listed = list(names)
    numbers = all(name.isascii() and name.isdecimal() for name in listed)
    return sorted(listed, key=int) if numbers else sorted(listed)


def with_val(
    parts: Mapping[str, LabeledFiles], share: float, seed: int, source: str
) -> tuple[dict[str, LabeledFiles], list[str]]:
    """The splits, with a share of the training images set aside for validation where there are none; and a note then.

    Args:
        parts: by name; ``train`` at least.
        share: see ``set_aside``.
        seed: likewise.
        source: where the images are from, for the note.

    Raises:
        ConfigError: the share does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise ConfigError(f"val_share={share} must lie between 0 and 1.")
    if "val" in parts:
        return dict(parts), []
    train = parts["train"]
    aside = set_aside(train.labels, share, seed)
    note = (
        f"{source}: names no validation images, so {int(aside.sum())} of {len(aside)} training images were set aside"
        f" (val_share={share:g}, split_seed={seed})"
    )
    order = {**parts, "train": train.taken(np.flatnonzero(~aside)), "val": train.taken(np.flatnonzero(aside))}
    return {split: order[split] for split in SPLITS if split in order}, [note]


def set_aside(labels: NDArray[Any] | Sequence[int] | LabelSets, share: float, seed: int) -> NDArray[np.bool_]:
    """Which images are set aside for validation: of each class that share, drawn with the seed, at least one of two.

    Of several labels an image, that share of all.

    Args:
        labels: numbers of classes (N,), or several each.
        share: in (0, 1).
        seed: of the draw.
    """
    count = len(labels)
    groups = np.zeros(count, np.int64) if isinstance(labels, LabelSets) else np.asarray(labels)
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(groups[order], kind="stable")]
    aside = np.zeros(count, bool)
    first = 0
    for members in np.unique(groups, return_counts=True)[1].tolist():
        aside[order[first : first + max(round(members * share), int(members > 1))]] = True
        first += members
    return aside
