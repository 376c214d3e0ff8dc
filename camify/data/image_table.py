"""Images whose labels stand in a table, CSV or Parquet, in one column or one column a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..image_files import image_suffixes
from .file_list import FileList
from .image_search import find_images_below
from .label_table import LabelTable, read_label_table
from .labeled_files import LabeledFilesDataModule
from .labeled_images import LabeledFiles, LabelSets
from .splits import SPLITS, with_val

__all__ = ["ImageTableDataModule", "table_files"]

_SHOWN = 10


class ImageTableDataModule(LabeledFilesDataModule):
    """Images named by a table: ``image,label[,split]`` in CSV or Parquet; several labels an image make it multi-label.

    Several labels stand in one cell (``cat|dog``), or there is one column a class with 1, 0 or nothing (unknown). Names
    of images are relative to ``root``, with or without their ends (``.jpg``). Classes are sorted by name, by number
    where all are numbers; of columns in their order. Without a column of splits, ``val_share`` of each class is set
    aside. Checks, boxes and notes are those of ``ImageFolderDataModule``.

    Args:
        table: the file.
        root: folder of the images; None: the table's.
        image_column: names of images; None: the usual names (image, file_name, path, ...).
        label_column: likewise (label, class, category, ...); where there is none, each other column is a class.
        split_column: likewise (split, subset, ...), holding train, val or test; ``""``: none.
        separator: between several labels of a cell; ``""``: one label each; None: ``|`` or ``;`` where there are any.
        class_names: all classes in order; None: those of the table.
        val_share: of the training images, set aside for validation where the table has no ``val``.
        split_seed: of that draw.
        **others: those of ``ImageFolderDataModule``: ``image_size``, ``batch_size``, ``check``, ``boxes``, ...

    Attributes:
        task: ``"multilabel"`` where images have several labels, else None.

    Raises:
        DataError: a line of the table cannot be right, or images are not there; says which.

    Example:
        A table ``labels.csv`` beside the images::

            image,label,split
            photos/0001.jpg,cat,train
            photos/0002.jpg,dog,val
    """

    may_have_other_boxes = True

    def __init__(
        self,
        table: str,
        root: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        separator: str | None = None,
        class_names: list[str] | None = None,
        val_share: float = 0.2,
        split_seed: int = 0,
        **others: Any,
    ) -> None:
        path = Path(table)
        super().__init__(root or str(path.parent), **others)
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        if not path.is_file():
            raise DataError(f"{path}: no such file. Give table the CSV or Parquet file that names images and labels.")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder. Give root the folder that the names of images begin in.")
        self.table, self.val_share, self.split_seed = path, val_share, split_seed
        self._rows: LabelTable = read_label_table(
            path, image_column=image_column, label_column=label_column, split_column=split_column,
            separator=separator, class_names=class_names,
        )  # fmt: skip
        self.class_names = self._rows.class_names
        self.task = "multilabel" if isinstance(self._rows.labels, LabelSets) else None
        self._notes = list(self._rows.notes)

    def list_files(self) -> dict[str, LabeledFiles]:
        """The images of every split that the table has."""
        rows = self._rows
        every = LabeledFiles(table_files(rows, self.table, self.root), rows.labels)
        splits = np.zeros(len(rows.names), np.int8) if rows.splits is None else rows.splits
        numbers = {split: np.flatnonzero(splits == number) for number, split in enumerate(SPLITS)}
        parts = {split: every.taken(some) for split, some in numbers.items() if len(some)}
        if "train" not in parts:
            raise DataError(f"{self.table}: no line is of split train.")
        parts, notes = with_val(parts, self.val_share, self.split_seed, str(self.table))
        self._notes = [*rows.notes, *notes]
        return parts

    def other_sources(self) -> list[Path]:
        """The table, and masks."""
        return [self.table, *super().other_sources()]

    def listing_notes(self) -> list[str]:
        """What has to be said about the table."""
        return self._notes


def table_files(rows: LabelTable, table: Path, root: Path) -> FileList:
    """The images of a table, in its order.

    Args:
        rows: of the table.
        table: the file, for messages.
        root: folder that names begin in.

    Raises:
        DataError: some are not there, or are named twice; names the lines.
    """
    names = [
        _below_root(name, f"{table}:{line}", root) for name, line in zip(rows.names, rows.lines.tolist(), strict=True)
    ]
    files = FileList(root, names)
    gone = np.flatnonzero(files.stamps()[:, 0] < 0)
    if len(gone):
        names = _with_suffixes(names, gone.tolist(), rows, table, root)
        files = FileList(root, names)
    counts = Counter(names)
    if len(counts) < len(names):
        _refuse_repeated(names, counts, rows, table)
    return files


@cache
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _below_root(name: str, where: str, root: Path) -> str:
    place = Path(name.replace("\\", "/"))
    if "\0" in name or ".." in place.parts:
        raise DataError(f"{where}: image {name[:80]!r} leads out of {root}.")
    if not place.is_absolute():
        return str(place)
    try:
        return str(place.relative_to(_resolved(root)))
    except ValueError:
        raise DataError(
            f"{where}: image {name[:80]!r} does not lie below {root}. Give root a folder that all images lie below."
        ) from None


def _with_suffixes(names: Sequence[str], gone: Sequence[int], rows: LabelTable, table: Path, root: Path) -> list[str]:
    """The names, those without an image's end as the one file below root that begins so.

    Raises:
        DataError: images are not there.
    """
    by_stem: dict[str, str | None] = {}
    if any(Path(names[number]).suffix.lower() not in image_suffixes() for number in gone):
        for name in find_images_below(root).paths.names():
            for stem in {os.path.splitext(name)[0], Path(name).stem}:  # noqa: PTH122
                by_stem[stem] = None if stem in by_stem else name
    completed = list(names)
    problems = []
    for number in gone:
        full = by_stem.get(names[number])
        if full is None:
            why = "several files have that name" if names[number] in by_stem else "no such file"
            problems.append(f"{table}:{rows.lines[number]}: {root / names[number]}: {why}.")
        else:
            completed[number] = full
    if problems:
        hint = f" Names are relative to {root}; give root another folder, or put the table beside the images."
        hint = hint if len(gone) == len(names) else ""
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError("\n".join(problems[:_SHOWN]) + more + hint)
    return completed


def _refuse_repeated(names: Sequence[str], counts: Counter[str], rows: LabelTable, table: Path) -> None:
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    again = next(number for number, name in enumerate(names) if first[name] != number)
    lines = rows.lines
    repeated = sum(count > 1 for count in counts.values())
    raise DataError(
        f"{table}:{lines[again]}: image {names[again]!r} stands in line {lines[first[names[again]]]} already"
        f" ({repeated} images stand there several times). Several labels of an image stand in one line: cat|dog."
    )
