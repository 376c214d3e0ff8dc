"""``.pt2``: written by ``torch.export``, read as data.

``torch.export.load`` unpickles and evaluates what a file says, so camify never calls it. The archive is a zip of a JSON
graph and raw tensors; it is read as such, and its steps run one by one if each is a known tensor operation.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConversionError
from ..preprocessing import Preprocessing
from .metadata import RECORD, as_properties, read_record
from .pt2_operations import DTYPES, Steps
from .torch_export import quietly

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Pt2File", "write_pt2"]

_LARGEST_JSON = 256 * 2**20


def write_pt2(program: ExportedProgram, path: Path, record: Mapping[str, Any]) -> None:
    """Write a traced network as a pt2 archive; the record and its fields are extra files of it.

    Raises:
        ConversionError: torch cannot store the network.
    """
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    try:
        content = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
        with quietly():
            torch.export.save(program, content, extra_files=as_properties(record))
        path.write_bytes(content.getbuffer())
    except OSError:
        raise
    except Exception as error:  # the serializer raises whatever its parts raise
        reason = " ".join(str(error).split())[:300]
        raise ConversionError(f"pt2: torch cannot store the network ({type(error).__name__}: {reason}).") from error


class Pt2File:
    """A pt2 file of camify: its record, and what it gives for images; no pickle of the file is read.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, damaged, not written by camify, or names a step that is no known tensor
            operation.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path}: no such file.")
        try:
            with zipfile.ZipFile(path) as archive:
                self._read(archive, path)
        except CheckpointError as error:
            raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise CheckpointError(f"{path}: is no whole pt2 archive ({error}). Export it again.") from error
        except Exception as error:  # the file's values can make torch and Python raise anything
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: is malformed ({type(error).__name__}: {reason}).") from error

    def _read(self, archive: zipfile.ZipFile, path: str | Path) -> None:
        names = archive.namelist()
        root = names[0].split("/")[0] if names else ""
        if len(set(names)) < len(names) or not all(name.startswith(f"{root}/") for name in names):
            raise CheckpointError(f"{path}: is no pt2 archive: its entries do not lie in one folder, each once.")
        members = {name.removeprefix(f"{root}/") for name in names}
        extra = f"extra/{RECORD}"
        text = _text(archive, f"{root}/{extra}").decode() if extra in members else None
        self.record = read_record(text, path)
        if "models/model.json" not in members:
            raise CheckpointError(f"{path}: holds no models/model.json. Export it again, with torch >= 2.9.")
        graph_module = json.loads(_text(archive, f"{root}/models/model.json"))["graph_module"]
        tensors: dict[str, Tensor] = {}
        for kind, folder in (("weights", "data/weights"), ("constants", "data/constants")):
            config = json.loads(_text(archive, f"{root}/{folder}/model_{kind}_config.json"))["config"]
            tensors |= _tensors(archive, f"{root}/{folder}", config)
        preprocessing = Preprocessing.of(self.record["preprocessing"]) or Preprocessing()
        self.steps = Steps(
            graph_module, tensors, 4 * preprocessing.channels * preprocessing.height * preprocessing.width
        )
        if self.steps.count != len(self.record["outputs"]):
            raise CheckpointError(f"{path}: gives {self.steps.count} outputs, its {RECORD} says others.")

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs by name.

        Raises:
            CheckpointError: a step does not run on such images, gives no tensor, or needs far more memory than they.
        """
        try:
            return dict(zip(self.record["outputs"], self.steps(image), strict=True))
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        except Exception as error:  # the operations raise whatever the file's values make them raise
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.path}: does not run on {tuple(image.shape)} ({type(error).__name__}: {reason})."
            ) from error


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry that is small enough to be text, checked against its CRC."""
    if archive.getinfo(name).file_size > _LARGEST_JSON:
        raise CheckpointError(f"{archive.filename}: {name} is larger than {_LARGEST_JSON} bytes.")
    return archive.read(name)


def _tensors(archive: zipfile.ZipFile, folder: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The raw tensors of a folder of the archive."""
    storages: dict[str, bytearray] = {}
    tensors = {}
    for name, entry in config.items():
        file, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or not re.fullmatch(r"\w{1,100}", file, re.ASCII):
            raise CheckpointError(f"{archive.filename}: tensor {name} is stored as a pickle or under an odd name.")
        if file not in storages:
            if archive.getinfo(f"{folder}/{file}").compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{archive.filename}: {file} is compressed, which torch never does.")
            storages[file] = bytearray(archive.read(f"{folder}/{file}"))
        sizes, strides = ([int(value["as_int"]) for value in meta[key]] for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        flat = torch.frombuffer(storages[file], dtype=dtype) if storages[file] else torch.empty(0, dtype=dtype)
        tensors[name] = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"]))
    return tensors
