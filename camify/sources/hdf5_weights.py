"""HDF5 read as data: numbers and text of one file; nothing that points elsewhere, needs a plug-in or is a pickle."""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError, ConversionError

__all__ = ["Hdf5File", "import_h5py"]

_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
}  # others are programs that lie somewhere on the disk
_GROWTH, _SMALL = 20, 2**26  # weights are hardly ever compressed: bytes that a file may unpack to
_HEAP = b"GCOL\x01\0\0\0"
_LONGEST_TEXT = 2**25  # of an attribute
_MOST_PARTS = 64  # of a list of names, which Keras splits in parts of 64 kB


def import_h5py(source: str) -> ModuleType:
    """The library that reads HDF5.

    Raises:
        ConversionError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConversionError(
            f"{source}: h5py, which reads Keras files, cannot be imported ({error}). Install it: pip install"
            " 'camify[keras]'"
        ) from error
    module: ModuleType = h5py
    return module


class Hdf5File:
    """An HDF5 file open for reading.

    Args:
        content: its path or its bytes.
        size: of it, bytes.
        source: the file, for messages.

    Raises:
        CheckpointError: it is no HDF5 file, or damaged; every method raises this of what it reads.
    """

    def __init__(self, content: Path | BinaryIO, size: int, source: str) -> None:
        self.source, self._h5py = source, import_h5py(source)
        self._left = _GROWTH * size + _SMALL
        self._check_text(content)
        with self._reading("its content"):
            self.root = self._h5py.File(content, "r")

    def close(self) -> None:
        """Let the file go."""
        self.root.close()

    def item(self, parts: Sequence[str], group: Any = None) -> Any | None:
        """A group or data set by the names on the way to it; None where there is none."""
        with self._reading("/".join(parts)):
            item = self.root if group is None else group
            for part in parts:
                if not isinstance(item, self._h5py.Group) or part not in item:
                    return None
                self._require_hard(item, part)
                item = item[part]
            return item

    def names(self, group: Any) -> list[str]:
        """Of what a group holds."""
        with self._reading("a group"):
            return list(group) if isinstance(group, self._h5py.Group) else []

    def text(self, group: Any, name: str) -> str | None:
        """An attribute that holds text; None where there is none."""
        with self._reading(f"attribute {name}"):
            value = group.attrs.get(name)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if value is not None and (not isinstance(value, str) or len(value) > _LONGEST_TEXT):
            raise CheckpointError(f"{self.source}: attribute {name}: is no text of a usual length.")
        return value

    def texts(self, group: Any, name: str) -> list[str]:
        """An attribute that holds a list of names, which Keras may have split (``name0``, ``name1``, ...)."""
        with self._reading(f"attribute {name}"):
            values = [group.attrs[name]] if name in group.attrs else []
            for part in range(_MOST_PARTS):
                if values or f"{name}{part}" not in group.attrs:
                    break
                values += [group.attrs[f"{name}{part}"]]
            items = [item for value in values for item in value]
            return [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in items]

    def shape(self, dataset: Any, what: str) -> tuple[int, ...]:
        """Of a data set."""
        if not isinstance(dataset, self._h5py.Dataset):
            raise CheckpointError(f"{self.source}: {what}: the file does not hold it. Save the model again.")
        with self._reading(what):
            return tuple(map(int, dataset.shape or ()))

    def read(self, dataset: Any, shape: Sequence[int], what: str) -> Tensor:
        """The numbers of a data set, float32.

        Args:
            dataset: what ``item`` gave.
            shape: that it must have.
            what: it is, for messages.
        """
        stored = self.shape(dataset, what)
        if stored != tuple(shape):
            raise CheckpointError(
                f"{self.source}: {what}: has the shape {stored}, its layer takes {tuple(shape)}. The file contradicts"
                " itself."
            )
        with self._reading(what):
            self._require_plain(dataset, what)
            self._left -= int(dataset.nbytes)
            if self._left < 0:
                raise CheckpointError(
                    f"{self.source}: {what}: the weights unpack to more than {_GROWTH} times the file's size; such a"
                    " file is not read."
                )
            values = dataset[()]
        tensor = torch.from_numpy(values.reshape(stored).astype("float32", order="C"))
        if not bool(tensor.sum(dtype=torch.float64).isfinite()):
            raise CheckpointError(f"{self.source}: {what}: holds values that are NaN or infinite.")
        return tensor

    # ------------------------------------------------------------ what is not read

    def _check_text(self, content: Path | BinaryIO) -> None:
        """Refuse damaged collections of text: HDF5's own library would look for their end forever."""
        try:
            if not isinstance(content, Path):
                view = content.getbuffer() if isinstance(content, io.BytesIO) else memoryview(b"")
                damaged = _has_endless_text(bytes(view))
            else:
                with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    damaged = _has_endless_text(mapped)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.source}: cannot be read ({error}).") from error
        if damaged:
            raise CheckpointError(
                f"{self.source}: the file is damaged (a collection of text has no end). Copy it again."
            )

    def _require_hard(self, group: Any, name: str) -> None:
        link = group.get(name, getlink=True)
        if not isinstance(link, self._h5py.HardLink):
            where = f"{group.name}/{name}".strip("/")
            raise CheckpointError(f"{self.source}: {where}: is a link ({type(link).__name__}); links are not followed.")

    def _require_plain(self, dataset: Any, what: str) -> None:
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
        foreign = [str(number) for number in filters if number not in _FILTERS]
        reason = ""
        if dataset.is_virtual or dataset.external:
            reason = "its numbers lie in another file"
        elif foreign:
            reason = f"it is packed by a plug-in (filter {', '.join(foreign)})"
        elif dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
            reason = f"it holds {dataset.dtype}, not floats"
        if reason:
            raise CheckpointError(f"{self.source}: {what}: {reason}; that is not read. Save the model in float32.")

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # h5py raises whatever a damaged file makes HDF5 say
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.source}: {what}: cannot be read ({type(error).__name__}: {reason}). The file is damaged or no"
                " HDF5 file; copy or save it again."
            ) from error


def _has_endless_text(content: bytes | mmap.mmap) -> bool:
    """Whether a global heap (HDF5 file format, III.E) has an object of no size, or one that goes beyond it."""
    start = content.find(_HEAP)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", content, start + 8) if start + 16 <= len(content) else (0,)
        end, place = start + size, start + 16
        if size < 16 or end > len(content):
            return True
        while place + 16 <= end:
            index, _, _, count = struct.unpack_from("<HHIQ", content, place)
            step = count if index == 0 else 16 + -(-count // 8) * 8
            if step < 16 or place + step > end:
                return True
            place += step
        start = content.find(_HEAP, start + 8)
    return False
