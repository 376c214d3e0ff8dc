"""The folder of ``camify explain``: what it was made with, which images are done, and who writes into it now."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
from ..files import claim, slug, whole_file, write_whole
from ..ranks import ONE, Ranks

__all__ = ["ExplainedFolder", "file_stamp", "model_sha256"]

RESULTS, LOCK = "results.jsonl", ".explain.lock"
_PARTS = "results.rank*.jsonl"
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

    Nothing is written before ``begin``. One process adds its rows to ``results.jsonl``. Of several, each writes a part,
    ``results.rank0.jsonl`` and so on, and the first one joins them at the end; what a run that stopped left of parts
    is taken up by the next, whatever their number.

    Attributes:
        folder: where it is, or will be.
        settings: what it is made with, as JSON has it.
        overwrite: begin anew in a folder of another run.
        ranks: the processes that write; only the first one enters the context.
        notes: what has to be said about the results so far.
    """

    folder: Path
    settings: dict[str, Any]
    overwrite: bool = False
    ranks: Ranks = ONE
    notes: list[str] = field(default_factory=list)
    _rows: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)  # those that are whole, by their file
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
                    self._read_rows()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            os.close(self._lock)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The results so far, in order: those of a run that stopped whose lines and files are whole."""
        return [row for rows in self._rows.values() for row in rows]

    @property
    def _results(self) -> Path:
        return self.folder / RESULTS

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(_PARTS))

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
        previous.setdefault("augmentations", [])  # older runs have none
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
            raise ConfigError(f"{self.folder}: was made with other settings ({', '.join(changed)}). {_ANEW}")

    def _read_rows(self) -> None:
        """The rows that are whole, and whose pictures and maps are there; others are done again."""
        known: set[str] = set()
        for path in [self._results, *self._parts()]:
            lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
            rows = [self._row(line) for line in lines[:-1]]
            if path != self._results:  # the run was killed after they had been joined
                rows = [None if row is None or _key(row["file"]) in known else row for row in rows]
            if lines[-1] or None in rows:  # of a line that was interrupted there is a rest
                write_whole(path, _joined(line for line, row in zip(lines[:-1], rows, strict=True) if row is not None))
            self._rows[path] = [row for row in rows if row is not None]
            known |= {_key(row["file"]) for row in self._rows[path] if "file" in row}

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
        stamps, before = {path: file_stamp(path) for path in files}, self.rows
        done = {_key(row["file"]) for row in before if "file" in row}
        older = {row["image"] for row in before if "file" not in row}  # which kept the path as it was given
        left = [path for path, stamp in stamps.items() if _key(stamp) not in done and str(path) not in older]
        again = {stamps[path]["path"] for path in left}
        for path, rows in self._rows.items():
            keeps = [row.get("file", {}).get("path") not in again for row in rows]
            if not all(keeps):
                lines = path.read_bytes().split(b"\n")[:-1]
                write_whole(path, _joined(line for line, keep in zip(lines, keeps, strict=True) if keep))
                self._rows[path] = [row for row, keep in zip(rows, keeps, strict=True) if keep]
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

    def begin(self) -> None:
        """Make the folder where it is not there, and be ready for rows. All processes call it.

        Raises:
            ConfigError: another run has begun there since this one looked, or a process does not see the folder.
        """
        sign = self.ranks.first(self._begin)
        with self.ranks.agree():
            if not self.ranks.is_first and not _holds(self.folder / LOCK, sign):
                raise ConfigError(
                    f"--out {self.folder}: is not the folder of that name that the first process writes. Choose one"
                    " that all machines share."
                )
        in_parts = self.ranks.world_size > 1 or bool(self._parts())
        path = self.folder / f"results.rank{self.ranks.rank}.jsonl" if in_parts else self._results
        self._file = path.open("a", encoding="utf-8")

    def _begin(self) -> str:
        """In the first process; gives what the others must find."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._take()
            if (self.folder / SETTINGS).is_file():
                raise ConfigError(f"{self.folder}: another camify explain has written there since. {_ANEW}")
        if not self._goes_on:
            for path in [self._results, *self._parts()]:
                path.unlink(missing_ok=True)
            write_whole(self.folder / SETTINGS, json.dumps(self.settings, indent=1))
        sign = "" if self.ranks.world_size == 1 else secrets.token_hex()
        if sign:
            (self.folder / LOCK).write_text(sign, encoding="ascii")
        return sign

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; after ``begin``."""
        if self._file is None:
            raise RuntimeError("the folder was not begun")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def end(self) -> None:
        """No more rows of this process."""
        if self._file is not None:
            self._file.close()

    def join(self, files: Sequence[Path], report: Callable[[dict[str, Any]], None]) -> None:
        """Put the parts behind the rows that stand in ``results.jsonl``, in order; in the first process.

        What could not be read stands last, as in the file of one process.

        Args:
            files: in the order that the rows are to have.
            report: is called with each result that was not there when the run began.
        """
        parts = self._parts()
        if not parts:
            return
        before = {_key(row["file"]) for row in self.rows if "file" in row}
        places = {str(path): place for place, path in enumerate(files)}
        resolved = {str(path.resolve()): place for place, path in enumerate(files)}
        lines = list[tuple[bool, int, int, int, int]]()  # whether it is an error, place, part, where in it, length
        for number, part in enumerate(parts):
            start = 0
            with part.open("rb") as file:
                for line in file:
                    row = json.loads(line)
                    own = resolved.get(row["file"]["path"], len(files))
                    lines.append(("error" in row, places.get(row["image"], own), number, start, len(line)))
                    start += len(line)
        with ExitStack() as stack, whole_file(self._results) as joined:
            if self._results.is_file():
                with self._results.open("rb") as file:
                    shutil.copyfileobj(file, joined)
            opened = [stack.enter_context(part.open("rb")) for part in parts]
            for is_error, _, number, start, length in sorted(lines):
                opened[number].seek(start)
                line = opened[number].read(length)
                joined.write(line)
                if not is_error and _key((row := json.loads(line))["file"]) not in before:
                    report(row)
        for part in parts:
            part.unlink()
        if self._lock is not None:
            (self.folder / LOCK).write_text("", encoding="ascii")  # as one process leaves it


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="ascii") == text
    except (OSError, UnicodeDecodeError):
        return False


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _key(stamp: Mapping[str, Any]) -> str:
    return json.dumps(stamp, sort_keys=True)
