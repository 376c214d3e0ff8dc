"""Which image file is meant by the name that a file of boxes has for it: its path, or what is left of that."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ...errors import DataError
from ...image_files import image_suffixes
from .records import ForeignImage

__all__ = ["ImageNames", "leak_notes", "original_of"]

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # by Label Studio
_ROBOFLOW = re.compile(r"(.+)_(?:[A-Za-z]{3,4})\.rf\.[0-9A-Za-z]{6,}")
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class ImageNames:
    """The image files of a folder, by the names that they may have elsewhere.

    Args:
        images: files below ``root``.
        root: the folder.
    """

    def __init__(self, images: Sequence[Path], root: Path) -> None:
        self.root = root
        self.names = {path: path.relative_to(root).as_posix() for path in images}
        self._by_name = {name: path for path, name in self.names.items()}
        self._indices: dict[str, defaultdict[str, list[Path]]] = {"name": defaultdict(list), "stem": defaultdict(list)}
        for path in images:
            self._indices["name"][path.name].append(path)
            self._indices["stem"][path.stem].append(path)
        self._trees = dict[tuple[str, str], _Folders]()

    def find(self, image: ForeignImage) -> Path | None:
        """The file of an image; None where there is none.

        By its path relative to the root; else by its base name, with or without suffix, where of several the one counts
        that has most folders in common; else by the names that Label Studio and Roboflow gave it.

        Raises:
            DataError: several files are equally likely.
        """
        files = self.candidates(image)
        return self.the_one(image, files) if files else None

    def the_one(self, image: ForeignImage, files: Sequence[Path]) -> Path:
        """The one file of those that an image may be.

        Raises:
            DataError: there are two.
        """
        if len(files) > 1:
            first, second = (self.names[path] for path in files)
            raise DataError(
                f"{image.file}, {image.place}: image {image.name!r} may be {first} or {second} of {self.root}. Name its"
                " folder there, or give --images one of the folders."
            )
        return files[0]

    def candidates(self, image: ForeignImage) -> list[Path]:
        """The files that an image may be, the likeliest; of several that are equally likely two."""
        for name in _spellings(image.name):
            if name in self._by_name:
                return [self._by_name[name]]
        for name in _spellings(image.name):
            for index, key in self._keys(name):
                files = self._index(index).get(key)
                if files:
                    return files if len(files) == 1 else self._nearest(index, key, name)
        return []

    def has_other_folder(self, image: ForeignImage, path: Path) -> bool | None:
        """Whether an image's folder has another name here; None where one of the two names has no folder."""
        given = image.name.replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
        own = self.names[path].rpartition("/")[0].rpartition("/")[2]
        return given != own if given and own else None

    def _index(self, kind: str) -> defaultdict[str, list[Path]]:
        if kind not in self._indices:  # of uploads, which few collections have
            self._indices[kind] = defaultdict(list)
            for path in self.names:
                self._indices[kind][_uploaded(path.name)].append(path)
        return self._indices[kind]

    def _keys(self, name: str) -> list[tuple[str, str]]:
        """In which index an image is looked for, and under which name, the surest first."""
        base = name.rpartition("/")[2]
        stem = _stem(base)
        keys = [("name", base), ("stem", stem)]
        upload = _UPLOADED.fullmatch(base)
        if upload:
            keys += [("name", upload[1]), ("upload", upload[1]), ("stem", _stem(upload[1]))]
        original = original_of(base)
        if original is not None:
            keys.append(("stem", original))
        return keys

    def _nearest(self, index: str, key: str, name: str) -> list[Path]:
        """Of the files of a name those that have most folders, from the last on, in common with it; two at most."""
        if (index, key) not in self._trees:
            tree = self._trees[index, key] = _Folders()
            for path in self._indices[index][key]:
                tree.add(path, self.names[path].split("/")[-2::-1])
        return self._trees[index, key].files(name.split("/")[-2::-1])


class _Folders:
    """Files by their folders, from the last one on; of many files only the first two are kept."""

    __slots__ = ("_below", "_first")

    def __init__(self) -> None:
        self._first, self._below = list[Path](), dict[str, _Folders]()

    def add(self, path: Path, folders: Sequence[str]) -> None:
        """Add a file."""
        node = self
        node._first = [*node._first, path][:2]
        for folder in folders:
            node = node._below.setdefault(folder, _Folders())
            node._first = [*node._first, path][:2]

    def files(self, folders: Sequence[str]) -> list[Path]:
        """The files, two at most, that have most of these folders in common."""
        node = self
        for folder in folders:
            if folder not in node._below:
                break
            node = node._below[folder]
        return node._first


def _spellings(name: str) -> list[str]:
    """The paths that a name may stand for: as it is, without what addresses have besides, and without %20."""
    path = name.replace("\\", "/")
    if "?d=" in path:  # Label Studio's local files
        rest = path.partition("?d=")[2]
        return [_plain(one) for one in (*parse_qs(urlsplit(path).query).get("d", []), unquote(rest))]
    if "://" in path:
        path = path.split("://", 1)[1].partition("/")[2].partition("?")[0]
    spellings = [_plain(path), _plain(unquote(path))]
    return list(dict.fromkeys(spellings))


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _stem(base: str) -> str:
    """A base name without the ending of an image; all of it where it has none, as ids have."""
    stem, dot, suffix = base.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in image_suffixes() else base


def _uploaded(name: str) -> str:
    """A name as Label Studio keeps it: Django's rule for files that are uploaded."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def original_of(base: str) -> str | None:
    """The stem of the image that Roboflow made a file of (``dog_jpg.rf.0a1b2c....jpg``: dog); None of other names."""
    match = _ROBOFLOW.fullmatch(_stem(base))
    return match[1] if match else None


def leak_notes(names: Sequence[str]) -> list[str]:
    """What has to be said of copies that Roboflow made of one image and put into several splits.

    Args:
        names: paths of images.
    """
    splits, examples = defaultdict[str, set[str]](set), defaultdict[str, list[str]](list)
    for name in names:
        *folders, base = name.replace("\\", "/").split("/")
        original = original_of(base)
        split = next((_SPLITS[part.lower()] for part in folders if part.lower() in _SPLITS), None)
        if original is not None and split is not None:
            splits[original].add(split)
            examples[original].append(name)
    leaking = [original for original, where in splits.items() if len(where) > 1]
    if not leaking:
        return []
    shown = ", ".join(sorted(examples[leaking[0]])[:3])
    count = f"{len(leaking)} images have copies by Roboflow in several splits"
    return [f"{count}, so that validation sees what training saw; the first is {shown}. Split the originals first"]
