"""Files and folders that are whole or not there, on every filesystem, with names that are safe anywhere.

What is written stands beside its target first, is synced to disk, and then takes the target's place. A killed process
leaves such a piece behind; the next one that writes there removes it, for nobody holds its lock any more.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":  # where no piece is known to be left behind, so none is removed
    import fcntl

from .errors import ConfigError, DataError

__all__ = [
    "COMPARISON", "CONCEPTS", "EVALUATION", "EXPLAINED", "LONGEST_NAME", "MANIFEST", "OUTPUT_MARKERS", "RUN_MARKER",
    "WEB_PAGE",
    "claim", "foreign_entry", "free_folder", "interrupted_replacements", "lock", "names_file", "numbered",
    "put_in_place", "read_text", "remove_all_leftovers", "remove_leftovers", "replace_folder", "require_writable",
    "safe_cell", "shortened", "slug", "sync", "temporary_folder", "to_json", "whole_file", "whole_folder",
    "write_whole",
]  # fmt: skip

_PART, _OLD = ".camify.part", ".camify.old"
_RANDOM = "?" * 8  # between the two
LONGEST_NAME = 255  # bytes, of most filesystems
MANIFEST, RUN_MARKER = "camify.json", ".camify-run"
EXPLAINED, COMPARISON, EVALUATION, WEB_PAGE = "explain.json", "compare.json", "evaluation.json", "camify-web.json"
CONCEPTS = "concepts.json"
OUTPUT_MARKERS = frozenset((MANIFEST, RUN_MARKER, EXPLAINED, COMPARISON, CONCEPTS, EVALUATION, WEB_PAGE))
"""Files that say that camify wrote the folder in which they lie."""


# ------------------------------------------------------------ text of users


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it cannot be read, or is in another encoding; says in which it probably is.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    advice = "Save it as UTF-8 (in Excel: CSV UTF-8)."
    if b"\0" in content:  # every second byte of plain UTF-16
        raise DataError(f"{path}: cannot be read as UTF-8; it looks like UTF-16. {advice}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: cannot be read as UTF-8 (byte 0x{content[error.start]:02x}); it may be"
            f" Windows-1252 or Latin-1. {advice}"
        ) from error


# ------------------------------------------------------------ locks


def lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file or folder for this process; the open descriptor that holds the lock, or None where another has it.

    The lock goes when the descriptor is closed or the process ends, however it ends.

    Raises:
        OSError: there is no such file, or the filesystem has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    if sys.platform == "win32":
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def claim(path: Path) -> int | None:
    """As ``lock``; on a filesystem without locks the descriptor of a file that anybody may have.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        return lock(path)
    except FileNotFoundError:
        raise
    except OSError:
        return os.open(path, os.O_RDONLY)


def _prefix(path: Path) -> str:
    """How the names of the pieces of ``path`` begin; names have at most 255 bytes."""
    name = path.name
    return f".{name}-" if len(name) <= 40 else f".{name[:30]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-"


def _piece(path: Path, *, folder: bool) -> tuple[Path, int]:
    """A new file or folder beside ``path``, and the descriptor that locks it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = _prefix(path)
    while True:
        aside = path.with_name(f"{prefix}{secrets.token_hex(4)}{_PART}")
        try:  # with the rights that the user's umask leaves
            aside.mkdir() if folder else aside.touch(exist_ok=False)
        except FileExistsError:
            continue
        with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
            try:
                descriptor = lock(aside, wait=True)
            except FileNotFoundError:
                raise
            except OSError:  # no locks here: then nobody else can take it for a leftover either
                descriptor = os.open(aside, os.O_RDONLY)
            if descriptor is not None and os.path.samestat(os.fstat(descriptor), aside.stat()):
                return aside, descriptor


def remove_leftovers(path: Path) -> None:
    """Remove the pieces that killed processes left beside ``path``: those that nobody holds locked."""
    for aside in path.parent.glob(f"{glob.escape(_prefix(path))}{_RANDOM}{_PART}"):
        _remove_unlocked(aside)


@lru_cache(maxsize=256)
def remove_all_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder; looked for once in a process, since folders can be large."""
    for aside in folder.glob(f".*-{_RANDOM}{_PART}"):
        _remove_unlocked(aside)


def _remove_unlocked(aside: Path) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = lock(aside)
        if descriptor is None:
            return
        try:
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
        finally:
            os.close(descriptor)


# ------------------------------------------------------------ files


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to fill, which takes the place of ``path`` at the end; where filling it fails, nothing changes.

    Examples:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "numbers.txt") as file:
        ...     _ = file.write(b"1 2 3")
        >>> (folder / "numbers.txt").read_bytes()
        b'1 2 3'
    """
    remove_leftovers(path)
    with _filled(path) as file:
        yield file


@contextmanager
def _filled(path: Path) -> Iterator[BinaryIO]:
    with names_file(path):
        aside, descriptor = _piece(path, folder=False)
        try:
            with aside.open("wb") as file:
                yield file
            put_in_place(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def put_in_place(aside: Path, path: Path) -> None:
    """Give a finished file its name: on disk first, then in one step in the place of what stood there."""
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that nobody ever sees half of it."""
    if path.parent.is_dir():
        remove_all_leftovers(path.parent)
    with _filled(path) as file:
        # Names of files that are no UTF-8 are written as the bytes that they are.
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Put a file, or what a folder lists, on disk, so that it outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # of folders some filesystems cannot
            raise
    finally:
        os.close(descriptor)


# ------------------------------------------------------------ folders


def foreign_entry(folder: Path, manifest: str, own: Collection[str]) -> str | None:
    """What stands in the way of writing a folder: what camify did not write there; None where nothing does.

    Args:
        folder: the place.
        manifest: the file without which nothing in the folder counts as camify's.
        own: what camify writes into such a folder, the manifest among it: paths below it, as shell patterns.
    """
    if folder.is_symlink():
        return "is a symbolic link"
    if not folder.is_dir():
        return "is a file" if folder.exists() else None
    known = own if (folder / manifest).is_file() else ()
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    other = min((path for path in paths if not any(fnmatchcase(path, pattern) for pattern in known)), default=None)
    return other and f"holds {other}"


def free_folder(folder: Path, manifest: str, own: Collection[str], option: str, *, overwrite: bool) -> Path:
    """The folder, if it may be written: new or empty, or, where it may go, with nothing but camify's files.

    Raises:
        ConfigError: it exists and is not to be replaced, or holds something else; ``option`` names another place.
    """
    foreign = foreign_entry(folder, manifest, own)
    is_own = (folder / manifest).is_file() and not folder.is_symlink()
    if is_own and not overwrite:
        raise ConfigError(f"{folder}: exists. Choose another {option}, or add --overwrite true.")
    if foreign:
        raise ConfigError(
            f"{folder}: {foreign}, which camify did not write. Nothing was touched; choose another {option}."
        )
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
    too_long = next((part for part in path.parts if len(os.fsencode(part)) > LONGEST_NAME), None)
    return None if too_long is None else f"{too_long[:20]}... is longer than {LONGEST_NAME} bytes"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` at the end; where filling it fails, nothing changes."""
    remove_leftovers(folder)
    with names_file(folder):
        aside, descriptor = _piece(folder, folder=True)
        try:
            yield aside
            for path in aside.rglob("*"):
                sync(path)
            sync(aside)
            replace_folder(folder, aside)
            sync(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for the time of the context; when a process dies in it, the next one removes it."""
    remove_leftovers(path)
    aside, descriptor = _piece(path, folder=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(descriptor)


def replace_folder(folder: Path, aside: Path) -> None:
    """Put ``aside`` in the place of ``folder``; what stood there is removed only when the new one stands."""
    if folder.exists():
        old = aside.with_name(aside.name.removesuffix(_PART) + _OLD)
        folder.rename(old)
        try:
            aside.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
    else:
        aside.rename(folder)
    for old in interrupted_replacements(folder):  # this one, and those of killed processes: a whole one stands now
        shutil.rmtree(old, ignore_errors=True)


def interrupted_replacements(folder: Path) -> list[Path]:
    """What ``replace_folder`` took out of the place of ``folder`` and, being killed, neither put back nor removed."""
    return sorted(folder.parent.glob(f"{glob.escape(_prefix(folder))}{_RANDOM}{_OLD}"))


# ------------------------------------------------------------ names and text


def shortened(name: str, most: int = LONGEST_NAME) -> str:
    """A file name cut to so many bytes, between two characters."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def numbered(path: Path, number: int) -> Path:
    """The path with a number behind its name, before its suffix; a long name is cut so that both have room."""
    end = f"-{number}{path.suffix}"
    return path.with_name(shortened(path.stem, LONGEST_NAME - len(os.fsencode(end))) + end)


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Within it an OSError that names no file, or a hidden one, names this one: a full disk does not say which."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if name is None or (isinstance(name, str | os.PathLike) and Path(name).name.startswith(_prefix(path))):
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


def slug(name: str) -> str:
    """A name as a file name: ASCII letters, digits, dot, dash and underscore, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "unnamed"
