"""HDF5 read as data: numbers and text of one file; nothing that points elsewhere, needs a plug-in or is a pickle."""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, ConversionError

__all__ = ["Hdf5File", "import_h5py"]

_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
}  # others are programs that lie somewhere on the disk
_GROWTH, _SMALL = 20, 2**26  # weights are hardly ever compressed: bytes that a file may unpack to
_HEAP = b"GCOL\x01\0\0\0"
_TEXTS_OF_ANY_LENGTH = 9  # of HDF5's classes of data
_LONGEST_TEXT = 2**25  # of an attribute
_DEEPEST, _MOST_DATASETS = 16, 10_000  # in the group of a layer


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

    def __init__(self, content: Path | io.BytesIO, size: int, source: str) -> None:
        self.source, self._h5py = source, import_h5py(source)
        self._left = _GROWTH * size + _SMALL
        with self._reading("its content"):
            if isinstance(content, io.BytesIO):
                self._bytes: bytes | mmap.mmap = content.getvalue()
            else:
                with content.open("rb") as file:
                    self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._texts = _Texts(self._bytes)
            self.root = self._h5py.File(content, "r")

    def close(self) -> None:
        """Let the file go."""
        self.root.close()
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()

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

    def text(self, name: str) -> str | None:
        """An attribute of the file that holds text; None where there is none.

        It is taken out of the file's bytes: HDF5's own library trusts the lengths that stand there.
        """
        value: Any = None
        with self._reading(f"attribute {name}"):
            if name not in self.root.attrs:
                return None
            is_variable = self._h5py.h5a.open(self.root.id, name.encode()).dtype.kind == "O"
            value = self._texts.of_attribute(name.encode()) if is_variable else self.root.attrs[name]
            value = value.decode("utf-8") if isinstance(value, bytes) else value
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
            raise CheckpointError(
                f"{self.source}: attribute {name}: is no text of a usual length. The file is damaged."
            )
        return value

    def has_attribute(self, name: str) -> bool:
        """Whether the file has an attribute of a name."""
        with self._reading(f"attribute {name}"):
            return name in self.root.attrs

    def datasets(self, group: Any, depth: int = 0) -> list[str]:
        """The paths of all data sets in a group."""
        paths: list[str] = []
        for name in self.names(group) if depth < _DEEPEST else []:
            item = self.item((name,), group)
            inner = self.datasets(item, depth + 1)
            paths += [f"{name}/{path}" for path in inner] if isinstance(item, self._h5py.Group) else [name]
            if len(paths) > _MOST_DATASETS:
                raise CheckpointError(f"{self.source}: more than {_MOST_DATASETS} weights in a group are not read.")
        return paths

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


class _Texts:
    """The texts of an HDF5 file (its global heaps, HDF5 file format III.E), by where they stand.

    Args:
        content: the file.

    Raises:
        ValueError: a heap has an object of no size, for whose end HDF5's library would look forever, or one that goes
            beyond it.
    """

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self.content = content
        self.heaps: dict[int, dict[int, tuple[int, int]]] = {}
        start = content.find(_HEAP)
        while start >= 0:
            self.heaps[start] = self._objects(start)
            start = content.find(_HEAP, start + 8)

    def _objects(self, start: int) -> dict[int, tuple[int, int]]:
        objects = {}
        (size,) = struct.unpack_from("<Q", self.content, start + 8) if start + 16 <= len(self.content) else (0,)
        end, place = start + size, start + 16
        if size < 16 or end > len(self.content):
            raise ValueError("a collection of text has no end")
        while place + 16 <= end:
            index, _, _, count = struct.unpack_from("<HHIQ", self.content, place)
            step = count if index == 0 else 16 + -(-count // 8) * 8
            if step < 16 or place + step > end:
                raise ValueError("a collection of text has no end")
            objects[index] = (place + 16, count)
            place += step
        return objects

    def of_attribute(self, name: bytes) -> bytes | None:
        """The text that the first attribute of a name refers to; None where it refers to none."""
        place = self.content.find(name)
        while place >= 0:
            for length, heap, index in self._references(place):
                start, size = self.heaps.get(heap, {}).get(index, (0, -1))
                return self.content[start : start + size].rstrip(b"\0") if size == length else None
            place = self.content.find(name, place + 1)
        return None

    def _references(self, place: int) -> Iterator[tuple[int, int, int]]:
        """Lengths, heaps and numbers of the texts of the attribute whose name stands at a place (IV.A.2.m there)."""
        for version, header, unit in ((1, 8, 8), (2, 8, 1), (3, 9, 1)):
            start = place - header
            if start < 0 or self.content[start] != version:
                continue
            sizes = [-(-size // unit) * unit for size in struct.unpack_from("<HHH", self.content, start + 2)]
            kind = place + sizes[0]
            space, values = kind + sizes[1], kind + sizes[1] + sizes[2]
            if values > len(self.content) or self.content[kind] & 15 != _TEXTS_OF_ANY_LENGTH:
                continue
            first = {1: 8, 2: 4}.get(self.content[space], 0)
            rank = self.content[space + 1]
            if not first or space + first + 8 * rank > len(self.content):
                continue
            count = math.prod(struct.unpack_from(f"<{rank}Q", self.content, space + first))
            if values + 16 * count > len(self.content):
                raise ValueError("has more texts than the file")
            for number in range(count):
                yield struct.unpack_from("<IQI", self.content, values + 16 * number)
