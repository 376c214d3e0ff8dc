"""The boxes of explained images as files of other tools, from ``results.jsonl``: of a run that went on, all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.box_formats.writing import (
    BOX_FILES,
    BoxFiles,
    PredictedBox,
    PredictedImage,
    Predictions,
    relative_names,
    write_box_file,
)
from ..errors import DataError

__all__ = ["predicted_images", "write_explained_boxes"]


def predicted_images(results: Path, method: str, inputs: Sequence[Path] = ()) -> list[PredictedImage]:
    """Images with the boxes of a method and the probabilities of their classes.

    Args:
        results: ``results.jsonl`` of ``camify explain``.
        method: whose boxes.
        inputs: what was explained: names are relative to the folder in which all of it lies.

    Raises:
        DataError: a line is damaged.
    """
    paths, sizes, boxes = list[Path](), list[tuple[int, int]](), list[tuple[PredictedBox, ...]]()
    for number, line in enumerate(results.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            if "error" in row:
                continue
            paths.append(Path(row["file"]["path"] if "file" in row else row["image"]).absolute())
            height, width = map(int, row["size"])
            sizes.append((width, height))
            boxes.append(tuple(box for entry in row["classes"] for box in _boxes(entry, method)))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{results}, line {number}: is damaged, or has no boxes of {method} ({error!r}). Add --overwrite true"
                " to begin anew."
            ) from error
    names = relative_names(paths, inputs)
    return [PredictedImage(*one) for one in zip(names, sizes, boxes, strict=True)]


def _boxes(entry: dict[str, Any], method: str) -> list[PredictedBox]:
    figures = entry["maps"][method]
    corners = figures.get("boxes") or ([figures["box"]] if figures["box"] else [])
    label, index, score = str(entry["class"]), int(entry["index"]), float(entry["probability"])
    return [PredictedBox((x0, y0, x1, y1), label, index, score) for x0, y0, x1, y1 in corners]


def write_explained_boxes(
    folder: Path,
    results: Path,
    method: str,
    inputs: Sequence[Path],
    classes: Sequence[str],
    model: str,
    wanted: BoxFiles,
) -> list[Path]:
    """Write the wanted files into a folder of explained images; where they are.

    Raises:
        DataError: a name cannot be said in a format, or a line of the results is damaged.
    """
    predictions = Predictions(predicted_images(results, method, inputs), classes, model, wanted.url_prefix)
    places = [folder / BOX_FILES[kind][0] for kind in wanted.kinds]
    for kind, place in zip(wanted.kinds, places, strict=True):
        write_box_file(kind, place, predictions)
    return places
