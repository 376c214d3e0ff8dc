"""What was seen of image files at an earlier start: only files that are new or have changed are decoded again."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from ..errors import DataError
from ..files import write_whole
from ..image_files import EncodedImage
from ..ranks import ONE, Ranks
from .file_list import FileList
from .image_checks import CHECK, NOT_DECODED, check_readable, refuse_unreadable
from .labeled_images import JoinedImages, TakenImages
from .processes import made_by_first

__all__ = ["RememberedChecks", "cache_folder", "check_files", "identities"]

_KEY = [("name_high", "<u8"), ("name_low", "<u8"), ("bytes", "<i8"), ("mtime_ns", "<i8")]
_ENTRY = np.dtype([*_KEY, *((name, CHECK[name]) for name in CHECK.names or ())])
_VERSION = 1  # of the check
_TOGETHER = 20_000  # images that are checked before other processes hear of it, long before they would give up


def cache_folder() -> Path:
    """Where camify keeps what it can make again: ``CAMIFY_CACHE``, else a folder in the user's cache."""
    given = os.environ.get("CAMIFY_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "camify"


class RememberedChecks:
    """Checks of the images of a place, by name, size and time of the last change: some 80 bytes each.

    Args:
        place: where the images lie.
        keys: of the images; see ``identities``.
        bits: that gray files were read with.

    Attributes:
        path: of the file that holds them.
        notes: what has to be said of it.
    """

    def __init__(self, place: str, keys: NDArray[Any], bits: int | None) -> None:
        what = f"{place}\0{bits}\0{_VERSION}\0{PIL.__version__}"
        self.path = cache_folder() / "checked" / f"{hashlib.sha256(os.fsencode(what)).hexdigest()[:32]}.npy"
        self.notes: list[str] = []
        self._keys = keys
        self._entries = self._read()

    def known(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What is remembered of the images, (N,) of ``CHECK``, and of which (N,)."""
        places = np.searchsorted(self._entries["name_high"], self._keys["name_high"])
        places = np.minimum(places, max(len(self._entries) - 1, 0))
        checks, same = np.zeros(len(self._keys), CHECK), np.zeros(len(self._keys), bool)
        if len(self._entries):
            entries = self._entries[places]
            same = np.logical_and.reduce([entries[name] == self._keys[name] for name, _ in _KEY])
            for name in CHECK.names or ():
                checks[name][same] = entries[name][same]
        return checks, same

    def keep(self, checks: NDArray[Any]) -> None:
        """Remember the checks (N,) of the images that were decoded, beside those of other files of the folder."""
        decoded = checks["brightest"] != NOT_DECODED
        entries = np.zeros(int(decoded.sum()), _ENTRY)
        for source in (self._keys, checks):
            for name in source.dtype.names or ():
                entries[name] = source[name][decoded]
        others = self._entries[~np.isin(self._entries["name_high"], entries["name_high"])]
        entries = np.concatenate([others, entries])
        entries = entries[np.argsort(entries["name_high"], kind="stable")]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, _npy(entries))
        except OSError as error:
            self.notes.append(
                f"the check of the images cannot be remembered, so it is made again at the next start: {self.path}"
                f" ({error.strerror or error}); CAMIFY_CACHE names another folder"
            )

    def _read(self) -> NDArray[Any]:
        try:
            entries = np.load(self.path, allow_pickle=False)
            if entries.dtype == _ENTRY and entries.ndim == 1:
                return np.asarray(entries)
            reason = "it holds something else"
        except FileNotFoundError:
            return np.zeros(0, _ENTRY)
        except Exception as error:  # noqa: BLE001 - a damaged file can raise anything; all images are checked again
            reason = str(error) or type(error).__name__
        self.notes.append(f"{self.path} cannot be read, so all images are checked again ({reason})")
        return np.zeros(0, _ENTRY)


def identities(images: Sequence[Path | EncodedImage]) -> tuple[str, NDArray[Any]] | None:
    """Where images lie, and what tells each from any other one and from itself when it has changed (N,); None: unknown.

    Of files that is their name, size and time; of rows of a data set of Hugging Face its fingerprint and their number.
    """
    if isinstance(images, FileList):
        digests = (hashlib.blake2b(os.fsencode(name), digest_size=16).digest() for name in images.names())
        return str(images.folder.resolve()), _keys(digests, images.stamps())
    if isinstance(images, TakenImages):
        known = identities(images.images)
        return None if known is None else (known[0], known[1][images.numbers])
    if isinstance(images, JoinedImages):
        parts = [identities(one) for one in images.lists]
        known_parts = [part for part in parts if part is not None]
        if len(known_parts) < len(parts) or len({place for place, _ in known_parts}) > 1:
            return None
        return known_parts[0][0], np.concatenate([keys for _, keys in known_parts])
    fingerprint = getattr(images, "fingerprint", None)
    if fingerprint is None:
        return None
    rows = (f"{fingerprint} {number}".encode() for number in range(len(images)))
    digests = (hashlib.blake2b(row, digest_size=16).digest() for row in rows)
    return "rows", _keys(digests, np.zeros((len(images), 2), np.int64))


def _keys(digests: Iterable[bytes], stamps: NDArray[np.int64]) -> NDArray[Any]:
    words = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    keys = np.zeros(len(stamps), np.dtype(_KEY))
    keys["name_high"], keys["name_low"] = words[:, 0], words[:, 1]
    keys["bytes"], keys["mtime_ns"] = stamps[:, 0], stamps[:, 1]
    return keys


def _npy(entries: NDArray[Any]) -> bytes:
    content = BytesIO()
    np.save(content, entries, allow_pickle=False)
    return content.getvalue()


# ---------------------------------------------------------------- checks of many files


def check_files(
    files: Sequence[Path | EncodedImage],
    *,
    decode: bool,
    bits: int | None = None,
    workers: int = 0,
    ranks: Ranks = ONE,
) -> tuple[NDArray[Any], list[str]]:
    """``check_images``, with what is remembered of files; of several processes the first one looks, for all.

    Args:
        files: images; what was seen of those that are decoded is remembered, where ``identities`` knows them.
        decode: else only their headers are read.
        bits: see ``Preprocessing``.
        workers: processes that decode.
        ranks: of several processes, which all call this.

    Returns:
        An array (N,) of ``CHECK``, and what has to be said.

    Raises:
        DataError: names the files that are no readable images, up to 100.
    """
    checks, bad, notes = np.zeros(len(files), CHECK), dict[int, str](), list[str]()
    for numbers, rows, reasons, said in made_by_first(lambda: _parts(files, decode, bits, workers), ranks):
        if len(numbers) and int(numbers.max()) >= len(files):
            raise DataError("The processes do not see the same files. Give every machine the same data.")
        checks[numbers] = rows
        bad |= reasons
        notes += said
    refuse_unreadable(files, bad)
    return checks, notes


_Part = tuple[NDArray[Any], NDArray[Any], dict[int, str], list[str]]


def _parts(files: Sequence[Path | EncodedImage], decode: bool, bits: int | None, workers: int) -> Iterator[_Part]:
    """Numbers of images, what was seen of them, which cannot be read, and notes: what is known first, then the rest."""
    numbers = np.arange(len(files))
    known_by = identities(files) if decode else None
    remembered = None if known_by is None else RememberedChecks(*known_by, bits)
    checks = np.zeros(len(files), CHECK)
    if remembered is not None:
        checks, known = remembered.known()
        yield numbers[known], checks[known], {}, []
        numbers = numbers[~known]
    for first in range(0, len(numbers), _TOGETHER):
        some = numbers[first : first + _TOGETHER]
        label = f"checking images {first} to {first + len(some)} of {len(numbers)}"
        checks[some], bad = check_readable(files, some, decode=decode, bits=bits, workers=workers, label=label)
        readable = np.array([number not in bad for number in some.tolist()], bool)
        checks["brightest"][some[~readable]] = NOT_DECODED
        yield some, checks[some], bad, []
    if remembered is not None:
        if len(numbers):
            remembered.keep(checks)
        yield numbers[:0], checks[:0], {}, remembered.notes
