"""Image files below folders: which are taken, and which are left out. The one filter of training and all commands."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import DataError
from ..files import OUTPUT_MARKERS
from ..image_files import has_image_content, image_suffixes
from .boxes_csv import box_table

__all__ = [
    "ImageSearch",
    "LeftOut",
    "Reason",
    "find_images_below",
    "is_hidden",
    "is_image",
    "is_own_output",
    "left_out_notes",
]

_SHOWN = 5


class Reason(Enum):
    """Why a file or folder is left out, as it is said of several."""

    NAME = "files left out, since their names do not end as those of images that can be read here"
    HIDDEN = "hidden files and folders left out"
    OUTSIDE_CLASSES = "images left out, since they lie in no class folder"
    BELOW_OUTPUT = "files and folders left out, since they lie below the folder to write"
    OWN_OUTPUT = "folders left out, since camify wrote them"
    LINK = "linked folders left out, since what they lead to is read already"


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is left out."""

    path: Path
    reason: Reason


@dataclass(frozen=True)
class ImageSearch:
    """The image files of a search, in order of name, and what it left out."""

    paths: list[Path]
    left_out: list[LeftOut]


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
    paths, left_out = list[Path](), list[LeftOut]()
    # A folder above is as good as read: who links to it links to himself.
    read = {_identity(above) for above in folder.resolve().parents}
    waiting, linked = [folder], list[Path]()
    while waiting or linked:  # links last: what can be reached without them is named by its own place
        current = waiting.pop() if waiting else linked.pop(0)
        if _identity(current) in read:
            left_out.append(LeftOut(current, Reason.LINK))
            continue
        read.add(_identity(current))
        entries = _entries(current)
        if current != folder and not OUTPUT_MARKERS.isdisjoint(entry.name for entry in entries):
            left_out.append(LeftOut(current, Reason.OWN_OUTPUT))
            continue
        for entry in entries:
            path = current / entry.name
            if is_hidden(path):
                left_out.append(LeftOut(path, Reason.HIDDEN))
            elif path.is_dir() if entry.is_symlink() else entry.is_dir():
                if path.resolve() == outside:
                    left_out.append(LeftOut(path, Reason.BELOW_OUTPUT))
                else:
                    (linked if entry.is_symlink() else waiting).append(path)
            elif is_image(path):
                paths.append(path)
            elif path != box_table(current):
                left_out.append(LeftOut(path, Reason.NAME))
    return ImageSearch(sorted(paths), sorted(left_out, key=lambda one: one.path))


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden by its name."""
    return path.name.startswith(".")


def is_own_output(folder: Path) -> bool:
    """Whether camify wrote a folder: a run, a checkpoint, explained images, a comparison, an evaluation."""
    return any((folder / marker).is_file() for marker in OUTPUT_MARKERS)


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """One line for each reason: how many files, the first, and how their names end where that is the reason."""
    notes = []
    for reason in Reason:
        paths = [one.path for one in left_out if one.reason is reason]
        if not paths:
            continue
        counts = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common()
        listed = ", ".join(f"{count} {suffix}" for suffix, count in counts[:_SHOWN])
        more = f", {sum(count for _, count in counts[_SHOWN:])} others" if counts[_SHOWN:] else ""
        count = f"{listed}{more}" if reason is Reason.NAME else str(len(paths))
        notes.append(f"{reason.value}: {count}; the first is {min(paths)}")
    return notes


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
