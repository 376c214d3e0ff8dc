"""Text files of two collections of research: CUB-200, and the metadata of wsolevaluation."""

from __future__ import annotations

from pathlib import Path

from .parsing import Line, fail, number, size_of, text, words_of_lines
from .records import ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["read_cub", "read_wsol"]


def read_cub(folder: Path) -> ForeignBoxes:
    """``bounding_boxes.txt`` (id x y width height), ``images.txt`` (id path); the class is the image's folder.

    Raises:
        DataError: names the file, the line and the number.
    """
    images, collection, seen = folder / "images.txt", ForeignBoxes(), dict[str, ForeignImage]()
    for line, words in words_of_lines(images):
        where = f"{images}, line {line}"
        if len(words) < 2:
            fail(where, "has one word. An id and the path of an image are needed.")
        if words[0] in seen:
            fail(where, f"id {words[0][:40]} is that of another image too ({seen[words[0]].name}). Correct it.")
        name = text(" ".join(words[1:]), "the path", where)
        seen[words[0]] = ForeignImage(name, images, f"line {line}")
    boxes = folder / "bounding_boxes.txt"
    for line, words in words_of_lines(boxes):
        where = f"{boxes}, line {line}"
        if len(words) != 5:
            fail(where, f"has {len(words)} words. An id and x, y, width, height are needed.")
        image = seen.get(words[0])
        if image is None:
            fail(where, f"id {words[0][:40]!r} is none of {images}. Correct one of the two.")
        image.file = boxes
        x, y, width, height = (number(word, name, where) for name, word in zip("xywh", words[1:], strict=True))
        label = text(image.name.rpartition("/")[0].rpartition("/")[2], "the folder of the image", where)
        image.boxes.append(ForeignBox((x, y, x + width, y + height), label, f"line {line}"))
    collection.images = list(seen.values())
    return collection


def read_wsol(path: Path) -> ForeignBoxes:
    """``localization.txt``: path,x0,y0,x1,y1 with x1 = x + width, several lines for an image with several boxes.

    Of ``class_labels.txt`` (path,number) beside it the numbers are the labels, else the folders of the images; the
    sizes are those of ``image_sizes.txt``, where it is there.

    Raises:
        DataError: names the file, the line and the number.
    """
    labels = _beside(path, "class_labels.txt", 2)
    sizes = _beside(path, "image_sizes.txt", 3)
    images, collection = dict[str, ForeignImage](), ForeignBoxes()
    for line, words in words_of_lines(path, ","):
        where = f"{path}, line {line}"
        if len(words) != 5:
            fail(where, f"has {len(words)} values. A path and x0, y0, x1, y1 are needed, with commas.")
        name = text(str(words[0]), "the path", where)
        image = images.setdefault(name, ForeignImage(name, path, f"line {line}"))
        x0, y0, x1, y1 = (number(word, of, where) for of, word in zip(("x0", "y0", "x1", "y1"), words[1:], strict=True))
        if image.size is None and name in sizes:
            image.size = size_of(sizes[name][0], sizes[name][1], where)
        folder = name.rpartition("/")[0].rpartition("/")[2]
        label = text(str(labels[name][0]) if name in labels else folder, "the label", where)
        image.boxes.append(ForeignBox((x0, y0, x1, y1), label, f"line {line}"))
    collection.images = list(images.values())
    if labels:
        collection.notes.append(f"{path}: labels are the class numbers of class_labels.txt")
    return collection


def _beside(path: Path, name: str, count: int) -> dict[str, list[Line]]:
    """The values of another file of the same folder by image; none where there is no such file."""
    file = path.with_name(name)
    if not file.is_file():
        return {}
    values = {}
    for line, words in words_of_lines(file, ","):
        if len(words) != count:
            fail(f"{file}, line {line}", f"has {len(words)} values. {count} are needed, with commas.")
        values[str(words[0])] = words[1:]
    return values
