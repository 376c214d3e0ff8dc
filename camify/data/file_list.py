"""A list of files that stays small: names in one piece of memory, some 10 bytes more than the name of each."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["FileList"]

_TOGETHER = 10_000  # names that are taken apart at once


class FileList(Sequence[Path]):
    """Paths below a folder, of which only the bytes of their names are kept.

    A list of a million ``Path`` takes some 400 MB, and processes that read it copy it: each access counts references.

    Args:
        folder: that all files lie below.
        names: relative to it, as the system spells them.

    Example:
        >>> files = FileList("data", ["a.png", "b/c.png"])
        >>> files[1].as_posix(), files.name(1), len(files)
        ('data/b/c.png', 'b/c.png', 2)
    """

    def __init__(self, folder: str | Path, names: Iterable[str] = ()) -> None:
        self.folder = Path(folder)
        parts, remaining = list[bytes](), iter(names)
        while some := list(islice(remaining, _TOGETHER)):
            parts.append(os.fsencode("\0".join(some)) + b"\0")  # which no name of a file holds
        self._encoded = np.frombuffer(b"".join(parts), dtype=np.uint8)
        self._ends = np.concatenate([[0], np.flatnonzero(self._encoded == 0) + 1])
        self._stamps: NDArray[np.int64] | None = None

    @classmethod
    def joined(cls, folder: str | Path, lists: Iterable[FileList]) -> FileList:
        """Several lists of files below one folder, one after the other."""
        folder = Path(folder)

        def names() -> Iterator[str]:
            for part in lists:
                below = part.folder.relative_to(folder)
                prefix = "" if below == Path() else f"{below}{os.sep}"
                yield from map(prefix.__add__, part.names())

        return cls(folder, names())

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> FileList: ...
    def __getitem__(self, index: int | slice) -> Path | FileList:
        """A path, or some of the files."""
        if isinstance(index, slice):
            first, end, step = index.indices(len(self))
            return self._part(first, max(first, end)) if step == 1 else self.taken(np.arange(len(self))[index])
        return self.folder / self.name(index)

    def __iter__(self) -> Iterator[Path]:
        return (self.folder / name for name in self.names())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {len(self)} files)"

    def name(self, index: int) -> str:
        """A file's name relative to the folder."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return os.fsdecode(self._encoded[self._ends[index] : self._ends[index + 1] - 1].tobytes())

    def names(self) -> Iterator[str]:
        """The names of all files, relative to the folder."""
        for first in range(0, len(self), _TOGETHER):
            end = min(first + _TOGETHER, len(self))
            text = os.fsdecode(self._encoded[self._ends[first] : self._ends[end] - 1].tobytes())
            yield from text.split("\0")

    def _part(self, first: int, end: int) -> FileList:
        """Files that lie next to each other, in the same memory."""
        part = type(self)(self.folder)
        part._encoded, part._ends = self._encoded, self._ends[first : end + 1]
        part._stamps = None if self._stamps is None else self._stamps[first:end]
        return part

    def stamps(self) -> NDArray[np.int64]:
        """Size in bytes and time of the last change in ns of every file (N, 2), when first asked; -1: gone."""
        if self._stamps is None:
            folder = f"{self.folder}{os.sep}"
            stamps = array("q", chain.from_iterable(_stamp(folder + name) for name in self.names()))
            self._stamps = np.array(stamps, np.int64).reshape(-1, 2)
        return self._stamps

    def taken(self, numbers: NDArray[np.int64] | Sequence[int]) -> FileList:
        """The files of these numbers, in this order."""
        return type(self)(self.folder, (self.name(int(number)) for number in numbers))


def _stamp(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)  # noqa: PTH116 - a million of them
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
