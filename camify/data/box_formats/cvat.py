"""CVAT for images 1.1: one XML file; xtl, ytl, xbr, ybr in pixels, 0-based, exclusive; turned about the center."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element

from .labelme import bounds
from .parsing import Line, fail, load_xml, number, require, size_of, text
from .records import OTHER_SHAPES, POLYGONS, TURNED, ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["read_cvat"]

_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_TRACKS = "tracks of videos are left out (export the task as CVAT for images)"


def read_cvat(path: Path) -> ForeignBoxes:
    """The boxes of an export of CVAT.

    Raises:
        DataError: names the file, the line and the field.
    """
    root = load_xml(path)
    if root.tag != "annotations":
        fail(f"{path}, line 1", f"the first element is <{root.tag}>. Files of CVAT begin with <annotations>.")
    collection = ForeignBoxes()
    for one in root.iter("image"):
        where = f"{path}, line {_line(one)}"
        name = text(require(one.attrib, "name", where), "name", where)
        width, height = (Line(require(one.attrib, side, where)) for side in ("width", "height"))
        image = ForeignImage(name, path, f"line {_line(one)}", size_of(width, height, where))
        for shape in one:
            _add(collection, image, shape)
        collection.images.append(image)
    for track in root.iter("track"):
        collection.left_out.add(_TRACKS, f"{path}, line {_line(track)}")
    return collection


def _line(one: Element) -> int:
    return int(getattr(one, "line", 0))


def _add(collection: ForeignBoxes, image: ForeignImage, shape: Element) -> None:
    place = f"line {_line(shape)}"
    where = f"{image.file}, {place}"
    if shape.tag not in ("box", "polygon"):
        if shape.tag != "tag":  # of the whole image
            collection.left_out.add(OTHER_SHAPES, where)
        return
    label = text(require(shape.attrib, "label", where), "label", where)
    if shape.tag == "polygon":
        collection.left_out.add(POLYGONS, where)
        pairs = [pair.split(",") for pair in require(shape.attrib, "points", where).split(";")]
        if any(len(pair) != 2 for pair in pairs):
            fail(where, "points is not x,y;x,y;... Correct it.")
        corners = bounds([[number(Line(value), "points", where) for value in pair] for pair in pairs])
        image.boxes.append(ForeignBox(corners, label, place, encloses=True))
        return
    x0, y0, x1, y1 = (number(Line(require(shape.attrib, side, where)), side, where) for side in _CORNERS)
    angle = number(Line(shape.get("rotation", "0")), "rotation", where)
    encloses = angle % 360 != 0
    if encloses:
        collection.left_out.add(TURNED, where)
        x0, y0, x1, y1 = _around(x0, y0, x1, y1, angle)
    image.boxes.append(ForeignBox((x0, y0, x1, y1), label, place, encloses=encloses))


def _around(x0: float, y0: float, x1: float, y1: float, angle: float) -> tuple[float, float, float, float]:
    """The upright box around one that is turned about its center, degrees."""
    cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    across, down = (x1 - x0) * cosine + (y1 - y0) * sine, (x1 - x0) * sine + (y1 - y0) * cosine
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - across / 2, y - down / 2, x + across / 2, y + down / 2
