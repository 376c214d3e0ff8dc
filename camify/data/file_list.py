"""A list of files that stays small: names in one piece of memory, some 10 bytes more than the name of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["FileList"]


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
        encoded, ends = bytearray(), [0]
        for name in names:
            encoded += os.fsencode(name)
            ends.append(len(encoded))
        self._encoded = np.frombuffer(bytes(encoded), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)
        self._stamps: NDArray[np.int64] | None = None

    @classmethod
    def joined(cls, folder: str | Path, lists: Iterable[FileList]) -> FileList:
        """Several lists of files below one folder, one after the other."""
        folder = Path(folder)
        parts = list(lists)
        names = (
            name
            for part in parts
            for prefix in [part.folder.relative_to(folder)]
            for name in (part.names() if prefix == Path() else (f"{prefix}{os.sep}{name}" for name in part.names()))
        )
        return cls(folder, names)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> FileList: ...
    def __getitem__(self, index: int | slice) -> Path | FileList:
        """A path, or some of the files."""
        if isinstance(index, slice):
            return self.taken(np.arange(len(self))[index])
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
        return os.fsdecode(self._encoded[self._ends[index] : self._ends[index + 1]].tobytes())

    def names(self) -> Iterator[str]:
        """The names of all files, relative to the folder."""
        encoded, first = self._encoded.tobytes(), 0
        for end in self._ends[1:].tolist():
            yield os.fsdecode(encoded[first:end])
            first = end

    def stamps(self) -> NDArray[np.int64]:
        """Size in bytes and time of the last change in ns of every file (N, 2), when first asked; -1: gone."""
        if self._stamps is None:
            self._stamps = np.full((len(self), 2), -1, np.int64)
            folder = f"{self.folder}{os.sep}"
            for number, name in enumerate(self.names()):
                with suppress(OSError):
                    status = os.stat(folder + name)  # noqa: PTH116 - a million of them
                    self._stamps[number] = status.st_size, status.st_mtime_ns
        return self._stamps

    def taken(self, numbers: NDArray[np.int64] | Sequence[int]) -> FileList:
        """The files of these numbers, in this order."""
        return type(self)(self.folder, (self.name(int(number)) for number in numbers))
