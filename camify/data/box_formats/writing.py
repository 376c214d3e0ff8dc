"""Predicted boxes as files of COCO, YOLO, CVAT and Label Studio, exact to a thousandth of a pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from ...errors import ConfigError, DataError
from ...files import to_json, whole_folder, write_whole
from ..boxes_csv import Box

__all__ = [
    "BOX_FILES", "LOCAL_FILES", "BoxFiles", "PredictedBox", "PredictedImage", "Predictions", "coco_text", "cvat_text",
    "label_studio_text", "refuse_foreign", "refuse_shared_labels", "relative_names", "write_box_file", "yolo_files",
]  # fmt: skip

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files of its own machine, below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
_MARK = "written by camify"
_CONTROL = {chr(code) for code in range(32)} - {"\t", "\n", "\r"}


@dataclass(frozen=True)
class PredictedBox:
    """A box with its class.

    Attributes:
        corners: x0, y0, x1, y1, pixels of the upright image, 0-based, ends exclusive.
        label: name of the class.
        index: its number.
        score: probability of the class.
    """

    corners: Box
    label: str
    index: int
    score: float


@dataclass(frozen=True)
class PredictedImage:
    """An image with its predicted boxes, if any.

    Attributes:
        name: path relative to the folder of all of them, with forward slashes.
        size: (width, height), upright.
        boxes: of it.
    """

    name: str
    size: tuple[int, int]
    boxes: tuple[PredictedBox, ...]


@dataclass(frozen=True)
class Predictions:
    """All that is written.

    Attributes:
        images: in order.
        classes: names of all classes, in order.
        model: which network it was, with its version.
        url_prefix: what stands before an image's name where Label Studio gets it.
    """

    images: Sequence[PredictedImage]
    classes: Sequence[str]
    model: str
    url_prefix: str = LOCAL_FILES


@dataclass(frozen=True)
class BoxFiles:
    """Which files of boxes are wanted.

    Attributes:
        kinds: of ``BOX_FILES``.
        url_prefix: see ``Predictions``.
    """

    kinds: tuple[str, ...] = ()
    url_prefix: str = LOCAL_FILES

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in BOX_FILES]
        if unknown:
            raise ConfigError(f"boxes={unknown[0]!r}: is unknown. Choose of {', '.join(BOX_FILES)}.")


# ---------------------------------------------------------------- formats


def coco_text(predictions: Predictions) -> str:
    """A COCO data set whose annotations have a ``score``; the id of a category is the class's number and 1."""
    annotations, images = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, image in enumerate(predictions.images, start=1):
        width, height = image.size
        images.append({"id": number, "file_name": image.name, "width": width, "height": height})
        for box in image.boxes:
            x0, y0, x1, y1 = box.corners
            sides = [round(side, 4) for side in (x0, y0, x1 - x0, y1 - y0)]
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": box.index + 1, "bbox": sides,
                "area": round(sides[2] * sides[3], 4), "iscrowd": 0, "score": round(box.score, 6),
            })  # fmt: skip
    categories = [{"id": index, "name": name} for index, name in enumerate(predictions.classes, start=1)]
    info = {"description": f"boxes predicted by {predictions.model}, {_MARK}"}
    return (
        to_json({"info": info, "images": images, "categories": categories, "annotations": annotations}, indent=None)
        + "\n"
    )


def yolo_files(predictions: Predictions) -> dict[str, str]:
    """``data.yaml`` and a file of labels for each image: class, center x, center y, width, height, score.

    Raises:
        DataError: two images share a file.
    """
    refuse_shared_labels([image.name for image in predictions.images])
    names = "".join(f"  {index}: {to_json(name)}\n" for index, name in enumerate(predictions.classes))
    files = {"data.yaml": f"# boxes predicted by {_one_line(predictions.model)}, {_MARK}\nnames:\n{names}"}
    for image in predictions.images:
        width, height = image.size
        lines = []
        for box in image.boxes:
            x0, y0, x1, y1 = box.corners
            shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(f"{box.index} {' '.join(f'{share:.9f}' for share in shares)} {box.score:.6f}\n")
        files[_label_file(image.name)] = "".join(lines)
    return files


def cvat_text(predictions: Predictions) -> str:
    """CVAT for images 1.1; the score is an attribute of the box.

    Raises:
        DataError: a name holds what XML cannot say.
    """
    used = sorted({box.label for image in predictions.images for box in image.boxes})
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>\n',
        f"<!-- {_MARK} -->\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n",
        f"      <name>{_xml(escape, predictions.model)}</name>\n      <labels>\n",
        *(f"        <label><name>{_xml(escape, label)}</name></label>\n" for label in used),
        "      </labels>\n    </task>\n  </meta>\n",
    ]
    for number, image in enumerate(predictions.images):
        width, height = image.size
        parts.append(f'  <image id="{number}" name={_xml(quoteattr, image.name)} width="{width}" height="{height}">\n')
        for box in image.boxes:
            sides = zip(("xtl", "ytl", "xbr", "ybr"), box.corners, strict=True)
            corners = " ".join(f'{side}="{value:.4f}"' for side, value in sides)
            label = _xml(quoteattr, box.label)
            parts.append(f'    <box label={label} source="auto" occluded="0" {corners} z_order="0">\n')
            parts.append(f'      <attribute name="score">{box.score:.6f}</attribute>\n    </box>\n')
        parts.append("  </image>\n")
    return "".join([*parts, "</annotations>\n"])


def label_studio_text(predictions: Predictions) -> str:
    """Tasks of Label Studio with predictions, for a labeling configuration with ``image`` and ``label``."""
    tasks = []
    for image in predictions.images:
        width, height = image.size
        results = []
        for number, box in enumerate(image.boxes):
            x0, y0, x1, y1 = box.corners
            value = {
                "x": round(100 * x0 / width, 8), "y": round(100 * y0 / height, 8),
                "width": round(100 * (x1 - x0) / width, 8), "height": round(100 * (y1 - y0) / height, 8),
                "rotation": 0, "rectanglelabels": [box.label],
            }  # fmt: skip
            results.append({
                "id": f"box{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0, "value": value,
                "score": round(box.score, 6),
            })  # fmt: skip
        score = round(max((box.score for box in image.boxes), default=0.0), 6)
        prediction = {"model_version": predictions.model, "score": score, "result": results}
        address = predictions.url_prefix + quote(image.name, errors="surrogateescape")
        tasks.append({"meta": {"note": _MARK}, "data": {"image": address}, "predictions": [prediction]})
    return to_json(tasks, indent=None) + "\n"


def _xml(how: Callable[[str], str], name: str) -> str:
    if not _CONTROL.isdisjoint(name):
        raise DataError(f"{name!a}: holds a control character, which CVAT's XML cannot say. Rename it.")
    return how(name)


def _one_line(name: str) -> str:
    return " ".join(name.split())


def _label_file(name: str) -> str:
    return f"labels/{PurePosixPath(name).with_suffix('.txt').as_posix()}"


# ---------------------------------------------------------------- files

BOX_FILES: dict[str, tuple[str, Callable[[Predictions], str | dict[str, str]]]] = {
    "coco": ("boxes_coco.json", coco_text),
    "yolo": ("boxes_yolo", yolo_files),
    "cvat": ("boxes_cvat.xml", cvat_text),
    "labelstudio": ("boxes_labelstudio.json", label_studio_text),
}
"""By kind: the name of the file or folder, and what makes its content."""


def write_box_file(kind: str, place: Path, predictions: Predictions) -> None:
    """Write the boxes in one format; what stood there is replaced when the new one is whole.

    Raises:
        DataError: a name cannot be said in the format.
    """
    content = BOX_FILES[kind][1](predictions)
    if isinstance(content, str):
        write_whole(place, content)
        return
    with whole_folder(place) as folder:
        for name, text in content.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode("utf-8", "surrogateescape"))


def refuse_foreign(place: Path) -> None:
    """Refuse to replace what camify did not write.

    Raises:
        ConfigError: it stands there.
    """
    if not (place.exists() or place.is_symlink()):
        return
    file = place / "data.yaml" if place.is_dir() else place
    head = b""
    if file.is_file() and not place.is_symlink():
        with file.open("rb") as opened:
            head = opened.read(1 << 12)
    if _MARK.encode() not in head and head.strip() != b"[]":
        raise ConfigError(f"{place}: exists, and camify did not write it. It was not touched; choose another --out.")


def refuse_shared_labels(names: Sequence[str]) -> None:
    """Refuse images that would share a file of labels in YOLO's format, which knows no endings.

    Raises:
        DataError: names the first two.
    """
    seen = dict[str, str]()
    for name in names:
        first = seen.setdefault(_label_file(name), name)
        if first != name:
            raise DataError(
                f"{first} and {name} differ by their ending only: in YOLO's format they would share a file of labels."
                " Rename one, or choose another format."
            )


def relative_names(paths: Sequence[Path], inputs: Sequence[Path] = ()) -> list[str]:
    """Names of image files relative to the folder in which all of them, and the inputs, lie.

    Args:
        paths: of the images, absolute.
        inputs: files or folders from which they came.
    """
    if not paths:
        return []
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in inputs]
    common = [list(path.parts) for path in dict.fromkeys([*folders, *(path.parent for path in paths)])]
    shared = 0
    for parts in zip(*common, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return ["/".join(path.parts[shared:]) for path in paths]
