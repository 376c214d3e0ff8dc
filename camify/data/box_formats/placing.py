"""From a file's convention to camify's: pixels of the upright image, 0-based, ends exclusive.

Two facts stand in no file and are derived from all of it, or assumed and said: where VOC's pixels begin, and whether
boxes belong to the stored or to the upright image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ...errors import DataError
from ..boxes_csv import Box
from .records import ForeignBox, ForeignBoxes, ForeignImage, LeftOut
from .upright import ImageSizes, upright_box

__all__ = ["place_boxes", "voc_origin_of"]

Matched = Sequence[tuple[ForeignImage, Path]]
_NEAR = 1e-3  # pixels; less is rounding
_EMPTY = "boxes without width or height are left out"
_CORNER = "boxes within the first pixel are left out"
_CLIPPED = "boxes that left the image by at most a pixel are clipped"
_RESIZED = "images have another size than the file states, of the same shape: their boxes are scaled"


# ---------------------------------------------------------------- where pixels begin


def voc_origin_of(matched: Matched, sizes: Mapping[Path, ImageSizes], given: int | None) -> tuple[int, str]:
    """The number of the first pixel in a collection of Pascal VOC's convention, and a sentence that says why.

    Args:
        matched: the images that are there.
        sizes: of these.
        given: by the user; None derives it.

    Raises:
        DataError: the given one contradicts a box.
    """
    zero, one, edge = None, "", ""
    for image, path in matched:
        width, height = image.size or sizes[path].upright
        for box in image.boxes:
            x0, y0, x1, y1 = box.corners
            where = f"{image.file}, {box.place}"
            if min(x0, y0) < 1 and zero is None:
                zero = where
            one = one or (where if min(x0, y0) == 1 else "")
            edge = edge or (where if x1 == width or y1 == height else "")
    if given == 1 and zero is not None:
        raise DataError(f"{zero}: a coordinate is below 1, so the first pixel is not 1. Give --voc_origin 0, or none.")
    if given is not None:
        return given, f"the first pixel is {given}, as given"
    if zero is not None:
        return 0, f"the first pixel is 0 and ends are exclusive, since a coordinate is below 1: {zero}"
    if one and edge:
        return 1, (
            f"the first pixel is 1 and ends are inclusive, as the standard says: no coordinate is 0, one is 1 ({one}),"
            f" and one is the image's whole side ({edge})"
        )
    return 1, (
        "assumed: the first pixel is 1 and ends are inclusive, as the standard of Pascal VOC says; nothing in the file"
        " decides it. --voc_origin 0 (voc_origin=0) takes them as 0-based with exclusive ends"
    )


# ---------------------------------------------------------------- boxes of all images


def place_boxes(
    collection: ForeignBoxes,
    matched: Matched,
    sizes: Mapping[Path, ImageSizes],
    *,
    origin: int = 0,
    exif: str | None = None,
) -> tuple[dict[Path, list[tuple[Box, str]]], list[str]]:
    """Boxes with labels in pixels of the upright image, by image, and what has to be said of turned images.

    What is left out or changed is counted in the collection.

    Args:
        collection: of the file.
        matched: its images that are there.
        sizes: of these.
        origin: number of the first pixel; ends are inclusive where it is 1.
        exif: ``"stored"`` or ``"upright"``, where nothing decides; None: upright.

    Raises:
        DataError: a stated size fits neither the stored nor the upright image, or a box leaves its image.
    """
    undecided, known_stored = list[Path](), list[Path]()
    placed = dict[Path, list[tuple[Box, str]]]()
    for image, path in matched:
        size = sizes[path]
        frame = "upright" if collection.is_upright else _frame(image, size, tells=collection.tells_frame)
        if frame is None:
            undecided.append(path)
        if frame == "stored":
            known_stored.append(path)
        is_stored = (frame or exif or "upright") == "stored"
        canvas = size.stored if is_stored else size.upright
        stated = _oriented(image.size, canvas)
        if stated is not None and stated != canvas and not collection.relative:
            collection.left_out.add(_RESIZED, f"{image.file}, {image.place}")
        unit = (1.0, 1.0) if collection.relative else (stated or canvas)
        factors = (canvas[0] / unit[0], canvas[1] / unit[1])
        boxes = placed[path] = []
        for box in image.boxes:
            corners = _placed(box, image, canvas, factors, origin, collection)
            if corners is not None:
                turned = upright_box(corners, size) if is_stored else corners
                x0, y0, x1, y1 = (round(corner, 4) for corner in turned)
                boxes.append(((x0, y0, x1, y1), box.label))
    return placed, _frame_notes(undecided, known_stored, exif)


def _frame(image: ForeignImage, size: ImageSizes, *, tells: bool) -> str | None:
    """``"stored"`` or ``"upright"``, where the boxes lie; None where nothing decides that.

    Raises:
        DataError: the stated size has the shape of neither.
    """
    if image.size is not None:
        shapes = {"upright": size.upright, "stored": size.stored}
        same = [name for name, shape in shapes.items() if shape == image.size]
        same = same or [name for name, shape in shapes.items() if _same_shape(image.size, shape)]
        if not same:
            _refuse_size(image, image.size, size)
        if len(same) == 1 and tells:
            return same[0]
    return "upright" if size.orientation == 1 else None


def _oriented(stated: tuple[int, int] | None, canvas: tuple[int, int]) -> tuple[int, int] | None:
    """A stated size as the boxes have it: the sides the other way round where only that has the canvas's shape."""
    if stated is None or stated == canvas or _same_shape(stated, canvas):
        return stated
    return stated[1], stated[0]


def _same_shape(stated: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one is a resized copy of the other: sides in proportion, each rounded to a pixel; not off by a pixel."""
    (a, b), (width, height) = stated, size
    if max(abs(a - width), abs(b - height)) <= 2:
        return stated == size
    return abs(a * height - b * width) <= (width + height) / 2


def _refuse_size(image: ForeignImage, stated: tuple[int, int], size: ImageSizes) -> NoReturn:
    width, height = size.upright
    stored = f", stored as {size.stored[0]} x {size.stored[1]}" if size.stored != size.upright else ""
    swapped = stated == (height, width)
    cause = "Its width and height are swapped" if swapped else "It is another image, or a crop"
    raise DataError(
        f"{image.file}, {image.place}: states {stated[0]} x {stated[1]} pixels for {image.name!r}, which has {width} x"
        f" {height}{stored}. {cause}; correct the size, or give the images that were labeled."
    )


def _frame_notes(undecided: Sequence[Path], known_stored: Sequence[Path], exif: str | None) -> list[str]:
    notes = []
    if known_stored:
        notes.append(
            f"{len(known_stored)} images are turned by their EXIF tag, and their stated sizes are the stored ones:"
            f" their boxes are turned with them; the first is {known_stored[0]}"
        )
    if undecided:
        how = f"as given: boxes belong to the {exif} image" if exif else "assumed: boxes belong to the upright image"
        other = "upright" if exif == "stored" else "stored"
        notes.append(
            f"{len(undecided)} images are turned or mirrored by their EXIF tag, and nothing says whether their boxes"
            f" belong to the stored or the upright image; {how} (--exif {other}, exif={other!r}, says the other); the"
            f" first is {undecided[0]}"
        )
    return notes


# ---------------------------------------------------------------- one box


def _placed(
    box: ForeignBox, image: ForeignImage, canvas: tuple[int, int], factors: tuple[float, float], origin: int,
    collection: ForeignBoxes,
) -> Box | None:  # fmt: skip
    """The corners in pixels of the canvas; None where there is no box."""
    where, first = f"{image.file}, {box.place}", float(origin)
    x0, y0, x1, y1 = box.corners
    x0, y0 = (x0 - first) * factors[0], (y0 - first) * factors[1]
    x1, y1 = x1 * factors[0], y1 * factors[1]  # the last pixel, 1-based, is where the next one begins, 0-based
    if x1 < x0 - _NEAR or y1 < y0 - _NEAR:
        raise DataError(
            f"{where}: box {_shown(box.corners)} has its ends before its starts{_hint(collection)}. Correct it."
        )
    width, height = canvas
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    if beyond > 1 and not box.encloses:
        raise DataError(_leaves(box, where, canvas, collection, (x0, y0, x1, y1)))
    if beyond > _NEAR and not box.encloses:
        collection.left_out.add(_CLIPPED, where)
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    return _kept((x0, y0, x1, y1), where, collection.left_out)


def _kept(corners: Box, where: str, left_out: LeftOut) -> Box | None:
    x0, y0, x1, y1 = corners
    if x1 - x0 < _NEAR or y1 - y0 < _NEAR:
        left_out.add(_EMPTY, where)
        return None
    if max(x1, y1) <= 1:  # boxes.csv takes these for shares of the image
        left_out.add(_CORNER, where)
        return None
    return corners


def _leaves(box: ForeignBox, where: str, canvas: tuple[int, int], collection: ForeignBoxes, pixels: Box) -> str:
    width, height = canvas
    unit, cause = "pixels", "Is it of another image?"
    if collection.relative:
        unit = "shares of the image"
        if max(map(abs, box.corners)) > 2:
            cause = "Are they pixels? Shares, or percent, are needed."
    elif max(pixels[2] - height, pixels[3] - width) <= 1 and min(pixels) >= -1:
        cause = "It fits the image turned by 90 degrees: --exif may say how."
    elif collection.one_based:
        cause = "Is it x, y, width, height, or of another image?"
    return f"{where}: box {_shown(box.corners)} ({unit}) leaves the image, which has {width} x {height} pixels. {cause}"


def _hint(collection: ForeignBoxes) -> str:
    return " (is it x, y, width, height?)" if collection.one_based else ""


def _shown(corners: Box) -> str:
    return ", ".join(f"{corner:g}" for corner in corners)
