"""Tables: camify's own boxes.csv, OpenImages, ImageNet of Kaggle, and the metadata files of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import read_text
from ..boxes_csv import COLUMNS
from .parsing import Line, fail, number, require, require_list, require_mapping, table_rows, text
from .records import ForeignBox, ForeignBoxes, ForeignImage

__all__ = [
    "IMAGENET_COLUMNS", "OPENIMAGES_COLUMNS", "read_hugging_face", "read_imagenet", "read_openimages", "read_own",
]  # fmt: skip

OPENIMAGES_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")  # in this order: X X Y Y
IMAGENET_COLUMNS = ("ImageId", "PredictionString")
_GROUP = "boxes of groups are left out (IsGroupOf)"
_CATEGORIES = ("categories", "category", "labels", "label")


class _Images:
    """Images of a table, each once, however many rows it has."""

    def __init__(self, file: Path) -> None:
        self.file, self.by_name = file, dict[str, ForeignImage]()

    def of(self, name: str, line: int) -> ForeignImage:
        """The image of a row."""
        return self.by_name.setdefault(name, ForeignImage(name, self.file, f"line {line}"))


def read_own(path: Path) -> ForeignBoxes:
    """``image,x0,y0,x1,y1,label``: pixels, 0-based, ends exclusive.

    Raises:
        DataError: names the file, the line and the column.
    """
    images = _Images(path)
    for line, row in table_rows(path, COLUMNS):
        where = f"{path}, line {line}"
        x0, y0, x1, y1 = (number(row[column], column, where) for column in COLUMNS[1:5])
        box = ForeignBox((x0, y0, x1, y1), text(row["label"], "label", where), f"line {line}")
        images.of(text(row["image"], "image", where), line).boxes.append(box)
    return ForeignBoxes(list(images.by_name.values()), is_upright=True)


def read_openimages(path: Path) -> ForeignBoxes:
    """OpenImages: shares of the image, 0 to 1, in the order XMin, XMax, YMin, YMax.

    Labels are ids (``/m/01yrx``); ``class-descriptions*.csv`` beside the table says their names.

    Raises:
        DataError: names the file, the line and the column.
    """
    images, collection, names = _Images(path), ForeignBoxes(relative=True), _descriptions(path.parent)
    for line, row in table_rows(path, OPENIMAGES_COLUMNS):
        where = f"{path}, line {line}"
        image = images.of(text(row["ImageID"], "ImageID", where), line)
        if row.get("IsGroupOf", "0") == "1":
            collection.left_out.add(_GROUP, where)
            continue
        x0, y0, x1, y1 = (number(row[column], column, where) for column in ("XMin", "YMin", "XMax", "YMax"))
        label = text(row["LabelName"], "LabelName", where)
        image.boxes.append(ForeignBox((x0, y0, x1, y1), names.get(label, label), f"line {line}"))
    collection.images = list(images.by_name.values())
    if not names and any(box.label.startswith("/m/") for image in collection.images for box in image.boxes):
        collection.notes.append(
            f"{path}: labels are ids, such as /m/01yrx; put class-descriptions-boxable.csv beside it for their names"
        )
    return collection


def _descriptions(folder: Path) -> dict[str, str]:
    file = min(folder.glob("*class-descriptions*.csv"), default=None)
    if file is None:
        return {}
    lines = (line.partition(",") for line in read_text(file).splitlines())
    return {key.strip(): name.strip().strip('"') for key, _, name in lines if name.strip()}


def read_imagenet(path: Path) -> ForeignBoxes:
    """ImageNet's table of Kaggle: ``n01440764 10 20 30 40 ...``, groups of five, by the convention of Pascal VOC.

    Raises:
        DataError: names the file, the line and the number.
    """
    images = _Images(path)
    for line, row in table_rows(path, IMAGENET_COLUMNS):
        where = f"{path}, line {line}"
        image = images.of(text(row["ImageId"], "ImageId", where), line)
        words = [Line(word) for word in row["PredictionString"].split()]
        if len(words) % 5:
            fail(where, f"PredictionString has {len(words)} words. A label and four numbers are needed for each box.")
        for start in range(0, len(words), 5):
            x0, y0, x1, y1 = (number(word, "PredictionString", where) for word in words[start + 1 : start + 5])
            label = text(str(words[start]), "PredictionString", where)
            image.boxes.append(ForeignBox((x0, y0, x1, y1), label, f"line {line}"))
    return ForeignBoxes(list(images.by_name.values()), one_based=True)


# ---------------------------------------------------------------- Hugging Face


def read_hugging_face(folder: Path, files: Sequence[Path]) -> ForeignBoxes:
    """``metadata.csv`` or ``metadata.jsonl``: file_name, and objects with bbox (x, y, width, height) and categories.

    Args:
        folder: names of images are relative to the folder of their metadata file, which lies below it.
        files: of metadata.

    Raises:
        DataError: names the file, the line and the field.
    """
    collection = ForeignBoxes()
    for path in files:
        above = path.parent.relative_to(folder).as_posix()
        rows = _json_lines(path) if path.suffix == ".jsonl" else list(table_rows(path, ("file_name", "objects")))
        names = dict[str, int]()
        for line, row in rows:
            where = f"{path}, line {line}"
            given = row.get("file_name")
            name = text(str(given) if isinstance(given, Line) else given, "file_name", where)
            if names.setdefault(name, line) != line:
                fail(where, f"file_name {name!r} stands in line {names[name]} too. Write one line for each image.")
            image = ForeignImage(name if above == "." else f"{above}/{name}", path, f"line {line}")
            objects = _parsed(row["objects"], where) if isinstance(row.get("objects"), Line) else row.get("objects")
            _add_objects(image, objects, line)
            collection.images.append(image)
    return collection


def _json_lines(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    lines = enumerate(read_text(path).split("\n"), start=1)
    parsed = ((line, _parsed(content, f"{path}, line {line}")) for line, content in lines if content.strip())
    return [(line, require_mapping(row, "the line", f"{path}, line {line}")) for line, row in parsed]


def _parsed(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        fail(where, f"is no JSON ({error}). Repair it, or export it again.", error)


def _add_objects(image: ForeignImage, objects: Any, line: int) -> None:
    place = f"line {line}"
    where = f"{image.file}, {place}"
    if objects is None:
        return
    if isinstance(objects, list):  # an object for each box
        entries = [require_mapping(one, "objects", where) for one in objects]
        key = _category_key(entries[0], where) if entries else ""
        boxes = [require(one, "bbox", where) for one in entries]
        labels = [require(one, key, where) for one in entries]
    else:
        objects = require_mapping(objects, "objects", where)
        boxes = require_list(require(objects, "bbox", where), "bbox", where)
        labels = require_list(objects[_category_key(objects, where)], "categories", where) if boxes else []
    if len(boxes) != len(labels):
        fail(where, f"objects has {len(boxes)} boxes and {len(labels)} categories. Give each box one.")
    for box, label in zip(boxes, labels, strict=True):
        if isinstance(label, int):
            fail(where, f"categories has the number {str(label)[:20]}, and no file says its name. Write names.")
        x, y, width, height = (number(value, "bbox", where) for value in require_list(box, "bbox", where, 4))
        name = text(label, "categories", where)
        image.boxes.append(ForeignBox((x, y, x + width, y + height), name, place))


def _category_key(objects: Mapping[str, Any], where: str) -> str:
    key = next((key for key in _CATEGORIES if key in objects), None)
    return key if key is not None else str(require(objects, "categories", where))
