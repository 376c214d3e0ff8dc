"""Images that are in the training data and are measured on as well: files of the same content."""

from __future__ import annotations

import filecmp
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .file_list import FileList

__all__ = ["leakage_notes"]

_COMPARED = 1_000  # images of a split that is measured on
_READ = 10_000  # training images, of those that have as many bytes
_END = 4_096  # bytes: pictures of one camera begin alike


def leakage_notes(splits: Mapping[str, FileList]) -> list[str]:
    """What has to be said of splits that share images with ``train``; nothing where there is no such split.

    Two files are one image where all their bytes are the same. Of each other split 1,000 images are compared, evenly
    chosen, with 10,000 training images at most, of those that have as many bytes as one of them.

    Args:
        splits: the files of each, by its name.
    """
    train = splits.get("train")
    if train is None or not len(train):
        return []
    notes = []
    for split, files in splits.items():
        if split == "train":
            continue
        compared = _evenly(np.arange(len(files)), _COMPARED)
        pairs = list(_same(files, compared, train))
        if pairs:
            first, its_copy = pairs[0]
            shown = f"{first} is {its_copy}" if first != its_copy else str(first)
            chosen = "" if len(compared) == len(files) else f" (of its {len(files)}, evenly chosen)"
            verb = "is a training image" if len(pairs) == 1 else "are training images"
            notes.append(
                f"{len(pairs)} of {len(compared)} images of {split}{chosen} {verb} too, with the same content: {shown}."
                f" What is measured on {split} looks better than it will be on new images"
            )
    return notes


def _same(files: FileList, compared: NDArray[np.int64], train: FileList) -> Iterator[tuple[Path, Path]]:
    """Each of the compared files that is a training file too, and that one."""
    sizes, train_sizes = files.stamps()[:, 0], train.stamps()[:, 0]
    as_many_bytes = _evenly(np.flatnonzero(np.isin(train_sizes, sizes[compared])), _READ)
    if not len(as_many_bytes):
        return
    by_end: dict[tuple[int, int], list[Path]] = {}
    for number in as_many_bytes.tolist():
        by_end.setdefault((int(train_sizes[number]), _end(train[number])), []).append(train[number])
    for number in compared[np.isin(sizes[compared], train_sizes[as_many_bytes])].tolist():
        path = files[number]
        for other in by_end.get((int(sizes[number]), _end(path)), []):
            if _equal(path, other):
                yield path, other
                break


def _evenly(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return numbers if len(numbers) <= most else numbers[np.arange(most) * len(numbers) // most]


def _end(path: Path) -> int:
    """A number of the last bytes of a file; -1 of one that is gone or may not be read, which is said elsewhere."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
            return zlib.crc32(file.read(_END))
    except OSError:
        return -1


def _equal(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
