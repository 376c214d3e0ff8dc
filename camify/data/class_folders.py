"""Folders of class folders: which classes there are, and their image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .boxes_csv import box_table
from .file_list import FileList
from .image_search import ImageSearch, LeftOut, Reason, find_images_below, is_hidden, is_image, is_own_output
from .splits import class_order

__all__ = ["class_folders", "files_of_classes", "images_of", "order_notes"]


def class_folders(folder: Path) -> list[str]:
    """The classes of a folder: its folders that are not hidden, sorted by name; by number where all are numbers.

    Folders that camify wrote are none.

    Raises:
        DataError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Put images into {folder.name}/CLASS/.")
    folders = (entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry))
    names = sorted(entry.name for entry in folders if not is_own_output(entry))
    if not names:
        raise DataError(f"{folder}: holds no class folders. Put images into {folder.name}/CLASS/.")
    return class_order(names)


def order_notes(class_names: Sequence[str]) -> list[str]:
    """What has to be said about the order of class folders: nothing, unless it is that of numbers."""
    if not _are_numbers(class_names):
        return []
    return [f"class folders are all numbers: in order of number, {class_names[0]} to {class_names[-1]}"]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def files_of_classes(folder: Path, names: Sequence[str]) -> tuple[FileList, NDArray[np.int32], LeftOut]:
    """The image files of class folders, class by class: with the place of each one's class among the names (N,).

    Also what is left out, in the class folders and beside them.

    Raises:
        DataError: a class folder holds none; says what it holds instead.
    """
    left_out = left_out_beside(folder, names)
    lists, labels = [], []
    for number, name in enumerate(names):
        search = find_images_below(folder / name)
        left_out.update(search.left_out)
        lists.append(images_of(folder / name, search))
        labels.append(np.full(len(search.paths), number, np.int32))
    return FileList.joined(folder, lists), np.concatenate(labels), left_out


def images_of(folder: Path, search: ImageSearch) -> FileList:
    """The images that were found below a folder.

    Raises:
        DataError: there are none; says what there is instead.
    """
    if search.paths:
        return search.paths
    instead = "".join(f" {note[0].upper()}{note[1:]}." for note in search.left_out.notes())
    raise DataError(f"{folder}: holds no images that can be read here.{instead}")


def left_out_beside(folder: Path, classes: Sequence[str]) -> LeftOut:
    """What a folder of class folders holds besides: images, hidden folders, results of camify."""
    left_out = LeftOut()
    for path in sorted(entry for entry in folder.iterdir() if entry.name not in classes):
        if is_hidden(path):
            left_out.add(path, Reason.HIDDEN)
        elif path.is_dir():
            left_out.add(path, Reason.OWN_OUTPUT)
        elif is_image(path):
            left_out.add(path, Reason.OUTSIDE_CLASSES)
        elif path != box_table(folder):
            left_out.add(path, Reason.NAME)
    return left_out
