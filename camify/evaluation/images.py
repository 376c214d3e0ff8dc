"""The pictures on which methods are compared, with their ground-truth boxes where those are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.boxes import read_boxes
from ..data.sizes import image_sizes
from ..preprocessing import Preprocessing

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
    sizes = image_sizes(list(files), decode=True)  # what cannot be read is named before anything is computed
    tables: dict[Path, list[Path]] = {}
    for file in files:
        table = _table_of(file)
        if table is not None:
            tables.setdefault(table, []).append(file)
    boxes: dict[Path, tuple[Tensor, tuple[str, ...]]] = {}
    for table, those in tables.items():
        boxes |= _boxes(table, {file: sizes[file] for file in those})
    return [Subject(file.name, file, *boxes.get(file, (None, ()))) for file in files]


def _table_of(file: Path) -> Path | None:
    folders = file.resolve().parents
    return next((table for folder in list(folders)[:_LEVELS] if (table := folder / "boxes.csv").is_file()), None)


def _boxes(table: Path, sizes: Mapping[Path, tuple[int, int]]) -> dict[Path, tuple[Tensor, tuple[str, ...]]]:
    """Boxes in shares of the sides, and their labels, of those of the images (of known size) that the table has."""
    names = {file.resolve().relative_to(table.parent).as_posix(): file for file in sizes}
    boxes = {}
    for name, rows in read_boxes(table, {name: sizes[file] for name, file in names.items()}, others=True).items():
        sides = torch.tensor([*sizes[names[name]], *sizes[names[name]]])
        shares = torch.tensor([box for box, _ in rows], dtype=torch.float32) / sides
        boxes[names[name]] = (shares, tuple(label for _, label in rows))
    return boxes
