"""The folder of ``camify explain``: what it was made with, which images are done, and who writes into it now."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ..checkpoint.folder import file_sha256
from ..errors import ConfigError
from ..exporters.onnx_file import OnnxFile
from ..exporters.pt2_file import Pt2File
from ..files import EXPLAINED as SETTINGS
from ..files import claim, slug, write_whole

__all__ = ["ExplainedFolder", "file_stamp", "model_sha256"]

RESULTS, LOCK = "results.jsonl", ".explain.lock"
_MODEL = "model_sha256"
_ANEW = "Choose another --out, or add --overwrite true."


def model_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's kinds of layers, its tensors and, where it is an exported file, of that file."""
    digest = hashlib.sha256()
    for module in model.modules():
        digest.update(f"{type(module).__module__}.{type(module).__qualname__}\n".encode())
        file = getattr(module, "file", None)
        if isinstance(file, OnnxFile | Pt2File):
            digest.update(file_sha256(file.path).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return digest.hexdigest()


def file_stamp(path: Path) -> dict[str, Any]:
    """What tells an image file from another one, or from itself when it has changed."""
    try:
        status = path.stat()
    except OSError:  # it is said where the file is read
        return {"path": str(path.resolve()), "bytes": None, "mtime_ns": None}
    return {"path": str(path.resolve()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


@dataclass
class ExplainedFolder:
    """The results of a run, here or to come; a context that keeps others from writing.

    Nothing is written before ``begin``.

    Attributes:
        folder: where it is, or will be.
        settings: what it is made with, as JSON has it.
        overwrite: begin anew in a folder of another run.
        rows: the results so far, in order: those of a run that stopped whose lines and files are whole.
        notes: what has to be said about them.
    """

    folder: Path
    settings: dict[str, Any]
    overwrite: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _goes_on: bool = False
    _lock: int | None = None
    _file: IO[str] | None = None

    def __enter__(self) -> ExplainedFolder:
        """Read what is there.

        Raises:
            ConfigError: it is another run's, or somebody writes into it now.
        """
        self.settings = json.loads(json.dumps(self.settings))
        if (self.folder / SETTINGS).is_file():
            self._take()
            try:
                if not self.overwrite:
                    self._compare()
                    self._goes_on = True
                    self.rows = self._read_rows()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            os.close(self._lock)

    def _take(self) -> None:
        """Keep others out until the end, also where this process is killed: the lock is the operating system's."""
        (self.folder / LOCK).touch()
        self._lock = claim(self.folder / LOCK)
        if self._lock is None:
            raise ConfigError(
                f"{self.folder}: another camify explain is writing there. Wait for it, or choose another --out."
            )

    def _compare(self) -> None:
        record, previous = self.folder / SETTINGS, None
        try:
            previous = json.loads(record.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise ConfigError(f"{record}: cannot be read ({error}). {_ANEW}") from error
        if not isinstance(previous, dict):
            raise ConfigError(f"{record}: holds no settings. {_ANEW}")
        if previous.get("task") is None:  # older runs left it to the network
            previous["task"] = self.settings["task"]
        if previous.get(_MODEL) is None:
            previous[_MODEL] = self.settings[_MODEL]
            self.notes.append(
                f"{self.folder} was begun by an older camify, which kept no hash of the network: that it is still the"
                " same was assumed"
            )
        changed = [key for key in self.settings if previous.get(key) != self.settings[key]]
        if changed == [_MODEL]:
            raise ConfigError(
                f"{self.folder}: was made with other weights of {self.settings['model']}, which has changed since."
                f" {_ANEW}"
            )
        if changed:
            raise ConfigError(f"{self.folder}: was made with another {', '.join(changed)}. {_ANEW}")

    def _read_rows(self) -> list[dict[str, Any]]:
        """The rows that are whole, and whose pictures and maps are there; others are done again."""
        path = self.folder / RESULTS
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        rows = [self._row(line) for line in lines[:-1]]
        if lines[-1] or None in rows:  # of a line that was interrupted there is a rest
            write_whole(path, _joined(line for line, row in zip(lines[:-1], rows, strict=True) if row is not None))
        return [row for row in rows if row is not None]

    def _row(self, line: bytes) -> dict[str, Any] | None:
        """What is needed of a line, or None where it is damaged, or says that its image could not be read."""
        try:
            row = json.loads(line)
            texts = [row[key] for key in ("image", "name", "picture", "raw_maps")]
            whole = all(isinstance(text, str) for text in texts) and isinstance(row["classes"], list)
            whole = (
                whole and isinstance(row.get("file", {}), dict) and all(Path(name).name == name for name in texts[1:])
            )
            whole = whole and all((self.folder / name).is_file() for name in texts[2:])
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError):
            return None
        return {key: row[key] for key in ("image", "name", "file") if key in row} if whole else None

    def pending(self, files: Sequence[Path]) -> list[Path]:
        """The files that are still to be done; rows of those that have changed since are forgotten."""
        stamps = {path: file_stamp(path) for path in files}
        done = {_key(row["file"]) for row in self.rows if "file" in row}
        older = {row["image"] for row in self.rows if "file" not in row}  # which kept the path as it was given
        left = [path for path, stamp in stamps.items() if _key(stamp) not in done and str(path) not in older]
        again = {stamps[path]["path"] for path in left}
        keeps = [row.get("file", {}).get("path") not in again for row in self.rows]
        if not all(keeps):
            path = self.folder / RESULTS
            lines = path.read_bytes().split(b"\n")[:-1]
            write_whole(path, _joined(line for line, keep in zip(lines, keeps, strict=True) if keep))
            self.rows = [row for row, keep in zip(self.rows, keeps, strict=True) if keep]
        return left

    def names(self, files: Sequence[Path], suffixes: Sequence[str]) -> dict[Path, str]:
        """A name for the output of every file; equal names get a number.

        Raises:
            ConfigError: a file of such a name is there, and is not this run's.
        """
        taken, names = {row["name"] for row in self.rows}, {}
        for path in files:
            stem = name = slug(path.stem)
            number = 2
            while name in taken:
                name, number = f"{stem}_{number}", number + 1
            taken.add(name)
            names[path] = name
        # Where a run was interrupted between an image's files and its line, they are this run's own.
        if not self._goes_on and not self.overwrite:
            for place in (self.folder / f"{name}{suffix}" for name in names.values() for suffix in suffixes):
                if place.exists():
                    raise ConfigError(f"{place}: exists. {_ANEW}")
        return names

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        file = self.begin()
        file.write(json.dumps(row) + "\n")
        file.flush()

    def begin(self) -> IO[str]:
        """Make the folder where it is not there; the file of results.

        Raises:
            ConfigError: another run has begun there since this one looked.
        """
        if self._file is not None:
            return self._file
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._take()
            if (self.folder / SETTINGS).is_file():
                raise ConfigError(f"{self.folder}: another camify explain has written there since. {_ANEW}")
        if not self._goes_on:
            (self.folder / RESULTS).unlink(missing_ok=True)
            write_whole(self.folder / SETTINGS, json.dumps(self.settings, indent=1))
        self._file = (self.folder / RESULTS).open("a", encoding="utf-8")
        return self._file


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _key(stamp: Mapping[str, Any]) -> str:
    return json.dumps(stamp, sort_keys=True)
