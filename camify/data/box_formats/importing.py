"""Boxes of any known format as rows of camify's own table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, DataError
from ..boxes_csv import COLUMNS, Box
from .image_names import ImageNames, leak_notes, original_of
from .kinds import read_boxes_of
from .placing import place_boxes, voc_origin_of
from .records import ForeignBoxes, ForeignImage
from .upright import ImageSizes, read_image_sizes

__all__ = ["FRAMES", "VOC_ORIGINS", "BoxRow", "ImportedBoxes", "import_boxes", "table_text"]

BoxRow = tuple[str, float, float, float, float, str]
"""Image, x0, y0, x1, y1, label."""
VOC_ORIGINS, FRAMES = (0, 1), ("stored", "upright")


@dataclass(frozen=True)
class ImportedBoxes:
    """Boxes as ``boxes.csv`` has them.

    Attributes:
        rows: image (relative to the root, with forward slashes), x0, y0, x1, y1 in pixels of the upright image,
            0-based, x1 and y1 exclusive, and label; in order of image.
        notes: what was left out, changed or assumed, a sentence each.
        kind: the format.
        images: how many images have a box.
    """

    rows: list[BoxRow]
    notes: list[str]
    kind: str
    images: int

    @property
    def by_image(self) -> dict[str, list[tuple[Box, str]]]:
        """Boxes with their labels by image, as ``boxes_csv.read_boxes`` gives them."""
        boxes = dict[str, list[tuple[Box, str]]]()
        for name, x0, y0, x1, y1, label in self.rows:
            boxes.setdefault(name, []).append(((x0, y0, x1, y1), label))
        return boxes


def import_boxes(
    source: Path,
    images: Sequence[Path],
    root: Path,
    *,
    kind: str | None = None,
    voc_origin: int | None = None,
    exif: str | None = None,
    sizes: Callable[[Path], ImageSizes] | None = None,
) -> ImportedBoxes:
    """Boxes of COCO, Pascal VOC, YOLO, CVAT, LabelMe, Label Studio, OpenImages and others; see ``KINDS``.

    Nothing is written. Headers are read of images that have boxes only.

    Args:
        source: file or folder.
        images: image files below ``root`` that boxes may be of.
        root: names in the rows are relative to it.
        kind: of ``KINDS``; None finds it from the content.
        voc_origin: number of the first pixel in files of Pascal VOC and ImageNet: 1 (ends inclusive) or 0 (ends
            exclusive); None derives it from all of them, and where nothing decides takes the standard's 1.
        exif: whether boxes belong to the ``"stored"`` or ``"upright"`` image, where its EXIF tag turns or mirrors it
            and no stated size decides; None: upright.
        sizes: of an image file, where that is known; None reads its header.

    Raises:
        ConfigError: an option has a value that cannot be.
        DataError: the kind cannot be told, or something cannot be right: names file, line or id, field, and remedy.
    """
    if voc_origin not in (None, *VOC_ORIGINS) or exif not in (None, *FRAMES):
        raise ConfigError(f"voc_origin={voc_origin!r}: choose 0 or 1; exif={exif!r}: choose stored or upright.")
    source, root = Path(source), Path(root)
    collection, kind = read_boxes_of(source, kind)
    notes = list(collection.notes)
    if voc_origin is not None and not collection.one_based:
        raise ConfigError(f"{source}: --voc_origin is of Pascal VOC and ImageNet; this is {kind}. Leave it out.")
    if exif == "stored" and collection.is_upright:
        raise ConfigError(
            f"{source}: --exif stored: boxes of kind {kind} are those of the upright image. Leave it out."
        )
    names = ImageNames(images, root)
    matched = _matched(collection, names, source, notes)
    known = read_image_sizes([path for _, path in matched], sizes)
    origin = 0
    if collection.one_based and matched:
        origin, why = voc_origin_of(matched, known, voc_origin)
        notes.append(f"{source}: {why}")
    placed, frame_notes = place_boxes(collection, matched, known, origin=origin, exif=exif)
    rows = [
        (names.names[path], *box, label)
        for path in sorted(placed, key=names.names.__getitem__)
        for box, label in placed[path]
    ]
    _refuse_unwritable(rows)
    notes += [*collection.left_out.notes, *frame_notes]
    return ImportedBoxes(rows, notes, kind, len({row[0] for row in rows}))


def _matched(
    collection: ForeignBoxes, names: ImageNames, source: Path, notes: list[str]
) -> list[tuple[ForeignImage, Path]]:
    """The images that are there and have boxes, with their files; the others are said.

    Raises:
        DataError: none is there, or two names lead to one file.
    """
    matched, absent, by_original = list[tuple[ForeignImage, Path]](), list[ForeignImage](), list[ForeignImage]()
    taken = dict[Path, ForeignImage]()
    candidates = [(image, names.candidates(image)) for image in collection.images]
    # Where folders agree, such as those of classes, an image of the same name in another folder is another image.
    folders_agree = any(files and names.has_other_folder(image, files[0]) is False for image, files in candidates)
    for image, files in candidates:
        if not files or (folders_agree and names.has_other_folder(image, files[0])):
            absent.append(image)
            continue
        path = names.the_one(image, files)
        if path in taken:
            first = taken[path]
            raise DataError(
                f"{image.file}, {image.place}: image {image.name!r} is {names.names[path]}, and so is {first.name!r}"
                f" ({first.file}, {first.place}). Name their folders there, or keep one of the two."
            )
        taken[path] = image
        if names.has_other_folder(image, path):
            collection.left_out.add(_BY_NAME, f"{image.name}, which is {names.names[path]}")
        if original_of(image.name.rpartition("/")[2]) is not None and original_of(path.name) is None:
            by_original.append(image)
        if image.boxes:
            matched.append((image, path))
    if absent and not taken:
        raise DataError(
            f"{source}: none of its {len(absent)} images is below {names.root}; the first is {absent[0].name!r}, and"
            f" there {_first(names)}. Give --images the folder of the labeled images."
        )
    if absent:
        place = f"{absent[0].name} ({absent[0].file}, {absent[0].place})"
        notes.append(f"{source}: images that are not below {names.root}: {len(absent)}; the first is {place}")
    if by_original:
        notes.append(
            f"{len(by_original)} images are Roboflow's copies of the ones that are here: their boxes fit only where it"
            f" neither turned, mirrored nor cropped them; the first is {by_original[0].name}"
        )
    notes += leak_notes([image.name for image in collection.images])
    return matched


_BY_NAME = "images are known by their names alone, since their folders have other names here"


def _first(names: ImageNames) -> str:
    first = next(iter(names.names.values()), None)
    return "is no image" if first is None else f"it is {first!r}"


def _refuse_unwritable(rows: Sequence[BoxRow]) -> None:
    bad = next((row[0] for row in rows if not _is_utf8(row[0])), None)
    if bad is not None:
        raise DataError(f"{bad!a}: its name is no UTF-8, so that a table cannot name it. Rename the file.")


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def table_text(rows: Sequence[BoxRow]) -> str:
    """The rows as ``boxes.csv``."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([(name, *(f"{value:.10g}" for value in box), label) for name, *box, label in rows])
    return content.getvalue()
