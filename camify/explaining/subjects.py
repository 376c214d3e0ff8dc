"""The pictures on which methods are compared, with their ground-truth boxes where those are known."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..data import Preprocessing
from ..data.boxes import read_boxes
from ..data.samples import read_image
from ..errors import DataError

__all__ = ["Subject", "boxes_of_class", "find_subjects"]

_LEVELS = 4  # folders, an image's own included, in which its boxes.csv is looked for


@dataclass(frozen=True)
class Subject:
    """A picture to compare on.

    Attributes:
        name: as it is shown.
        pixels: (3, H, W) uint8, upright; or a file that is read when it is needed.
        boxes: (n, 4) xyxy in shares of the sides; None where the data know no boxes of it.
        labels: of the boxes.
        target: the class to compare where it is given, else None.
    """

    name: str
    pixels: Tensor | Path
    boxes: Tensor | None = None
    labels: tuple[str, ...] = ()
    target: int | None = None

    def input(self, preprocessing: Preprocessing) -> Tensor:
        """The picture as a network's input (C, S, S)."""
        if isinstance(self.pixels, Path):
            return preprocessing.read(self.pixels)
        image: Tensor = preprocessing.evaluation()(self.pixels)
        return image.as_subclass(Tensor)

    def boxes_at(self, height: int, width: int) -> Tensor | None:
        """Its boxes in pixels of that size."""
        return None if self.boxes is None else self.boxes * torch.tensor([width, height, width, height])


def boxes_of_class(subject: Subject, name: str) -> Subject:
    """The subject with the boxes of one class, where some of its boxes have that label; else with all of them."""
    if subject.boxes is None or name not in subject.labels:
        return subject
    kept = [index for index, label in enumerate(subject.labels) if label == name]
    return Subject(
        subject.name, subject.pixels, subject.boxes[kept], tuple(subject.labels[i] for i in kept), subject.target
    )


def find_subjects(files: Sequence[Path]) -> list[Subject]:
    """The pictures of image files, with the boxes of a ``boxes.csv`` in their folder or one of the three above.

    Raises:
        DataError: an image cannot be read, or a line on one of these images cannot be right.
    """
    tables: dict[Path, list[Path]] = {}
    for file in files:
        table = _table_of(file)
        if table is not None:
            tables.setdefault(table, []).append(file)
    boxes: dict[Path, tuple[Tensor, tuple[str, ...]]] = {}
    for table, those in tables.items():
        boxes |= _boxes(table, those)
    subjects = []
    for file in files:
        read_image(file)  # what cannot be read is named before anything is computed
        found, labels = boxes.get(file, (None, ()))
        subjects.append(Subject(file.name, file, found, labels))
    return subjects


def _table_of(file: Path) -> Path | None:
    folders = file.resolve().parents
    return next((table for folder in list(folders)[:_LEVELS] if (table := folder / "boxes.csv").is_file()), None)


class _Sizes(dict[str, tuple[int, int]]):
    """Sizes of the images that are compared; lines on any other image of the table cannot be wrong here."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __missing__(self, name: str) -> tuple[int, int]:
        return (2**31, 2**31)


def _boxes(table: Path, files: Sequence[Path]) -> dict[Path, tuple[Tensor, tuple[str, ...]]]:
    names = {file.resolve().relative_to(table.parent).as_posix(): file for file in files}
    listed = _listed(table)
    sizes = _Sizes({name: _upright_size(file) for name, file in names.items() if name in listed})
    found = read_boxes(table, sizes)
    boxes = {}
    for name, file in names.items():
        if name in found:
            width, height = sizes[name]
            rows = torch.tensor([box for box, _ in found[name]], dtype=torch.float32)
            boxes[file] = (
                rows / torch.tensor([width, height, width, height]),
                tuple(label for _, label in found[name]),
            )
    return boxes


def _listed(table: Path) -> set[str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return {row["image"] for row in csv.DictReader(file) if row.get("image")}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error}).") from error


def _upright_size(file: Path) -> tuple[int, int]:
    """(width, height) as the image is seen."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise DataError(f"{file}: cannot be read as an image ({str(error) or type(error).__name__}).") from error
    return (height, width) if turned else (width, height)
