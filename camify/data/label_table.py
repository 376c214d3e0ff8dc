"""Labels of images from a table, CSV or Parquet: one or several labels in a cell, or a column for each class."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .csv_rows import csv_rows
from .labeled_images import LabelSets
from .splits import SPLIT_NAMES, class_order

__all__ = ["LabelTable", "read_label_table"]

IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "file", "path", "filepath", "image_id", "id")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "subset", "fold", "set", "partition")
SEPARATORS = ("|", ";")
"""That stand between several labels of a cell; of tables that say nothing else, the first that is there."""
_SHOWN = 10
_ABSENT, _PRESENT, _UNKNOWN = ("0", "0.0", "false"), ("1", "1.0", "true"), ("", "-1", "-1.0", "nan")


@dataclass(frozen=True)
class LabelTable:
    """The images of a table, in its order.

    Attributes:
        names: of the images as they are written.
        lines: where each stands.
        labels: numbers of classes (N,), or several each.
        class_names: in order.
        splits: number of each image's split in ``SPLITS`` (N,); None where the table names none.
        notes: what has to be said.
    """

    names: list[str]
    lines: NDArray[np.int64]
    labels: NDArray[np.int32] | LabelSets
    class_names: list[str]
    splits: NDArray[np.int8] | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    split: str | None
    classes: tuple[str, ...]  # one column each
    unread: tuple[str, ...]


def read_label_table(
    path: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    separator: str | None = None,
    class_names: Sequence[str] | None = None,
    whole: Collection[str] = (),
) -> LabelTable:
    """The images of a table and their labels.

    Args:
        path: ``.parquet``, else CSV in UTF-8 with commas, semicolons or tabs.
        image_column: names of images; None: the first of the usual names that is there.
        label_column: of labels, likewise; where there is none, all other columns must hold 0 and 1, a class each.
        split_column: of ``train``, ``val``, ``test`` (or how these are usually called), likewise; ``""``: none.
        separator: stands between several labels of a cell; ``""``: none does; None: ``|`` or ``;`` where there are any.
        class_names: all classes in order; None: those of the table, sorted, numbers by number; of columns their order.
        whole: names of classes that are not taken apart, whatever they hold; also those of ``class_names``.

    Raises:
        DataError: a line cannot be right, or a column is missing; names up to ten lines.
        ConfigError: a column that was named is not there.
    """
    header, rows = _rows(path)
    columns = _columns(path, header, image_column, label_column, split_column, class_names)
    names, lines, splits, cells, problems = list[str](), array("q"), array("b"), list[Any](), list[str]()
    empty = 0
    for line, row in rows:
        name, split = row[columns.image].strip(), None if columns.split is None else row[columns.split].strip()
        if not name:
            problems.append(f"{path}:{line}: column {columns.image} is empty.")
        if split is not None and split.lower() not in SPLIT_NAMES:
            problems.append(
                f"{path}:{line}: split {split[:40]!r} is none of train, val, test (also: training, validation, dev)."
                " If the column says something else, name another split_column, or '' for none."
            )
        cell = row[columns.label].strip() if columns.label is not None else _marks(row, columns.classes)
        if isinstance(cell, _Wrong):
            problems.append(
                f"{path}:{line}: column {cell.column} holds {cell.value!r}; 1, 0, or nothing are read. If it"
                " is no class, name the classes with class_names."
            )
        if len(problems) > _SHOWN:
            break
        if cell == "":
            empty += 1
            continue
        names.append(name)
        lines.append(line)
        splits.append(SPLIT_NAMES.get((split or "").lower(), 0))
        cells.append(cell)
    if problems:
        raise DataError("\n".join(problems[:_SHOWN]) + ("\n... and more" if len(problems) > _SHOWN else ""))
    if not names:
        raise DataError(f"{path}: no labeled images follow the first line.")
    notes = [f"{path}: {empty} lines without a label are left out"] if empty else []
    if columns.unread:
        more = ", ..." if len(columns.unread) > _SHOWN else ""
        notes.append(f"{path}: columns that are not read: {', '.join(columns.unread[:_SHOWN])}{more}")
    whole = {*whole, *(class_names or ())}
    labels, known = _labels(path, lines, cells, columns, separator, class_names, whole, notes)
    return LabelTable(
        names, np.array(lines, np.int64), labels, known,
        None if columns.split is None else np.array(splits, np.int8), notes,
    )  # fmt: skip


# ---------------------------------------------------------------- rows


def _rows(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The names of columns, and lines with their cells as text."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path)
    try:
        reader = csv_rows(path)
    except csv.Error as error:
        raise DataError(f"{path}:1: cannot be read ({error}).") from error
    header = list(reader.fieldnames or [])
    if not any(header):
        raise DataError(f"{path}:1: is empty. The first line names the columns: image,label or image,label,split.")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path}:1: column {twice[0]!r} is there twice. Name the columns apart.")

    def lines() -> Iterator[tuple[int, dict[str, str]]]:
        try:
            for row in reader:
                if None in row or None in row.values():  # how csv.DictReader marks a field too many or too few
                    raise DataError(
                        f"{path}:{reader.line_num}: the number of fields is not that of the first line ({len(header)})."
                        " A name with a comma in it must stand in quotes."
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: cannot be read ({error}).") from error

    return header, lines()


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError(f"{path}: Parquet needs pyarrow. Run: pip install 'camify[tables]'.") from error
    try:
        table = parquet.ParquetFile(path)
        header = list(table.schema_arrow.names)
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}).") from error

    def lines() -> Iterator[tuple[int, dict[str, str]]]:
        number = 0
        try:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, {str(name): _text(value) for name, value in row.items()}
        except (ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: row {number}: cannot be read ({str(error).splitlines()[0]}).") from error

    return header, lines()


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return SEPARATORS[0].join(map(_text, value))
    if isinstance(value, float) and value == int(value if value == value and abs(value) < 2**53 else 0):
        return str(int(value))
    return "" if value is None or value != value else str(value)


def _columns(
    path: Path, header: list[str], image: str | None, label: str | None, split: str | None,
    class_names: Sequence[str] | None,
) -> _Columns:  # fmt: skip
    by_name = {name.lower(): name for name in header}

    def column(given: str | None, usual: Sequence[str], option: str) -> str | None:
        if given is None:
            return next((by_name[name] for name in usual if name in by_name), None)
        if given == "":
            return None
        if given not in header:
            raise ConfigError(f"{option}={given!r}: {path} has no such column. Columns: {', '.join(header[:20])}.")
        return given

    images = column(image, IMAGE_COLUMNS, "image_column")
    if images is None:
        raise DataError(
            f"{path}:1: no column names the images. Columns: {', '.join(header[:20])}. Call one image, or give"
            " image_column."
        )
    splits = column(split, SPLIT_COLUMNS, "split_column")
    labels = column(label, LABEL_COLUMNS, "label_column")
    others = tuple(name for name in header if name not in (images, splits, labels))
    classes = () if labels is not None else others if class_names is None else tuple(class_names)
    absent = [name for name in classes if name not in others]
    if absent:
        raise DataError(f"{path}:1: no column is called {absent[0]!r}, a class. Columns: {', '.join(header[:20])}.")
    if labels is None and not classes:
        raise DataError(f"{path}:1: no column has labels. Columns: {', '.join(header[:20])}. Call one label.")
    return _Columns(images, labels, splits, classes, tuple(name for name in others if name not in classes))


@dataclass(frozen=True)
class _Wrong:
    column: str
    value: str


def _marks(row: dict[str, str], classes: Sequence[str]) -> list[tuple[int, float]] | _Wrong:
    """Numbers of the classes whose columns are not 0, with 1, or NaN where it is not known."""
    marks = []
    for number, name in enumerate(classes):
        value = row[name].strip().lower()
        if value in _PRESENT:
            marks.append((number, 1.0))
        elif value in _UNKNOWN:
            marks.append((number, np.nan))
        elif value not in _ABSENT:
            return _Wrong(name, row[name][:40])
    return marks


# ---------------------------------------------------------------- labels


def _labels(
    path: Path, lines: Sequence[int], cells: list[Any], columns: _Columns, separator: str | None,
    class_names: Sequence[str] | None, whole: Collection[str], notes: list[str],
) -> tuple[NDArray[np.int32] | LabelSets, list[str]]:  # fmt: skip
    if columns.label is None:
        return _of_marks(cells, len(columns.classes)), list(columns.classes)
    if separator is None:
        separator = next((one for one in SEPARATORS if any(one in cell for cell in cells if cell not in whole)), "")
        if separator:
            notes.append(f"{path}: {separator} was taken to stand between several labels of an image; separator='' not")
    rows = [_taken_apart(cell, separator, whole) for cell in cells] if separator else None
    parts: Iterator[str] = (part for row in rows for part in row) if rows is not None else iter(cells)
    names = class_order(dict.fromkeys(parts)) if class_names is None else list(class_names)
    numbers = {name: number for number, name in enumerate(names)}
    _refuse_unknown(path, lines, rows or ([cell] for cell in cells), names)
    if rows is None:
        return np.array([numbers[cell] for cell in cells], np.int32), names
    return LabelSets.of([sorted({numbers[part] for part in row}) for row in rows], len(names)), names


def _taken_apart(cell: str, separator: str, whole: Collection[str]) -> list[str]:
    return [cell] if cell in whole else [part.strip() for part in cell.split(separator) if part.strip()]


def _refuse_unknown(path: Path, lines: Sequence[int], rows: Iterable[Sequence[str]], names: Sequence[str]) -> None:
    known, some = set(names), ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    unknown = [
        f"{path}:{line}: label {part!r} is none of the classes ({some})."
        for line, row in zip(lines, rows, strict=True)
        for part in row
        if part not in known
    ]
    if unknown:
        more = f"\n... and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise DataError("\n".join(unknown[:_SHOWN]) + more)


def _of_marks(rows: list[list[tuple[int, float]]], class_count: int) -> LabelSets:
    sets = LabelSets.of([[number for number, _ in row] for row in rows], class_count)
    values = np.array([value for row in rows for _, value in row], np.float32)
    return LabelSets(sets.ends, sets.labels, class_count, values if np.isnan(values).any() else None)
