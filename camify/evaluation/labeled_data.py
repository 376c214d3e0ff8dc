"""Labeled images to measure on: folders of classes, or a table, with the network's number of every class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.boxes_csv import box_table, first_image
from ..data.class_folders import class_folders, files_of_classes, order_notes
from ..data.file_list import FileList
from ..data.image_checks import sizes_of, value_notes
from ..data.label_table import LabelTable, read_label_table
from ..data.labeled_images import BoxArrays, LabeledImages, LabelSets
from ..data.own_boxes import own_boxes
from ..data.remembered_checks import check_files
from ..data.splits import SPLIT_NAMES
from ..data.table_files import table_files
from ..errors import ConfigError, DataError
from ..preprocessing import Preprocessing
from ..task import Classes, Task

__all__ = ["LabeledFolder", "find_labeled"]

_SPLIT = "val"


@dataclass(frozen=True)
class LabeledFolder:
    """Images with the network's number of their class.

    Attributes:
        folder: that holds the class folders.
        images: in order of class and name.
        classes: the network's number of every class of the folder, by name.
        names: the network's classes in order, where the folder is what names them; else as they were given.
        has_boxes: whether ``boxes.csv`` knows any of the images.
        available: number of images in the folder.
        notes: what has to be said about them.
    """

    folder: Path
    images: LabeledImages
    classes: dict[str, int]
    names: tuple[str, ...] | None
    has_boxes: bool
    available: int
    notes: tuple[str, ...] = ()


def find_labeled(
    root: Path,
    split: str | None,
    preprocessing: Preprocessing,
    classes: Classes,
    class_count: int,
    *,
    limit: int | None = None,
    seed: int = 0,
    check_images: bool = True,
    workers: int = 0,
) -> LabeledFolder:
    """The images of ``root/SPLIT/CLASS/*``, or ``root/CLASS/*`` without splits, with boxes of ``root/boxes.csv``.

    Args:
        root: the data's folder; or a table of images and labels (see ``ImageTableDataModule``), one label each.
        split: None takes ``val``, or ``root`` itself where it has no such folder; all of a table without splits.
        preprocessing: how an image becomes an input.
        classes: the network's.
        class_count: how many classes the network has; 2 of one logit.
        limit: measure on so many images, drawn with the seed; None takes all.
        seed: of the draw.
        check_images: decode every image before anything is measured.
        workers: processes that decode.

    Raises:
        DataError: a folder is missing or empty, an image cannot be read, or boxes cannot be right.
        ConfigError: a class of the data is none of the network's, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1.")
    listing = _of_table(root, split, classes.names or ()) if root.is_file() else _of_folder(root, split)
    folder, folders = listing.folder, listing.class_names
    root = folder if root.is_file() else root
    numbers, notes = _class_numbers(folders, classes, class_count, folder)
    files, labels, listing_notes = listing.list_files()
    available = len(files)
    if limit is not None and limit < available:
        drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:limit].sort().values.numpy()
        files, labels = files.taken(drawn), labels[drawn]
    table = box_table(root)
    boxes: BoxArrays | None = None
    if check_images or table.is_file():
        checks, said = check_files(files, decode=check_images, bits=preprocessing.bits, workers=workers)
        notes += said
        if table.is_file():
            own = own_boxes(table, files, labels, sizes_of(checks), folders, others=True)
            boxes = own.boxes
            notes += own.notes
        notes += value_notes(files, checks)
    if boxes is None:
        notes.append(f"no boxes: {table} {_why_none(table, files) if table.is_file() else 'does not exist'}")
    if not check_images:
        notes.append("the images were not decoded beforehand (check_images false)")
    notes += listing_notes
    own_numbers = np.array([numbers[name] for name in folders])[labels]
    images = LabeledImages(files, own_numbers, preprocessing.evaluation(), preprocessing.bits, boxes=boxes)
    names = tuple(folders) if classes.names is None else classes.names
    return LabeledFolder(folder, images, numbers, names, boxes is not None, available, tuple(notes))


def _why_none(table: Path, files: FileList) -> str:
    first = first_image(table)
    if first is None:
        return "has no row"
    name = files[0].relative_to(table.parent).as_posix() if files[0].is_relative_to(table.parent) else str(files[0])
    return f"knows none of these images: its first is {first[:80]!r}, theirs are named like {name!r}"


class _Listing(NamedTuple):
    """The folder of the images, their classes, and what lists them: with the place of each one's class, and notes."""

    folder: Path
    class_names: list[str]
    list_files: Callable[[], tuple[FileList, NDArray[np.int32], list[str]]]


def _of_folder(root: Path, split: str | None) -> _Listing:
    folder = root / (split or _SPLIT)
    if split is None and not folder.is_dir():
        folder = root
    names = class_folders(folder)

    def list_files() -> tuple[FileList, NDArray[np.int32], list[str]]:
        files, labels, left_out = files_of_classes(folder, names)
        return files, labels, left_out.notes()

    return _Listing(folder, names, list_files)


def _of_table(table: Path, split: str | None, known: Sequence[str]) -> _Listing:
    rows = read_label_table(table, whole=known)
    if isinstance(rows.labels, LabelSets):
        raise DataError(
            f"{table}: images have several labels, and figures of maps are those of one class an image. Give a table of"
            " one label each."
        )
    chosen, labels = _of_split(rows, table, split), rows.labels
    present = np.unique(labels[chosen])

    def list_files() -> tuple[FileList, NDArray[np.int32], list[str]]:
        places = np.searchsorted(present, labels[chosen]).astype(np.int32)
        return table_files(rows, table, table.parent).taken(chosen), places, rows.notes

    return _Listing(table.parent, [rows.class_names[number] for number in present], list_files)


def _of_split(rows: LabelTable, table: Path, split: str | None) -> NDArray[np.int64]:
    """The numbers of the rows of a split; all where the table has no splits."""
    if rows.splits is None:
        if split is not None:
            raise ConfigError(f"--split {split!r}: {table} has no column split.")
        return np.arange(len(rows.names))
    wanted = _SPLIT if split is None else split
    if wanted.lower() not in SPLIT_NAMES:
        raise ConfigError(f"--split {wanted!r}: a table has train, val and test.")
    chosen = np.flatnonzero(rows.splits == SPLIT_NAMES[wanted.lower()])
    if not len(chosen):
        raise DataError(f"{table}: no line is of split {wanted}.")
    return chosen


def _class_numbers(
    folders: Sequence[str], classes: Classes, count: int, folder: Path
) -> tuple[dict[str, int], list[str]]:
    """The network's number of every class folder, and what was assumed."""
    names, one_logit = classes.names, classes.task is Task.BINARY
    if names is None:
        if len(folders) != count:
            raise ConfigError(
                f"{folder}: has {len(folders)} classes, the network {count}, and nothing names the network's."
                " Give a checkpoint folder with class names, or a folder of every class in the network's order."
            )
        order = order_notes(folders)
        how = "order of number" if order else "alphabetical order"
        assumed = f"the network names no classes: those of the folder in {how} were assumed to be its own"
        if one_logit:
            assumed += f"; its one logit speaks for the second, {folders[1]}, against {folders[0]}"
        return {name: index for index, name in enumerate(folders)}, [assumed, *order]
    if one_logit and len(names) == 1 and len(folders) == 2 and names[0] in folders:
        (other,) = (name for name in folders if name != names[0])
        return {names[0]: 0, other: 1}, [
            f"{other} was taken for the absence of {names[0]}, which the one logit stands for"
        ]
    _require_known(folders, names, folder)
    twice = sorted({name for name in folders if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{folder / twice[0]}: the network has several classes of that name. Name them apart.")
    return {name: list(names).index(name) for name in folders}, []


def _require_known(folders: Iterable[str], names: Sequence[str], folder: Path) -> None:
    unknown = [name for name in folders if name not in names]
    if unknown:
        listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ConfigError(
            f"{folder}: {listed}: no class of the network has that name. Its classes: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}. Rename the folders, or name the split with --split."
        )
