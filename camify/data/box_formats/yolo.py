"""YOLO: a text file for each image; class, center x, center y, width, height as shares of the image, 0 to 1.

A sixth number is a score; an odd number of seven or more is a polygon (or a turned box), whose bounds count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...files import read_text
from .labelme import bounds
from .parsing import Line, fail, number, text, words_of_lines
from .records import POLYGONS, SCORED, ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["is_label_file", "read_yolo"]

_BACKGROUND = "files of labels are empty: images without objects"
_OTHER = re.compile(r"(?i)(classes|labels|train|val|valid|test|trainval|notes|(readme|license|.*requirements).*)\.txt")
_REMEDY = "Write them into data.yaml (names: [cat, dog]), or one a line into classes.txt, beside the labels."


def is_label_file(path: Path) -> bool:
    """Whether a text file may hold labels, by its name."""
    return path.suffix == ".txt" and not _OTHER.fullmatch(path.name)


def read_yolo(folder: Path, files: Sequence[Path], names_file: Path | None = None) -> ForeignBoxes:
    """The boxes of label files.

    Args:
        folder: below which they lie; names of the classes are looked for there, and in the two folders above.
        files: of labels; where some lie in folders called ``labels``, only these are read.
        names_file: where the names of the classes stand, if that is known.

    Raises:
        DataError: names the file, the line and the number.
    """
    in_labels = [path for path in files if "labels" in path.relative_to(folder).parent.parts]
    file, names, keypoints = _names(folder, names_file)
    collection = ForeignBoxes(relative=True, notes=[f"names of the classes are those of {file}"])
    for path in in_labels or files:
        parts = path.relative_to(folder).with_suffix("").parts
        name = "/".join("images" if part == "labels" else part for part in parts)
        image = ForeignImage(name, path, "its name")
        for line, words in words_of_lines(path):
            _add(collection, image, words[:5] if keypoints else words, names, line)
        if not image.boxes:
            collection.left_out.add(_BACKGROUND, str(path))
        collection.images.append(image)
    return collection


def _add(collection: ForeignBoxes, image: ForeignImage, words: list[Line], names: Mapping[int, str], line: int) -> None:
    place = f"line {line}"
    where = f"{image.file}, {place}"
    kind = words[0]
    if not (kind.isascii() and kind.isdecimal() and len(kind) < 10):
        fail(where, f"the class is {kind[:40]!r}. A whole number is needed, of the classes' names.")
    if int(kind) not in names:
        fail(where, f"class {kind} has no name; {len(names)} classes have one. {_REMEDY}")
    count = len(words)
    if not (count in (5, 6) or (count >= 7 and count % 2)):
        fail(where, f"has {count} numbers. A box has 5, with a score 6, a polygon 1 and two for each point.")
    values = [number(word, f"number {place_of}", where) for place_of, word in enumerate(words[1:], start=2)]
    if count > 6:
        collection.left_out.add(POLYGONS, where)
        corners = bounds(list(zip(values[::2], values[1::2], strict=True)))
    else:
        x, y, width, height = values[:4]
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if count == 6:
        collection.left_out.add(SCORED, where)
    image.boxes.append(ForeignBox(corners, names[int(kind)], place, encloses=count > 6))


# ---------------------------------------------------------------- names


def _names(folder: Path, file: Path | None) -> tuple[Path, dict[int, str], bool]:
    """Where the names of the classes stand, the names by number, and whether key points stand behind the boxes."""
    for place in [file] if file is not None else _places(folder):
        if place.suffix not in (".yaml", ".yml"):
            return place, _lines(place), False
        content = _yaml(place)
        if isinstance(content, dict) and "names" in content:
            return place, _listed(content["names"], str(place)), bool(content.get("kpt_shape"))
    return fail(str(folder), f"its labels are class numbers, and no file says their names. {_REMEDY}")


def _places(folder: Path) -> list[Path]:
    """Files that may hold names, the likeliest first: in the folder, then in the two above."""
    places = []
    for one in (folder, *folder.absolute().parents[:2]):
        yamls = [one / f"{stem}{suffix}" for stem in ("data", "dataset") for suffix in (".yaml", ".yml")]
        if one == folder:
            yamls += sorted([*one.glob("*.yaml"), *one.glob("*.yml")])
        texts = [one / name for name in ("classes.txt", "obj.names", "labels/classes.txt")]
        places += [*yamls, *texts, *(sorted(one.glob("*.names")) if one == folder else [])]
    return [place for place in places if place.is_file()]


def _lines(file: Path) -> dict[int, str]:
    """Names, one a line."""
    lines = read_text(file).rstrip().splitlines()
    return {at: text(line.strip(), "a class name", f"{file}, line {at + 1}") for at, line in enumerate(lines)}


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        fail(str(path), f"is no YAML ({' '.join(str(error).split())[:200]}). Repair it.", error)


def _listed(given: Any, where: str) -> dict[int, str]:
    """Names of a list, or of an object by number."""
    pairs = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    named = {}
    for key, name in pairs:
        if isinstance(key, bool) or not str(key).isdecimal():
            fail(where, f"names has the key {str(key)[:40]!r}. The numbers of the classes are needed.")
        known = isinstance(name, str | int | float)
        named[int(key)] = text(str(name) if known else name, f"names, number {key},", where)
    if not named:
        fail(where, f"names is empty, or no list. {_REMEDY}")
    return named
