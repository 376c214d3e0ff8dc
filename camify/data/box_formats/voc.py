"""Pascal VOC, ImageNet LOC: an XML file for each image; xmin, ymin, xmax, ymax, by the standard 1-based, inclusive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from .parsing import Line, fail, load_xml, number, size_of, text
from .records import ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["read_voc"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NO_BOX = "objects without a box are left out"


def read_voc(files: Sequence[Path]) -> ForeignBoxes:
    """The boxes of VOC's files, as they stand there; which origin they have is for the whole collection to say.

    Raises:
        DataError: names the file, the line and the field.
    """
    collection = ForeignBoxes(one_based=True)
    for path in files:
        root = load_xml(path)
        if root.tag != "annotation":
            fail(f"{path}, line 1", f"the first element is <{root.tag}>. Files of Pascal VOC begin with <annotation>.")
        name = (root.findtext("filename") or "").strip()
        folder = (root.findtext("folder") or "").strip()
        image = ForeignImage(_name(name, folder, path), path, "filename", _size(root, path))
        for one in root.iter("object"):
            _add(collection, image, one)
        collection.images.append(image)
    return collection


def _name(name: str, folder: str, path: Path) -> str:
    """The image's name; that of the XML file where it has none, or, in ImageNet's first ones, ``%s``."""
    name = path.stem if name in ("", "%s") else text(name, "filename", str(path))
    return f"{folder}/{name}" if folder and "/" not in name and "\\" not in name else name


def _size(root: Element, path: Path) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    width, height = ((size.findtext(side) or "").strip() for side in ("width", "height"))
    where = f"{path}, line {getattr(size, 'line', 0)}"
    if {width, height} <= {"", "0"}:  # as tools write it that did not look
        return None
    return size_of(Line(width), Line(height), where)


def _add(collection: ForeignBoxes, image: ForeignImage, one: Element) -> None:
    place = f"line {getattr(one, 'line', 0)}"
    where = f"{image.file}, {place}"
    label = text((one.findtext("name") or "").strip(), "name", where)
    box = one.find("bndbox")
    if box is None:
        collection.left_out.add(_NO_BOX, where)
        return
    texts = {corner: box.findtext(corner) for corner in _CORNERS}
    missing = [corner for corner, value in texts.items() if value is None]
    if missing:
        fail(where, f"bndbox has no {', '.join(missing)}. Add it, or remove the object.")
    x0, y0, x1, y1 = (number(Line((texts[corner] or "").strip()), corner, where) for corner in _CORNERS)
    image.boxes.append(ForeignBox((x0, y0, x1, y1), label, place))
