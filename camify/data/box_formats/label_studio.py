"""Label Studio's JSON export: percent of the shown image, turned about the box's first corner; also of ``JSON_MIN``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .labelme import bounds
from .parsing import fail, load_json, number, require, require_list, require_mapping, size_of, text
from .records import OTHER_SHAPES, POLYGONS, TURNED, ForeignBox, ForeignBoxes, ForeignImage

__all__ = ["read_label_studio"]

_SEVERAL = "tasks have several annotations, of which the last is taken"
_UNDONE = "tasks without an annotation are left out"
_PREDICTED = "tasks have predictions and no annotation: the predictions are taken"
_TURNED_VIEW = "boxes drawn on an image that was turned in Label Studio (image_rotation) are left out"
_NO_LABEL = "boxes without a label are left out"
_BOXES, _POLYGONS = ("rectanglelabels", "rectangle"), ("polygonlabels", "polygon")
_LABELS = "labels"  # of a box or polygon that has none of its own, by its id


def read_label_studio(path: Path) -> ForeignBoxes:
    """The boxes of an export of Label Studio; where no task has an annotation, those of its predictions.

    Raises:
        DataError: names the file, the task by its id, the result by its place, and the field.
    """
    content = load_json(path)
    tasks = require_list([content] if isinstance(content, dict) else content, "the file", str(path))
    collection, done = ForeignBoxes(relative=True), list[tuple[ForeignImage, list[Any], str]]()
    has_annotations = any(isinstance(task, dict) and (task.get("annotations") or _is_minimal(task)) for task in tasks)
    for place, task in enumerate(tasks):
        task = require_mapping(task, f"task at place {place}", str(path))
        key = task.get("id")
        name = f"task {key}" if isinstance(key, int) and abs(key) < 10**30 else f"task at place {place}"
        where = f"{path}, {name}"
        results = _results(collection, task, where, has_annotations=has_annotations)
        if results is not None:
            done.append((ForeignImage(_image(task, where), path, name), results, where))
    for image, results, where in done:
        results = [require_mapping(one, f"result {place}", where) for place, one in enumerate(results)]
        labels = _labels_by_id(results)
        for place, result in enumerate(results):
            _add(collection, image, result, labels, f"{image.place}, result {place}")
    collection.images = [image for image, _, _ in done]
    return collection


def _labels_by_id(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The labels that stand in results of their own, as of a configuration with Rectangle and Labels."""
    own = [one for one in results if one.get("type") == _LABELS and isinstance(one.get("value"), dict)]
    return {str(one.get("id")): one["value"].get(_LABELS) for one in own}


def _is_minimal(task: Mapping[str, Any]) -> bool:
    """Whether a task is one of the short export, ``JSON_MIN``: its fields are those of the labels."""
    return "data" not in task and any(True for _ in _minimal(task))


def _minimal(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The boxes of the short export as the long one has them."""
    for value in task.values():
        for one in value if isinstance(value, list) else []:
            known = (_BOXES[0], _POLYGONS[0])
            kind = next((kind for kind in known if isinstance(one, dict) and kind in one), None)
            if kind is not None:
                sizes = {name: one.get(name) for name in ("original_width", "original_height")}
                yield {"type": kind, "value": one, **sizes, "image_rotation": one.get("image_rotation", 0)}


def _results(
    collection: ForeignBoxes, task: Mapping[str, Any], where: str, *, has_annotations: bool
) -> list[Any] | None:
    """The results of the annotation of a task that counts; None where it has none."""
    if "data" not in task:
        return list(_minimal(task))
    kind = "annotations" if has_annotations else "predictions"
    given = require_list(task.get(kind) or [], kind, where)
    entries = [require_mapping(one, kind, where) for one in given]
    entries = [one for one in entries if not one.get("was_cancelled")]
    if not entries:
        collection.left_out.add(_UNDONE, where)
        return None
    if not has_annotations:
        collection.left_out.add(_PREDICTED, where)
    if len(entries) > 1:
        collection.left_out.add(_SEVERAL, where)
    last = max(entries, key=lambda one: one["updated_at"] if isinstance(one.get("updated_at"), str) else "")
    if not isinstance(last.get("updated_at"), str):
        last = entries[-1]
    return require_list(require(last, "result", where), "result", where)


def _image(task: Mapping[str, Any], where: str) -> str:
    """What a task says its image is: of several texts the one that is called image, or ends as a file does."""
    data = require_mapping(task["data"], "data", where) if "data" in task else task
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    for key in ("image", "img", "image_url", "url"):
        if key in texts:
            return text(texts[key], key, where)
    paths = [value for value in texts.values() if "/" in value]
    if len(paths) != 1:
        fail(where, f"names no image (there is {', '.join(list(data)[:8]) or 'nothing'}). Export it with its data.")
    return text(paths[0], "data", where)


def _add(
    collection: ForeignBoxes,
    image: ForeignImage,
    result: Mapping[str, Any],
    by_id: Mapping[str, Any],
    place: str,
) -> None:
    where = f"{image.file}, {place}"
    kind = require(result, "type", where)
    if kind not in (*_BOXES, *_POLYGONS):
        if isinstance(kind, str) and kind.endswith("labels") and kind != _LABELS:
            collection.left_out.add(OTHER_SHAPES, where)
        return
    value = require_mapping(require(result, "value", where), "value", where)
    labels = require_list(value.get(kind) or by_id.get(str(result.get("id"))) or [], kind, where)
    if not labels:
        collection.left_out.add(_NO_LABEL, where)
        return
    if number(result.get("image_rotation") or 0, "image_rotation", where):
        collection.left_out.add(_TURNED_VIEW, where)
        return
    size = size_of(require(result, "original_width", where), require(result, "original_height", where), where)
    if image.size not in (None, size):
        fail(where, f"original_width and original_height are {_by(size)}, those of a box before {_by(image.size)}.")
    image.size = size
    encloses = True
    if kind in _POLYGONS:
        collection.left_out.add(POLYGONS, where)
        points = require_list(require(value, "points", where), "points", where)
        pairs = [[number(v, "points", where) for v in require_list(pair, "points", where, 2)] for pair in points]
        if not pairs:
            fail(where, "points is empty. Draw the polygon again.")
        corners = bounds(pairs)
    else:
        sides = {name: number(require(value, name, where), name, where) for name in ("x", "y", "width", "height")}
        angle = number(value.get("rotation") or 0, "rotation", where)
        encloses = angle % 360 != 0
        if encloses:
            collection.left_out.add(TURNED, where)
        corners = _around(**sides, angle=angle if encloses else 0.0, size=size)
    x0, y0, x1, y1 = (corner / 100 for corner in corners)
    for label in labels:
        name = text(label, kind, where)
        image.boxes.append(ForeignBox((x0, y0, x1, y1), name, place, encloses=encloses))


def _around(
    x: float, y: float, width: float, height: float, angle: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The box, percent, around one that is turned clockwise about its first corner, in pixels."""
    if not angle:
        return x, y, x + width, y + height
    across, down = size
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    sides = [(dx * width * across, dy * height * down) for dx in (0, 1) for dy in (0, 1)]
    return bounds([(x + (u * cosine - v * sine) / across, y + (u * sine + v * cosine) / down) for u, v in sides])


def _by(size: tuple[int, int] | None) -> str:
    return "nothing" if size is None else f"{size[0]} x {size[1]}"
