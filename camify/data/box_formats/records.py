"""What a reader of a foreign format gives: images as the file names them, with boxes in the file's own convention."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..boxes_csv import Box

__all__ = ["OTHER_SHAPES", "POLYGONS", "SCORED", "TURNED", "ForeignBox", "ForeignBoxes", "ForeignImage", "LeftOut"]

POLYGONS = "polygons are turned into the boxes around them"
OTHER_SHAPES = "shapes that are neither boxes nor polygons are left out"
TURNED = "turned boxes are replaced by the upright boxes around them"
SCORED = "boxes have a score: they are predictions, and are taken as if somebody had drawn them"


class ForeignBox(NamedTuple):
    """A box as a file has it.

    Attributes:
        corners: x0, y0, x1, y1 in the file's unit and origin.
        label: its class.
        place: where it stands in the file: ``line 7``, ``annotation 12``.
        encloses: whether it is the box around something else (a turned box, a polygon), which may reach over the edge.
    """

    corners: Box
    label: str
    place: str
    encloses: bool = False


@dataclass
class ForeignImage:
    """An image as a file names it.

    Attributes:
        name: file name, path, address or number.
        file: in which it stands.
        place: where it stands there.
        size: (width, height) that the file states; None where it states none.
        boxes: of the image.
    """

    name: str
    file: Path
    place: str
    size: tuple[int, int] | None = None
    boxes: list[ForeignBox] = field(default_factory=list)


@dataclass
class LeftOut:
    """What a reader leaves out or changes, counted by reason, with the first case of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count a case; the reason says what happens to several of them."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def add_all(self, other: LeftOut) -> None:
        """Add the cases of another one, which come after these."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, other.first[reason])

    @property
    def notes(self) -> list[str]:
        """A sentence for each reason."""
        return [f"{reason}: {count}; the first is {self.first[reason]}" for reason, count in self.counts.items()]


@dataclass
class ForeignBoxes:
    """All that a file or folder says.

    Attributes:
        images: each name once.
        relative: whether coordinates are shares of the image, 0 to 1; else pixels.
        one_based: whether the format's standard is Pascal VOC's: the first pixel is 1, ends are inclusive.
        tells_frame: whether a stated size says in which frame, stored or upright, the boxes lie.
        is_upright: whether boxes are those of the upright image by definition.
        left_out: what was left out or changed.
        notes: what has to be said besides.
    """

    images: list[ForeignImage] = field(default_factory=list)
    relative: bool = False
    one_based: bool = False
    tells_frame: bool = True
    is_upright: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
