"""Ground-truth boxes from ``boxes.csv``: ``image,x0,y0,x1,y1,label``.

Pixels of the image as it is seen, turned upright as its EXIF tag says; x1 and y1 are exclusive.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .csv_rows import csv_rows

__all__ = [
    "COLUMNS", "Box", "BoxRows", "absent_images", "box_problem", "box_table", "first_image", "is_box_table",
    "read_box_rows", "read_boxes", "table_above",
]  # fmt: skip

_FILE = "boxes.csv"
_LEVELS = 4  # folders, an image's own included, in which its table is looked for
COLUMNS = ("image", "x0", "y0", "x1", "y1", "label")
_SHOWN = 10

Box = tuple[float, float, float, float]


def box_table(folder: Path) -> Path:
    """Where the boxes of a folder's images stand, if there are any."""
    return folder / _FILE


def table_above(image: Path) -> Path | None:
    """The table of boxes in an image's folder or one of the three above; None where there is none."""
    tables = (box_table(folder) for folder in image.resolve().parents[:_LEVELS])
    return next((table for table in tables if table.is_file()), None)


@dataclass(frozen=True)
class BoxRows:
    """Boxes as a table has them, one row each.

    Attributes:
        images: number of each row's image (R,).
        boxes: (R, 4), x0, y0, x1, y1 in pixels of the upright image, exclusive.
        labels: number of each row's label in ``label_names`` (R,).
        label_names: the labels as they are written.
    """

    images: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int32]
    label_names: list[str]

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Box, str]]) -> BoxRows:
        """Of images' numbers, boxes and labels."""
        images, boxes, labels, names = array("q"), array("d"), array("i"), dict[str, int]()
        for image, box, label in rows:
            images.append(image)
            boxes.extend(box)
            labels.append(names.setdefault(label, len(names)))
        return cls(
            np.array(images, np.int64), np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int32),
            list(names),
        )  # fmt: skip


def read_box_rows(path: Path, numbers: Mapping[str, int], sizes: NDArray[np.int64], *, others: bool = False) -> BoxRows:
    """The boxes of a table.

    Args:
        path: the CSV file; images are named relative to its folder, with forward slashes.
        numbers: of every known image, by that name.
        sizes: (width, height) of the images by number, (N, 2).
        others: the file may also hold boxes of other images, which are left out, or none of these.

    Raises:
        DataError: names every line that cannot be right, up to ten, with the value and the likely cause.
    """
    problems: list[str] = []

    def right() -> Iterator[tuple[int, Box, str]]:
        rows = _rows(path)
        decimal_comma = rows.reader.dialect.delimiter != ","
        for row in rows:
            number = numbers.get(row.get("image") or "")
            if others and number is None:
                continue
            box = _parse(row, None if number is None else sizes[number], decimal_comma=decimal_comma)
            if isinstance(box, str):
                problems.append(f"{path}:{rows.line_num}: {box}")
            else:
                yield int(number or 0), box, row["label"]

    try:
        boxes = BoxRows.of(right())
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError("\n".join(problems[:_SHOWN]) + more)
    if not len(boxes.images) and not others:
        raise DataError(f"{path}:1: no boxes follow. Add lines, or remove the file if there are no boxes.")
    return boxes


def read_boxes(
    path: Path, sizes: Mapping[str, tuple[int, int]], *, others: bool = False
) -> dict[str, list[tuple[Box, str]]]:
    """Boxes with their labels, by image; arguments as ``read_box_rows``, the sizes by name."""
    names = list(sizes)
    numbers = {name: number for number, name in enumerate(names)}
    rows = read_box_rows(path, numbers, np.array(list(sizes.values()), np.int64).reshape(-1, 2), others=others)
    boxes: dict[str, list[tuple[Box, str]]] = {}
    for image, (x0, y0, x1, y1), label in zip(
        rows.images.tolist(), rows.boxes.tolist(), rows.labels.tolist(), strict=True
    ):
        boxes.setdefault(names[image], []).append(((x0, y0, x1, y1), rows.label_names[label]))
    return boxes


def is_box_table(path: Path) -> bool:
    """Whether a file is a table of boxes, by its first line."""
    try:
        _rows(path)
    except (DataError, csv.Error):
        return False
    return True


def first_image(path: Path) -> str | None:
    """The image of a table's first box, as it is named there; None where there is no box."""
    return next((row["image"] for row in _rows(path)), None)


def absent_images(path: Path, known: Collection[str]) -> list[str]:
    """The images that a table names and that are no files, each once, where known images lie in the same folder.

    Of folders without a known image that is not asked: they may be those of another machine.

    Raises:
        DataError: the table cannot be read.
    """
    try:
        named = dict.fromkeys(row["image"] or "" for row in _rows(path))
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    folders = {name.rpartition("/")[0] for name in known}
    asked = (name for name in named if name not in known and name.rpartition("/")[0] in folders)
    return [name for name in asked if not (path.parent / name).is_file()]


def _rows(path: Path) -> csv.DictReader[str]:
    """The rows of a table that has all columns."""
    rows = csv_rows(path)
    rows.fieldnames = [name.lower() if name.lower() in COLUMNS else name for name in rows.fieldnames or []]
    missing = [column for column in COLUMNS if column not in rows.fieldnames]
    if missing:
        raise DataError(
            f"{path}:1: column {', '.join(missing)} is missing. The first line must be: {','.join(COLUMNS)}; it is:"
            f" {','.join(rows.fieldnames)[:80] or 'empty'}. Boxes of other tools: camify data import."
        )
    return rows


def _parse(row: Mapping[str, str], size: NDArray[np.int64] | None, *, decimal_comma: bool) -> Box | str:
    """The box of a row on an image of that size, None: an unknown one; or what is wrong with it."""
    if None in row or None in row.values():  # how csv.DictReader marks a field too many or too few
        return "the number of fields is not that of the first line."
    if size is None:
        return f"image {row['image']!r} is not in the data set. Names are relative to the data's root folder."
    try:
        x0, y0, x1, y1 = (
            float(row[column].replace(",", ".") if decimal_comma else row[column]) for column in COLUMNS[1:5]
        )
    except ValueError:
        return f"a coordinate is not a number: {', '.join(row[column] for column in COLUMNS[1:5])}"
    return box_problem((x0, y0, x1, y1), size) or (x0, y0, x1, y1)


def box_problem(box: Box, size: NDArray[np.int64]) -> str | None:
    """What is wrong with a box, x0, y0, x1, y1, on an image of that (width, height); None where nothing is."""
    x0, y0, x1, y1 = box
    width, height = size.tolist()
    if not all(map(math.isfinite, box)):
        return f"box {box}: a coordinate is not finite."
    if x1 <= x0 or y1 <= y0:
        return f"box {box}: x0 < x1 and y0 < y1 are needed (is it x, y, width, height?)."
    if max(x1, y1) <= 1:
        return f"box {box}: all values are at most 1. Are they normalized? Pixels are needed."
    if min(x0, y0) < 0 or x1 > width or y1 > height:
        return f"box {box} leaves the image ({width} x {height} px). Clip it."
    return None
