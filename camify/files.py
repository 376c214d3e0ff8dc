"""Files that are whole or not there, with names that are safe anywhere."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError

__all__ = [
    "free_folder", "interrupted_replacements", "names_file", "new_file_beside", "new_folder_beside", "numbered",
    "replace_folder", "require_writable", "safe_cell", "shortened", "slug", "to_json", "whole_folder", "write_whole",
]  # fmt: skip


_LONGEST_NAME = 255  # bytes, of most filesystems


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file aside and rename it, so that nobody ever sees half of it."""
    with names_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = new_file_beside(path)
        try:
            with os.fdopen(handle, "wb") as file:
                # Names of files that are no UTF-8 are written as the bytes that they are.
                file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def new_file_beside(path: Path) -> tuple[int, Path]:
    """A new hidden file beside a path, open for writing, with the rights that the user's umask leaves."""
    while True:
        aside = path.with_name(f"{_aside_prefix(path.name)}{secrets.token_hex(4)}{path.suffix[:20]}")
        try:
            return os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), aside
        except FileExistsError:
            continue


def new_folder_beside(folder: Path) -> Path:
    """A new hidden folder beside a folder, with the rights that the user's umask leaves."""
    while True:
        aside = folder.with_name(f"{_aside_prefix(folder.name)}{secrets.token_hex(4)}")
        try:
            aside.mkdir()
        except FileExistsError:
            continue
        return aside


def _aside_prefix(name: str) -> str:
    """What hidden names beside a file of this name begin with: never too long, and another one for each name."""
    if len(os.fsencode(name)) <= _LONGEST_NAME - 60:
        return f".{name}-"
    return f".{shortened(name, 100)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-"


def shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """A file name cut to so many bytes, between two characters."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def numbered(path: Path, number: int) -> Path:
    """The path with a number behind its name, before its suffix; a long name is cut so that both have room."""
    end = f"-{number}{path.suffix}"
    return path.with_name(shortened(path.stem, _LONGEST_NAME - len(os.fsencode(end))) + end)


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Within it an OSError that names no file, or a hidden one, names this one: a full disk does not say which."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if name is None or (
            isinstance(name, str | os.PathLike) and Path(name).name.startswith(_aside_prefix(path.name))
        ):
            error.filename = os.fspath(path)
        raise


def to_json(value: Any, *, indent: int | None = 1) -> str:
    """JSON text of plain values, ASCII: also a name that is no UTF-8 can be written, and is read as it was.

    Raises:
        ValueError: NaN or infinity, which JSON has not.
    """
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)


def safe_cell(text: str) -> str:
    """Text for a cell of a CSV file: a spreadsheet takes none of it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def free_folder(folder: Path, manifest: str, option: str, *, overwrite: bool) -> Path:
    """The folder, if it may be written: new, or one that camify wrote (it holds the manifest) and that may go.

    Raises:
        ConfigError: it exists and is not to be replaced, or holds something else; ``option`` names another place.
    """
    if folder.is_symlink() or folder.exists():
        if not overwrite:
            raise ConfigError(f"{folder}: exists. Choose another {option}, or add --overwrite true.")
        if folder.is_symlink() or not (folder / manifest).is_file():
            raise ConfigError(f"{folder}: exists and is not camify's (it has no {manifest}). Choose another {option}.")
    require_writable(folder, option, folder=True)
    return folder


def require_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Refuse a place for results that cannot be written, before any work is done for it.

    Args:
        path: of a file, or of a folder.
        option: that named it, for the message.
        folder: whether a folder is to be written.

    Raises:
        ConfigError: says what stands in the way.
    """
    wrong = _in_the_way(path, folder=folder)
    if wrong is not None:
        raise ConfigError(f"{option} {path}: cannot be written: {wrong}. Choose another place.")


def _in_the_way(path: Path, *, folder: bool) -> str | None:
    if "\0" in os.fspath(path):
        return "its name holds a zero byte"
    try:
        if path.exists() and path.is_dir() != folder:
            return "it is a file" if folder else "it is a folder"
        above = path if folder and path.exists() else path.parent
        while not above.exists() and above != above.parent:
            above = above.parent
        if not above.is_dir():
            return f"{above} is a file"
        with tempfile.TemporaryFile(dir=above):  # rights alone do not tell: filesystems may be read-only, or no disk
            pass
    except OSError as error:
        return error.strerror or str(error)
    too_long = next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None)
    return None if too_long is None else f"{too_long[:20]}... is longer than {_LONGEST_NAME} bytes"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` at the end; where filling it fails, nothing changes."""
    with names_file(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = new_folder_beside(folder)
        try:
            yield aside
            replace_folder(folder, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def replace_folder(folder: Path, aside: Path) -> None:
    """Put ``aside`` in the place of ``folder``; what stood there is removed only when the new one stands."""
    if not folder.exists():
        aside.rename(folder)
        return
    old = aside.with_name(aside.name + ".old")
    folder.rename(old)
    try:
        aside.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def interrupted_replacements(folder: Path) -> list[Path]:
    """What ``replace_folder`` took out of the place of ``folder`` and, being killed, neither put back nor removed."""
    return sorted(folder.parent.glob(f"{glob.escape(_aside_prefix(folder.name))}*.old"))


def slug(name: str) -> str:
    """A name as a file name: ASCII letters, digits, dot, dash and underscore, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "unnamed"
