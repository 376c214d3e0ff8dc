"""The boxes of labeled images that have their image's class, and what has to be said about the others."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .boxes_csv import BoxRows, absent_images, read_box_rows
from .file_list import FileList
from .labeled_images import BoxArrays, LabelSets

__all__ = ["OwnBoxes", "absent_notes", "kept_rows", "label_guesses", "own_boxes"]

_SHOWN = 5


@dataclass(frozen=True)
class OwnBoxes:
    """Boxes of images, those of their classes only, and what has to be said about them.

    Attributes:
        boxes: an image without a box has none of its own; None where the table knows none of the images.
        notes: about what was left out.
    """

    boxes: BoxArrays | None
    notes: list[str]


def own_boxes(
    table: Path,
    files: FileList,
    labels: NDArray[Any] | LabelSets,
    sizes: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    others: bool = False,
) -> OwnBoxes:
    """Boxes of every image that have its class, none where the table knows none of the images.

    Args:
        table: ``boxes.csv``, which names the images relative to its folder.
        files: the images, in or below that folder.
        labels: numbers of their classes in ``class_names`` (N,), or several each: then boxes of any class are kept.
        sizes: (width, height) of the images (N, 2).
        class_names: of the data.
        others: the table may also hold boxes of other images.

    Raises:
        DataError: boxes cannot be right.
    """
    prefix = files.folder.relative_to(table.parent).as_posix()
    prefix = "" if prefix == "." else f"{prefix}/"
    numbers = {prefix + name.replace(os.sep, "/"): number for number, name in enumerate(files.names())}
    rows = read_box_rows(table, numbers, sizes, others=others)
    notes = absent_notes(table, numbers) if others and len(rows.images) else []
    if not len(rows.images):
        return OwnBoxes(None, notes)
    own = kept_rows(table, rows, labels, class_names)
    return OwnBoxes(own.boxes, notes + own.notes)


def kept_rows(source: Path, rows: BoxRows, labels: NDArray[Any] | LabelSets, class_names: Sequence[str]) -> OwnBoxes:
    """The rows whose label is the class of their image; of several labels an image, a class of the data.

    Args:
        source: where they stand.
        rows: boxes, with numbers of images.
        labels: of the images; see ``own_boxes``.
        class_names: of the data.

    Raises:
        DataError: there is none.
    """
    known = {name: number for number, name in enumerate(class_names)}
    row_classes = np.array([known.get(name, -1) for name in rows.label_names], np.int64)[rows.labels]
    own = row_classes >= 0 if isinstance(labels, LabelSets) else row_classes == np.asarray(labels)[rows.images]
    counts = Counter({
        rows.label_names[number]: int(count)
        for number, count in enumerate(np.bincount(rows.labels[~own], minlength=len(rows.label_names)))
        if count
    })  # fmt: skip
    notes = label_notes(source, counts, class_names)
    if not own.any():
        listed = ", ".join(sorted(counts)[:_SHOWN])
        raise DataError(
            f"{source}: no box has the class of its image as its label. Labels: {listed}."
            f" Classes: {', '.join(sorted(class_names)[:_SHOWN])}."
        )
    return OwnBoxes(BoxArrays.of(len(labels), rows.images[own], rows.boxes[own]), notes)


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


def absent_notes(table: Path, known: Collection[str]) -> list[str]:
    """What has to be said of images that a table names and that do not exist."""
    absent = absent_images(table, known)
    if not absent:
        return []
    noun = "image that does" if len(absent) == 1 else "images that do"
    return [f"{table}: has boxes of {len(absent)} {noun} not exist; the first is {absent[0]}"]
