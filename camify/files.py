"""Files that are whole or not there, with names that are safe anywhere."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError

__all__ = [
    "free_folder",
    "interrupted_replacements",
    "replace_folder",
    "require_writable",
    "slug",
    "whole_folder",
    "write_whole",
]


_LONGEST_NAME = 255  # bytes, of most filesystems


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file aside and rename it, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name[:40]}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


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
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        return str(getattr(error, "strerror", None) or error)
    too_long = next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None)
    return None if too_long is None else f"{too_long[:20]}... is longer than {_LONGEST_NAME} bytes"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` at the end; where filling it fails, nothing changes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
    try:
        aside.chmod(0o755)
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
    return sorted(folder.parent.glob(f".{glob.escape(folder.name)}-*.old"))


def slug(name: str) -> str:
    """A name as a file name: ASCII letters, digits, dot, dash and underscore, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "unnamed"
