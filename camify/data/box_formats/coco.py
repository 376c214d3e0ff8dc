"""COCO: ``bbox`` is x, y, width, height in pixels, floats, 0-based; category ids need not be contiguous."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parsing import fail, load_json, number, require, require_list, require_mapping, size_of, text
from .records import SCORED, ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["read_coco"]

_CROWD = "crowd boxes are left out (iscrowd)"
_NO_BOX = "annotations without a box are left out"


def read_coco(path: Path) -> ForeignBoxes:
    """The boxes of a COCO file.

    Raises:
        DataError: names the file, the image, category or annotation by its id, and the field.
    """
    content = load_json(path)
    if isinstance(content, list):
        fail(
            str(path),
            "is a list: a file of COCO results, or no COCO. Results name neither images nor classes; give the file with"
            " images, categories and annotations.",
        )
    top = require_mapping(content, "the file", str(path))
    collection, by_id = ForeignBoxes(), dict[Any, ForeignImage]()
    names = _categories(path, top)
    for place, one in enumerate(require_list(require(top, "images", str(path)), "images", str(path))):
        where = f"{path}, image {_id(one, place)}"
        one = require_mapping(one, "it", where)
        key = _key(require(one, "id", where), "id", where)
        if key in by_id:
            fail(where, f"its id is that of another image too ({by_id[key].name!r}). Give each image its own id.")
        size = size_of(one["width"], one["height"], where) if _is_stated(one) else None
        name = text(require(one, "file_name", where), "file_name", where)
        by_id[key] = ForeignImage(name, path, f"image {_id(one, place)}", size)
    for place, one in enumerate(require_list(require(top, "annotations", str(path)), "annotations", str(path))):
        _add(collection, path, one, f"annotation {_id(one, place)}", by_id, names)
    info = top.get("info")
    # Its width and height are the stored ones while its boxes are upright (HumanSignal/label-studio#6608).
    collection.tells_frame = not (isinstance(info, dict) and info.get("contributor") == "Label Studio")
    collection.images = list(by_id.values())
    return collection


def _categories(path: Path, top: Mapping[str, Any]) -> dict[Any, str]:
    names = dict[Any, str]()
    for place, one in enumerate(require_list(require(top, "categories", str(path)), "categories", str(path))):
        where = f"{path}, category {_id(one, place)}"
        one = require_mapping(one, "it", where)
        key = _key(require(one, "id", where), "id", where)
        name = text(require(one, "name", where), "name", where)
        if names.setdefault(key, name) != name:
            fail(where, f"its id is that of {names[key]!r} and of {name!r}. Give each category its own id.")
    return names


def _add(
    collection: ForeignBoxes,
    path: Path,
    one: Any,
    place: str,
    images: Mapping[Any, ForeignImage],
    names: Mapping[Any, str],
) -> None:
    where = f"{path}, {place}"
    one = require_mapping(one, "it", where)
    image = _known(images, require(one, "image_id", where), "image_id", "images", where)
    name = _known(names, require(one, "category_id", where), "category_id", "categories", where)
    if one.get("iscrowd"):
        collection.left_out.add(_CROWD, where)
        return
    if not one.get("bbox"):
        collection.left_out.add(_NO_BOX, where)
        return
    if one.get("score") is not None:
        collection.left_out.add(SCORED, where)
    x, y, width, height = (number(value, "bbox", where) for value in require_list(one["bbox"], "bbox", where, 4))
    image.boxes.append(ForeignBox((x, y, x + width, y + height), name, place))


def _known(by_id: Mapping[Any, Any], key: Any, field: str, of: str, where: str) -> Any:
    if _key(key, field, where) not in by_id:
        fail(where, f"{field} {key!r} is none of the file's {len(by_id)} {of}. Add it there, or correct the number.")
    return by_id[key]


def _key(value: Any, field: str, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or len(ascii(value)) > 100:
        number(value, field, where)
        fail(where, f"{field} is no id. A whole number is needed.")
    return value


def _id(one: Any, place: int) -> str:
    """The id of an entry, or its place where it has none."""
    given = one.get("id") if isinstance(one, dict) else None
    is_id = isinstance(given, int | str) and not isinstance(given, bool)
    return ascii(given)[:40].strip("'") if is_id and _is_short(given) else f"at place {place}"


def _is_short(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) < 10**30


def _is_stated(one: Mapping[str, Any]) -> bool:
    return one.get("width") is not None and one.get("height") is not None
