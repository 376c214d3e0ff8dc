"""Images whose labels stand in a table, CSV or Parquet, in one column or one column a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .label_table import LabelTable, read_label_table
from .labeled_files import LabeledFilesDataModule
from .labeled_images import LabeledFiles, LabelSets
from .splits import SPLITS, with_val
from .table_files import table_files

__all__ = ["ImageTableDataModule"]


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
