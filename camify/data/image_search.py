"""Image files below folders: which are taken, and which are left out. The one filter of training and all commands."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ..errors import DataError
from ..files import OUTPUT_MARKERS
from ..image_files import has_image_content, image_suffixes
from .boxes_csv import box_table
from .file_list import FileList

__all__ = ["ImageSearch", "LeftOut", "Reason", "find_images_below", "is_hidden", "is_image", "is_own_output"]

_SHOWN = 5


class Reason(Enum):
    """Why a file or folder is left out, as it is said of several."""

    NAME = "files left out, since their names do not end as those of images that can be read here"
    HIDDEN = "hidden files and folders left out"
    OUTSIDE_CLASSES = "images left out, since they lie in no class folder"
    BELOW_OUTPUT = "files and folders left out, since they lie below the folder to write"
    OWN_OUTPUT = "folders left out, since camify wrote them"
    LINK = "linked folders left out, since what they lead to is read already"


class LeftOut:
    """Files and folders that are left out, counted by reason; of each only the end of its name is kept.

    Attributes:
        counts: by reason and end of the name.
        first: by reason the first in order of name.
    """

    def __init__(self) -> None:
        self.counts: dict[Reason, Counter[str]] = {}
        self.first: dict[Reason, Path] = {}

    def add(self, path: Path, reason: Reason) -> None:
        """Count one."""
        self.counts.setdefault(reason, Counter())[path.suffix.lower() or "no suffix"] += 1
        self.first[reason] = min(path, self.first.get(reason, path))

    def update(self, other: LeftOut) -> None:
        """Count all of another search."""
        for reason, counts in other.counts.items():
            self.counts.setdefault(reason, Counter()).update(counts)
            self.first[reason] = min(other.first[reason], self.first.get(reason, other.first[reason]))

    def notes(self) -> list[str]:
        """One line for each reason: how many, the first, and how their names end where that is the reason."""
        notes = []
        for reason in (reason for reason in Reason if reason in self.counts):
            counts = self.counts[reason].most_common()
            listed = ", ".join(f"{count} {suffix}" for suffix, count in counts[:_SHOWN])
            more = f", {sum(count for _, count in counts[_SHOWN:])} others" if counts[_SHOWN:] else ""
            count = f"{listed}{more}" if reason is Reason.NAME else str(self.counts[reason].total())
            notes.append(f"{reason.value}: {count}; the first is {self.first[reason]}")
        return notes


@dataclass(frozen=True)
class ImageSearch:
    """The image files of a search, in order of name, and what it left out."""

    paths: FileList
    left_out: LeftOut = field(default_factory=LeftOut)


def find_images_below(folder: Path, *, outside: Path | None = None) -> ImageSearch:
    """The image files anywhere below a folder.

    Files count as images by the ends of their names; those without any by their content. Hidden files and folders are
    left out, and folders that camify wrote. Linked folders are followed, each folder once.

    Args:
        folder: whatever it is called and whoever wrote it.
        outside: a folder, such as the one to write, whose files are no input.

    Raises:
        DataError: a folder cannot be read.
    """
    outside = None if outside is None else outside.resolve()
    names, left_out = list[str](), LeftOut()
    # A folder above is as good as read: who links to it links to himself.
    read = {_identity(above) for above in folder.resolve().parents}
    waiting, linked = [""], list[str]()
    while waiting or linked:  # links last: what can be reached without them is named by its own place
        prefix = waiting.pop() if waiting else linked.pop(0)
        current = folder / prefix
        if _identity(current) in read:
            left_out.add(current, Reason.LINK)
            continue
        read.add(_identity(current))
        entries = _entries(current)
        if prefix and not OUTPUT_MARKERS.isdisjoint(entry.name for entry in entries):
            left_out.add(current, Reason.OWN_OUTPUT)
            continue
        for entry in entries:
            kind = _kind(entry, current, outside)
            if kind is None:
                names.append(prefix + entry.name)
            elif isinstance(kind, Reason):
                left_out.add(current / entry.name, kind)
            elif kind is _Folder.PLAIN:
                waiting.append(f"{prefix}{entry.name}{os.sep}")
            elif kind is _Folder.LINKED:
                linked.append(f"{prefix}{entry.name}{os.sep}")
    names.sort(key=lambda name: name.replace(os.sep, "\0"))  # as paths are sorted, folder by folder
    return ImageSearch(FileList(folder, names), left_out)


class _Folder(Enum):
    PLAIN = "a folder"
    LINKED = "a link to one"
    TABLE = "no folder but boxes.csv, which is neither image nor left out"


def _kind(entry: os.DirEntry[str], folder: Path, outside: Path | None) -> Reason | _Folder | None:
    """What an entry of a folder is: None of an image."""
    name = entry.name
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - no path is made of nearly all: a million of them
    if suffix in image_suffixes() and name[0] != "." and entry.is_file(follow_symlinks=False):
        return None
    path = folder / name
    if is_hidden(path):
        return Reason.HIDDEN
    if path.is_dir() if entry.is_symlink() else entry.is_dir():
        if path.resolve() == outside:
            return Reason.BELOW_OUTPUT
        return _Folder.LINKED if entry.is_symlink() else _Folder.PLAIN
    if is_image(path):
        return None
    return _Folder.TABLE if path == box_table(folder) else Reason.NAME


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden by its name."""
    return path.name.startswith(".")


def is_own_output(folder: Path) -> bool:
    """Whether camify wrote a folder: a run, a checkpoint, explained images, a comparison, an evaluation."""
    return any((folder / marker).is_file() for marker in OUTPUT_MARKERS)


def is_image(path: Path) -> bool:
    """Whether a file counts as an image: by the end of its name; without one by its content."""
    suffix = path.suffix.lower()
    return suffix in image_suffixes() if suffix else has_image_content(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror or error}).") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
