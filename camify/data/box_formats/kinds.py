"""Which format a file or folder of boxes has, known from its content, and its reader."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...files import read_text
from ..boxes_csv import COLUMNS
from .coco import read_coco
from .cvat import read_cvat
from .label_studio import read_label_studio
from .labelme import read_labelme
from .records import ForeignBoxes
from .research_sets import read_cub, read_wsol
from .tables import (
    IMAGENET_COLUMNS,
    OPENIMAGES_COLUMNS,
    read_hugging_face,
    read_imagenet,
    read_openimages,
    read_own,
)
from .voc import read_voc
from .yolo import is_label_file, read_yolo

__all__ = ["KINDS", "read_boxes_of"]

_HEAD = 1 << 16  # bytes that tell a kind
_LOOKED_INTO = 20  # files of a folder, of each ending
_ENDINGS = (".json", ".jsonl", ".xml", ".txt", ".csv", ".yaml", ".yml")
_LINE = re.compile(r"\d+(\s+-?\d[\d.eE+-]*){4,}\s*")


@dataclass
class _Source:
    """A file, or a folder and what lies in it.

    Attributes:
        path: as given.
        files: that may hold boxes, in order, by ending; of a file itself.
    """

    path: Path
    files: dict[str, list[Path]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> _Source:
        """Look what is there.

        Raises:
            DataError: nothing is, or it cannot be read.
        """
        if path.is_file():
            return cls(path, {path.suffix.lower(): [path]})
        if not path.is_dir():
            raise DataError(f"{path}: {'is no regular file' if path.exists() else 'no such file or folder'}.")
        source = cls(path)

        def refuse(error: OSError) -> None:
            raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror or error}).") from error

        for folder, folders, names in os.walk(path, onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a path for each of millions of images is slow
                if suffix in _ENDINGS and not name.startswith("."):
                    source.files.setdefault(suffix, []).append(Path(folder, name))
        return source

    def all(self, *suffixes: str) -> list[Path]:
        """The files of some endings; of a given file itself, whatever its ending."""
        if self.path.is_file():
            return [self.path]
        return [path for suffix in suffixes for path in self.files.get(suffix, [])]

    def named(self, name: str) -> Path | None:
        """The file of a name: the given one, in the given folder, or beside the given file."""
        place = self.path / name if self.path.is_dir() else self.path.with_name(name)
        return place if place.is_file() else None


# ---------------------------------------------------------------- readers


def _of_kind(source: _Source, kind: str, *suffixes: str) -> list[Path]:
    """The files of a source that are of a kind; of a given file itself."""
    files = source.all(*suffixes)
    if source.path.is_file():
        return files
    files = [path for path in files if kind in _kinds_of_file(path)]
    if not files:
        raise DataError(f"{source.path}: holds no file of kind {kind}. Give the file, or another kind.")
    return files


def _one_by_one(read: Callable[[Path], ForeignBoxes], kind: str, *suffixes: str) -> Callable[[_Source], ForeignBoxes]:
    """A reader of one file as one of a folder that has several of them, such as one for each split."""

    def read_all(source: _Source) -> ForeignBoxes:
        parts = []
        files = _of_kind(source, kind, *suffixes)
        for path in files:
            part = read(path)
            above = path.parent.relative_to(source.path).as_posix() if source.path.is_dir() else "."
            for image in part.images if above != "." else []:
                if "/" not in image.name:  # names are relative to the folder of their file, such as a split's
                    image.name = f"{above}/{image.name}"
            parts.append(part)
        whole = parts[0]
        for part in parts[1:]:
            whole.images += part.images
            whole.notes += part.notes
            whole.tells_frame = whole.tells_frame and part.tells_frame
            whole.left_out.add_all(part.left_out)
        return whole

    return read_all


def _all_together(read: Callable[[Sequence[Path]], ForeignBoxes], suffix: str) -> Callable[[_Source], ForeignBoxes]:
    """A reader of files of which each is one image's."""

    def read_all(source: _Source) -> ForeignBoxes:
        files = source.all(suffix)
        if not files:
            raise DataError(f"{source.path}: holds no {suffix} files. Give the folder that does, or another kind.")
        return read(files)

    return read_all


def _read_yolo(source: _Source) -> ForeignBoxes:
    path = source.path
    if path.is_dir():
        files, folder, names = [file for file in source.all(".txt") if is_label_file(file)], path, None
    elif path.suffix in (".yaml", ".yml"):
        folder, names = path.parent, path
        files = [file for file in _Source.of(folder).all(".txt") if is_label_file(file)]
    else:
        files, folder, names = [path], path.parent, None
    if not files:
        raise DataError(f"{path}: there are no label files (.txt) below it. Give the folder that holds labels/.")
    return read_yolo(folder, files, names)


def _read_cub(source: _Source) -> ForeignBoxes:
    for name in ("images.txt", "bounding_boxes.txt"):
        if source.named(name) is None:
            raise DataError(
                f"{source.path}: has no {name}. CUB-200 has images.txt and bounding_boxes.txt in one folder."
            )
    return read_cub(source.path if source.path.is_dir() else source.path.parent)


def _read_wsol(source: _Source) -> ForeignBoxes:
    file = source.named("localization.txt") if source.path.is_dir() else source.path
    if file is None:
        raise DataError(f"{source.path}: has no localization.txt. Give the folder that holds it.")
    return read_wsol(file)


def _read_hugging_face(source: _Source) -> ForeignBoxes:
    if source.path.is_file():
        return read_hugging_face(source.path.parent, [source.path])
    files = [path for path in source.all(".csv", ".jsonl") if path.stem == "metadata"]
    if not files:
        raise DataError(f"{source.path}: has no metadata.csv or metadata.jsonl. Give the folder that holds it.")
    return read_hugging_face(source.path, files)


KINDS: dict[str, tuple[str, Callable[[_Source], ForeignBoxes]]] = {
    "coco": ("COCO .json", _one_by_one(read_coco, "coco", ".json")),
    "voc": ("Pascal VOC or ImageNet LOC .xml, a file for each image", _all_together(read_voc, ".xml")),
    "yolo": ("YOLO .txt, a file for each image, with data.yaml, classes.txt or obj.names", _read_yolo),
    "cvat": ("CVAT for images .xml", _one_by_one(read_cvat, "cvat", ".xml")),
    "labelme": ("LabelMe .json, a file for each image", _all_together(read_labelme, ".json")),
    "labelstudio": ("Label Studio .json", _one_by_one(read_label_studio, "labelstudio", ".json")),
    "openimages": ("OpenImages .csv", _one_by_one(read_openimages, "openimages", ".csv")),
    "imagenet_csv": ("ImageNet LOC_*_solution.csv", _one_by_one(read_imagenet, "imagenet_csv", ".csv")),
    "huggingface": ("Hugging Face metadata.csv or .jsonl with objects", _read_hugging_face),
    "cub": ("CUB-200 images.txt and bounding_boxes.txt", _read_cub),
    "wsol": ("wsolevaluation localization.txt", _read_wsol),
    "camify": (",".join(COLUMNS), _one_by_one(read_own, "camify", ".csv")),
}
"""By name: what it is, in words, and its reader."""


def read_boxes_of(path: Path, kind: str | None) -> tuple[ForeignBoxes, str]:
    """The boxes of a file or folder, and its kind.

    Args:
        path: of the file or folder.
        kind: of ``KINDS``; None finds it from the content.

    Raises:
        ConfigError: there is no such kind.
        DataError: the kind cannot be told, or the content cannot be right.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind {kind!r}: is unknown. Known are {', '.join(KINDS)}.")
    source = _Source.of(path)
    kind = kind or _kind_of(source)
    return KINDS[kind][1](source), kind


# ---------------------------------------------------------------- from content


def _kind_of(source: _Source) -> str:
    """The one kind that a source may be.

    Raises:
        DataError: it may be none, or several.
    """
    seen = dict[str, Path]()
    for files in source.files.values():
        for path in files[:_LOOKED_INTO]:
            for kind in _kinds_of_file(path):
                seen.setdefault(kind, path)
    if {"cub", "wsol"} & seen.keys():  # whose other files have lines of numbers too
        seen.pop("yolo", None)
    if len(seen) == 1:
        return next(iter(seen))
    known = ", ".join(f"{kind} ({words})" for kind, (words, _) in KINDS.items())
    if seen:
        listed = "; ".join(f"{kind} ({path})" for kind, path in seen.items())
        raise DataError(
            f"{source.path}: may be of several kinds: {listed}. Say which, with --kind. Known are: {known}."
        )
    counts = ", ".join(f"{len(files)} {suffix or 'without ending'}" for suffix, files in source.files.items())
    raise DataError(
        f"{source.path}: is of no known kind of boxes; seen there: {counts or 'no file that may hold boxes'}. Say its"
        f" kind with --kind, or export it as one of: {known}."
    )


def _kinds_of_file(path: Path) -> list[str]:
    """The kinds that the beginning of a file is like; mostly one.

    Raises:
        DataError: it cannot be read as text.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return ["yolo"] if re.search(r"(?m)^\s*[\"']?names[\"']?\s*:", _head(path)) else []
    head = _head(path).lstrip()
    if not head and path.suffix.lower() == ".txt":
        return []  # YOLO's of an image without objects
    if not head:
        raise DataError(f"{path}: is empty. Export it again.")
    if head[0] == "<":
        return _kinds_of_xml(head)
    if head[0] in "{[" and path.suffix.lower() == ".jsonl":
        return ["huggingface"] if '"file_name"' in head and '"objects"' in head else []
    if head[0] in "{[":
        return _kinds_of_json(path, head)
    return _kinds_of_lines(path, head.splitlines()[0])


def _head(path: Path) -> str:
    """The beginning of a text file.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if b"\0" in content:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") and path.suffix.lower() == ".xml":  # which says its encoding
            return content.decode("utf-16", "replace")
        read_text(path)  # says what it is
    return content.decode("utf-8-sig", "replace")


def _kinds_of_xml(head: str) -> list[str]:
    root = re.search(r"<(annotations?)[\s>]", head)
    return [] if root is None else ["cvat" if root[1] == "annotations" else "voc"]


_TASKS = re.compile(r'"(rectanglelabels|predictions|annotations|from_name|data)"\s*:')
_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("labelme", ("shapes",)),
    ("coco", ("images", "annotations")),  # categories alone are Label Studio's notes.json, beside YOLO's labels
)


def _kinds_of_json(path: Path, head: str) -> list[str]:
    """By the keys of the whole: its beginning says them, or all of it is read."""
    if head[0] == "[":
        if '"image_id"' in head and '"bbox"' in head:
            return ["coco"]  # of results; the reader says what is missing
        return ["labelstudio"] if _TASKS.search(head) else []
    keys = _top_keys(head)
    if not any(key in keys for _, known in _KEYS for key in known):
        try:
            whole = json.loads(read_text(path))
        except (ValueError, RecursionError):  # the reader says what is wrong
            return ["coco"]
        keys = list(whole) if isinstance(whole, dict) else []
    if "data" in keys and ("annotations" in keys or "predictions" in keys):  # one task
        return ["labelstudio"]
    return [kind for kind, known in _KEYS if any(key in keys for key in known)][:1]


def _top_keys(head: str) -> Sequence[str]:
    """The keys of the outermost object of JSON that may be cut off."""
    keys, depth, text_start, in_text, is_escaped = list[str](), 0, 0, False, False
    for place, letter in enumerate(head):
        if in_text:
            if is_escaped:
                is_escaped = False
            elif letter == "\\":
                is_escaped = True
            elif letter == '"':
                in_text = False
                if depth == 1 and head[place + 1 : place + 20].lstrip()[:1] == ":":
                    keys.append(head[text_start:place])
        elif letter == '"':
            in_text, text_start = True, place + 1
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
    return keys


def _kinds_of_lines(path: Path, first: str) -> list[str]:
    """Of tables and text files, by their first line."""
    cells = [cell.strip().strip('"') for cell in first.split(",")]
    tables: dict[str, tuple[str, ...]] = {
        "camify": COLUMNS, "openimages": OPENIMAGES_COLUMNS, "imagenet_csv": IMAGENET_COLUMNS,
        "huggingface": ("file_name", "objects"),
    }  # fmt: skip
    for kind, columns in tables.items():
        if set(columns) <= set(cells):
            return [kind]
    if path.name == "bounding_boxes.txt" and path.with_name("images.txt").is_file():
        return ["cub"]
    if len(cells) == 5 and all(_is_number(cell) for cell in cells[1:]) and not _is_number(cells[0]):
        return ["wsol"]
    return ["yolo"] if is_label_file(path) and _LINE.fullmatch(first) else []


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
