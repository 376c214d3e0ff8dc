"""A file of a Keras model as data: the description of its layers, and their weights by layer and name."""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CheckpointError, ConversionError
from .config import KerasLayer
from .hdf5 import Hdf5File, import_h5py

__all__ = ["KerasFile"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LARGEST = {_CONFIG: 2**25, _METADATA: 2**16}
_GROWTH, _SMALL = 20, 2**26  # of an entry against the archive: Keras does not compress
_FORMER: dict[str, tuple[str, ...]] = {
    "kernel": ("depthwise_kernel",),
    "moving_mean": ("running_mean",),
    "moving_variance": ("running_std",),
}
"""What weights were called in files of Keras 2."""
_SAVE = 'Save the whole model where it was trained: model.save("model.keras").'


class KerasFile:
    """A ``.keras`` archive (or folder), or an ``.h5`` file with its model.

    Attributes:
        config: how the model is described, ``class_name`` and ``config``.
        keras: major version of the Keras that wrote it.

    Raises:
        ConversionError: h5py is missing, or the file holds weights alone.
        CheckpointError: it is missing, damaged or no Keras file.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        import_h5py(self.source)
        if not path.exists():
            raise CheckpointError(f"{path}: no such file.")
        self.is_archive = path.is_dir() or not _begins_as_hdf5(path)
        if self.is_archive:
            entries = _read_folder(path) if path.is_dir() else _read_archive(path)
            content = entries.pop(_WEIGHTS)
            self._weights = Hdf5File(io.BytesIO(content), len(content), f"{path}, {_WEIGHTS}")
            self.config = _json(entries[_CONFIG], path, _CONFIG)
            version = _json(entries.get(_METADATA, b"{}"), path, _METADATA).get("keras_version")
        else:
            self._weights = Hdf5File(path, path.stat().st_size, self.source)
            self.config, version = self._read_attributes(path)
        major = re.match(r"\d+", str(version or ""))
        self.keras = int(major[0][:4]) if major else 2

    def close(self) -> None:
        """Let the file go."""
        self._weights.close()

    def weights(self, layer: KerasLayer, shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, Tensor]:
        """The weights of a layer, float32.

        Args:
            layer: whose.
            shapes: their names, in the order in which Keras makes them, and their shapes; None: not read, it only has
                its place.

        Raises:
            CheckpointError: one is missing, damaged or of another shape.
        """
        datasets = self._of_archive(layer, list(shapes)) if self.is_archive else self._of_h5(layer, list(shapes))
        return {
            name: self._weights.read(datasets[name], shape, f"layer {layer.name}, {name}")
            for name, shape in shapes.items()
            if shape is not None
        }

    # ------------------------------------------------------------ where they lie

    def _of_archive(self, layer: KerasLayer, names: list[str]) -> dict[str, Any]:
        file = self._weights
        group = file.item((*layer.path, "vars"))
        entries = file.names(group) if group is not None else []
        if len(entries) != len(names):
            raise CheckpointError(self._counted(layer, len(entries), len(names)))
        return {name: file.item((str(index),), group) for index, name in enumerate(names)}

    def _of_h5(self, layer: KerasLayer, names: list[str]) -> dict[str, Any]:
        """By the names of the layer and the weight, in the group of the layer of the outermost model."""
        file = self._weights
        group = file.item(("model_weights", *layer.outer.split("/")))
        stored = file.datasets(group) if group is not None else []
        own = layer.outer == layer.name
        held = sum(path.rpartition("/")[0] == layer.name for path in stored)  # a layer "a" can have one "a/b" in it
        if own and held > len(names):
            raise CheckpointError(self._counted(layer, held, len(names)))
        datasets = {}
        for name in names:
            fitting: list[str] = []
            for one in (name, *_FORMER.get(name, ())):
                fitting = fitting or [path for path in stored if _is_named(path, f"{layer.name}/{one}")]
                fitting = fitting or [path for path in stored if own and _is_named(path, one)]
            if len(fitting) != 1:
                several = f"{len(fitting)} weights of that name" if fitting else "no such weight"
                raise CheckpointError(
                    f"{self.source}: layer {layer.name}, {name}: {layer.outer} has {several}. {_SAVE}"
                )
            datasets[name] = file.item(fitting[0].split("/"), group)
        return datasets

    def _counted(self, layer: KerasLayer, held: int, expected: int) -> str:
        return (
            f"{self.source}: layer {layer.name} ({layer.kind}): the file holds {held} weights, it takes {expected}."
            f" {_SAVE}"
        )

    def _read_attributes(self, path: Path) -> tuple[dict[str, Any], str | None]:
        file = self._weights
        text = file.text("model_config")
        if text is None or file.item(("model_weights",)) is None:
            names = file.names(file.root)
            if {"layers", "_layer_checkpoint_dependencies"} & set(names) or file.has_attribute("layer_names"):
                raise ConversionError(
                    f"{path}: holds the weights of a Keras model without its layers. {_SAVE} Or build it, then"
                    f' model.load_weights("{path.name}") and model.save("model.keras").'
                )
            raise CheckpointError(f"{path}: is an HDF5 file, but holds no Keras model. {_SAVE}")
        version = file.text("keras_version")
        return _json(text, path, "model_config"), version


def _is_named(text: str, name: str) -> bool:
    """Whether a path ends in a name; Keras 2 puts ``:0`` behind it."""
    text = text.removesuffix(":0")
    return text == name or text.endswith(f"/{name}")


def _begins_as_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _json(text: str | bytes, path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what}: not valid JSON ({str(error)[:200]}). Save the model again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: {what}: describes no Keras model. {_SAVE}")
    return content


def _read_folder(path: Path) -> dict[str, bytes]:
    entries = {}
    for name in (_CONFIG, _METADATA, _WEIGHTS):
        file = path / name
        try:
            if file.is_file() and file.stat().st_size <= _LARGEST.get(name, file.stat().st_size):
                entries[name] = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}).") from error
    _require_entries(entries, path)
    return entries


def _read_archive(path: Path) -> dict[str, bytes]:
    size = path.stat().st_size
    entries = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in (_CONFIG, _METADATA, _WEIGHTS):
                if name not in archive.namelist():
                    continue
                unpacked = archive.getinfo(name).file_size
                if unpacked > min(_LARGEST.get(name, 2**63), _GROWTH * size + _SMALL):
                    raise CheckpointError(f"{path}: {name} unpacks to {unpacked} bytes; such an archive is not read.")
                with archive.open(name) as entry:
                    entries[name] = entry.read(unpacked)
                    entry.read(1)  # checks the sum
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: is neither a .keras archive nor an HDF5 file, or damaged ({error}).") from error
    except (OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{path}: the archive is damaged ({type(error).__name__}: {error}).") from error
    _require_entries(entries, path)
    return entries


def _require_entries(entries: Mapping[str, bytes], path: Path) -> None:
    missing = [name for name in (_CONFIG, _WEIGHTS) if name not in entries]
    if missing:
        raise CheckpointError(f"{path}: is no whole Keras model: {' and '.join(missing)} missing. {_SAVE}")
