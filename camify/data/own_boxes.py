"""The boxes of labeled images that have their image's class, and what has to be said about the others."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .boxes_csv import Box, absent_images, read_boxes

__all__ = ["OwnBoxes", "absent_notes", "label_guesses", "own_boxes"]

_SHOWN = 5


@dataclass(frozen=True)
class OwnBoxes:
    """Boxes by image, those of its class only, and what has to be said about them.

    Attributes:
        boxes: of every image, in pixels; an image without a box has an empty tuple. Empty where there are none.
        notes: about what was left out.
    """

    boxes: dict[Path, tuple[Box, ...]]
    notes: list[str]


def own_boxes(
    table: Path,
    files: Sequence[tuple[Path, str]],
    sizes: Mapping[Path, tuple[int, int]],
    classes: Collection[str],
    *,
    others: bool = False,
) -> OwnBoxes:
    """Boxes of every image that have its class, none where the table knows none of the images.

    Args:
        table: ``boxes.csv``, which names the images relative to its folder.
        files: images with the names of their classes.
        sizes: (width, height) of the images.
        classes: of the data.
        others: the table may also hold boxes of other images.

    Raises:
        DataError: boxes cannot be right.
    """
    names = {path: path.relative_to(table.parent).as_posix() for path, _ in files}
    rows_by_name = read_boxes(table, {name: sizes[path] for path, name in names.items()}, others=others)
    notes = absent_notes(table, names.values()) if others and rows_by_name else []
    if not rows_by_name:
        return OwnBoxes({}, notes)
    boxes = {
        path: tuple(box for box, label in rows_by_name.get(names[path], ()) if label == class_name)
        for path, class_name in files
    }
    class_of = {names[path]: class_name for path, class_name in files}
    labels = Counter(label for name, rows in rows_by_name.items() for _, label in rows if label != class_of[name])
    notes += label_notes(table, labels, classes)
    if not any(boxes.values()):
        listed = ", ".join(sorted(labels)[:_SHOWN])
        raise DataError(
            f"{table}: no box has the class of its image as its label. Labels: {listed}."
            f" Classes: {', '.join(sorted(classes)[:_SHOWN])}."
        )
    return OwnBoxes(boxes, notes)


def label_notes(table: Path, labels: Mapping[str, int], classes: Collection[str]) -> list[str]:
    """What has to be said of boxes whose label is not the class of their image.

    Args:
        table: where they stand.
        labels: number of such boxes by label.
        classes: of the data.
    """
    foreign = Counter({label: count for label, count in labels.items() if label not in classes})
    total, notes = foreign.total(), []
    if total:
        fit = "box fits no class and is" if total == 1 else "boxes fit no class and are"
        notes.append(f"{table}: {total} {fit} left out: {label_guesses(foreign, classes)}")
    other = sum(labels.values()) - total
    if other:
        what = "box is left out, since it is" if other == 1 else "boxes are left out, since they are"
        notes.append(f"{table}: {other} {what} of another class than the image")
    return notes


def label_guesses(labels: Counter[str], classes: Collection[str]) -> str:
    """The most frequent labels that are no class, with their numbers and what was probably meant."""
    listed = "; ".join(
        f"{count} of label {label!r}{_guess(label, classes)}" for label, count in labels.most_common(_SHOWN)
    )
    return f"{listed}; {len(labels) - _SHOWN} other labels" if len(labels) > _SHOWN else listed


def _guess(label: str, classes: Collection[str]) -> str:
    """The class that was probably meant."""
    by_plain = {name.strip().casefold(): name for name in classes}
    close = difflib.get_close_matches(label.strip().casefold(), by_plain, n=1)
    return f" (did you mean {by_plain[close[0]]}?)" if close else ""


def absent_notes(table: Path, known: Iterable[str]) -> list[str]:
    """What has to be said of images that a table names and that do not exist."""
    absent = absent_images(table, known)
    if not absent:
        return []
    noun = "image that does" if len(absent) == 1 else "images that do"
    return [f"{table}: has boxes of {len(absent)} {noun} not exist; the first is {absent[0]}"]
