"""LabelMe: a JSON file for each image; rectangles are two opposite corners in pixels, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parsing import fail, load_json, number, require, require_list, require_mapping, size_of, text
from .records import OTHER_SHAPES, POLYGONS, ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["bounds", "read_labelme"]

_SHAPES = {"rectangle": 2, "polygon": 3}  # with the least number of points


def read_labelme(files: Sequence[Path]) -> ForeignBoxes:
    """The boxes of LabelMe's files.

    Raises:
        DataError: names the file, the shape by its place, and the field.
    """
    collection = ForeignBoxes()
    for path in files:
        top = require_mapping(load_json(path), "the file", str(path))
        image_path = text(require(top, "imagePath", str(path)), "imagePath", str(path))
        stated = top.get("imageWidth") is not None and top.get("imageHeight") is not None
        size = size_of(top["imageWidth"], top["imageHeight"], str(path)) if stated else None
        image = ForeignImage(image_path, path, "imagePath", size)
        for place, shape in enumerate(require_list(require(top, "shapes", str(path)), "shapes", str(path))):
            _add(collection, image, shape, f"shape {place}")
        collection.images.append(image)
    return collection


def _add(collection: ForeignBoxes, image: ForeignImage, shape: Any, place: str) -> None:
    where = f"{image.file}, {place}"
    shape = require_mapping(shape, "it", where)
    kind = shape.get("shape_type") or "polygon"  # of old versions, which had nothing else
    label = text(require(shape, "label", where), "label", where)
    if not isinstance(kind, str) or kind not in _SHAPES:
        collection.left_out.add(OTHER_SHAPES, where)
        return
    pairs = require_list(require(shape, "points", where), "points", where)
    if len(pairs) < _SHAPES[kind]:
        fail(where, f"points has {len(pairs)} of them; a {kind} has {_SHAPES[kind]} or more. Draw it again.")
    points = [[number(value, "points", where) for value in require_list(pair, "points", where, 2)] for pair in pairs]
    if kind == "polygon":
        collection.left_out.add(POLYGONS, where)
    image.boxes.append(ForeignBox(bounds(points), label, place, encloses=kind == "polygon"))


def bounds(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """The box around points."""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return min(xs), min(ys), max(xs), max(ys)
