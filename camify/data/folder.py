"""The user's own images: ``root/train/CLASS/*`` and ``root/val/CLASS/*``, boxes in ``root/boxes.csv``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..console import warn
from ..errors import DataError
from ..image_files import read_image
from ..preprocessing import Preprocessing
from .boxes_csv import Box, box_table
from .image_search import (
    ImageSearch,
    LeftOut,
    Reason,
    find_images_below,
    is_hidden,
    is_image,
    is_own_output,
    left_out_notes,
)
from .module import PreparedDataModule
from .own_boxes import own_boxes
from .samples import finish
from .sizes import scan_images, value_notes

__all__ = [
    "ImageFolderDataModule", "LabeledFile", "LabeledImages", "class_folders", "image_paths", "images_of",
    "left_out_beside", "order_notes",
]  # fmt: skip

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabeledFile:
    """An image file, its class and its boxes in pixels; None where the data set has no boxes."""

    path: Path
    label: int
    boxes: tuple[Box, ...] | None


class LabeledImages(Dataset[dict[str, Any]]):
    """Image files with a class and, where known, boxes of that class; samples are dicts.

    Args:
        records: the files.
        transform: of the samples.
        bits: see ``Preprocessing``.

    Attributes:
        has_boxes: whether there is any box.
    """

    def __init__(self, records: Sequence[LabeledFile], transform: v2.Transform, bits: int | None = None) -> None:
        self.records = list(records)
        self.transform, self.bits = transform, bits
        self.has_boxes = any(record.boxes for record in self.records)

    @property
    def labels(self) -> list[int]:
        """Class index of every sample."""
        return [record.label for record in self.records]

    @property
    def paths(self) -> list[str]:
        """File of every sample."""
        return [str(record.path) for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = read_image(record.path, self.bits)
        sample: dict[str, Any] = {"image": image, "label": record.label, "path": str(record.path)}
        if record.boxes is not None:
            sample["boxes"] = tv_tensors.BoundingBoxes(
                torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4),
                format="XYXY",
                canvas_size=(image.shape[-2], image.shape[-1]),
            )
        return finish(self.transform(sample))


class ImageFolderDataModule(PreparedDataModule):
    """Images in folders: ``root/train/CLASS/*``, ``root/val/CLASS/*``, optionally ``root/test/CLASS/*``.

    Class order is the sorted order of the train folders; other splits are mapped by name. Boxes may stand in
    ``root/boxes.csv`` (``image,x0,y0,x1,y1,label``; pixels, x1 and y1 exclusive, image relative to root);
    those with another label than their image's class are left out. Every image is decoded once before
    training starts, and all that cannot be read are named. What is left out or looks wrong is printed, a line
    each, and stands in ``notes``. Nothing below ``root`` is ever written to.

    Args:
        root: folder that holds the splits.
        image_size: side of the square input, or (height, width), pixels; None: the network's, else 224.
        batch_size: images per step.
        num_workers: loading processes.
        augment: ``"crop_flip"``, ``"flip"`` or ``"none"``, for training. None: ``"crop_flip"``; where a run keeps the
            features of its images (see ``CacheOptions``), each image and its mirror image.
        mean: per channel, of values in [0, 1]; None: the network's, else ImageNet's.
        std: likewise.
        check_images: decode every image before training starts.
        override_preprocessing: size, mean, std and bits that are given go before what the network expects; else a
            contradiction is an error.
        bits: how many bits gray files of 16 or 32 bits use (see ``Preprocessing``); None: the network's, else all.

    Raises:
        DataError: a folder is missing or empty, a class of another split is not in train, images cannot be
            read or would all come out black, or boxes cannot be right.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
        augment: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        check_images: bool = True,
        override_preprocessing: bool = False,
        bits: int | None = None,
    ) -> None:
        super().__init__(
            {"size": image_size, "mean": mean, "std": std, "bits": bits},
            Preprocessing(),
            augment=augment,
            batch_size=batch_size,
            num_workers=num_workers,
            override_preprocessing=override_preprocessing,
        )
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        self.root, self.check_images = Path(root), check_images
        self.class_names = class_folders(self.root / "train")
        self.splits: dict[str, LabeledImages] = {}
        self._fingerprint: dict[str, str] = {}
        self._content_notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What has to be said about how the folder was read; about boxes and values once it is set up."""
        left_out = list[LeftOut]()
        for folder in (self.root / split for split in self._present()):
            names = class_folders(folder)
            left_out += left_out_beside(folder, names)
            left_out += [one for name in names for one in find_images_below(folder / name).left_out]
        notes = [*order_notes(self.class_names), *left_out_notes(left_out)]
        beside = [entry for entry in self.root.iterdir() if entry.is_dir() and entry.name not in _SPLITS]
        unread = sorted(entry.name for entry in beside if not is_hidden(entry) and not is_own_output(entry))
        if unread:
            notes.append(f"folders of {self.root} that are none of {', '.join(_SPLITS)} are not read: {_few(unread)}")
        return [*notes, *self._content_notes]

    def _present(self) -> list[str]:
        return [split for split in _SPLITS if (self.root / split).is_dir()]

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - every stage needs the same
        """Read folders, boxes and every image, and take the network's preprocessing."""
        self.settle_preprocessing()
        for split, images in self.splits.items():
            images.transform, images.bits = self.transform_of(split), self.preprocessing.bits
        if self.splits:
            return
        present = self._present()
        if "val" not in present:
            raise DataError(f"{self.root / 'val'}: no such folder. Put validation images into val/CLASS/.")
        files = {split: self._files(split) for split in present}
        boxes = self._scan([file for split in files.values() for file in split])
        for split, pairs in files.items():
            records = [LabeledFile(path, label, boxes[path] if boxes else None) for path, label in pairs]
            self.splits[split] = LabeledImages(records, self.transform_of(split), self.preprocessing.bits)
        self._content_notes += self._box_counts()
        self.say_notes()

    def fingerprint(self) -> dict[str, str]:
        """What tells whether the data is still the same, by split, as it was when this was first asked.

        Names and sizes of all files count, the content of 1,000 of each split, and ``boxes.csv``.
        """
        if not self._fingerprint:
            for split in self._present():
                files = [path for path, _ in self._files(split)]
                count = f"{len(files)} images of {len(class_folders(self.root / split))} classes"
                self._fingerprint[split] = f"{count}, digest {_digest(self.root, files)}"
            table = box_table(self.root)
            self._fingerprint[table.name] = _digest(self.root, [table]) if table.is_file() else "none"
        return dict(self._fingerprint)

    def _files(self, split: str) -> list[tuple[Path, int]]:
        """Image files of a split with their class index."""
        folder = self.root / split
        names = class_folders(folder)
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise DataError(
                f"{folder / unknown[0]}: this class is not in {self.root / 'train'}. Classes are taken from"
                " train; move the folder or add training images."
            )
        missing = [name for name in self.class_names if name not in names]
        if missing:
            warn(f"{folder}: no images of {len(missing)} classes ({_few(missing)})", stacklevel=3)
        with_images = [(index, name) for index, name in enumerate(self.class_names) if name in names]
        return [(path, index) for index, name in with_images for path in image_paths(folder / name)]

    def _scan(self, files: list[tuple[Path, int]]) -> dict[Path, tuple[Box, ...]]:
        """Look at every image, as far as that is needed; boxes by image, none where there is no table."""
        table, self._content_notes = box_table(self.root), []
        if not (self.check_images or table.is_file()):
            return {}
        scanned = scan_images([path for path, _ in files], decode=self.check_images, bits=self.preprocessing.bits)
        self._content_notes = value_notes(scanned)
        if not table.is_file():
            return {}
        named = [(path, self.class_names[index]) for path, index in files]
        sizes = {path: one.size for path, one in scanned.items()}
        own = own_boxes(table, named, sizes, self.class_names)
        self._content_notes += own.notes
        return own.boxes

    def _box_counts(self) -> list[str]:
        """How many images of each split have boxes, where some have, and some not."""
        counts = {
            split: (sum(bool(record.boxes) for record in images.records), len(images))
            for split, images in self.splits.items()
        }
        if not any(boxed for boxed, _ in counts.values()) or all(boxed == total for boxed, total in counts.values()):
            return []
        listed = ", ".join(f"{boxed} of {total} images of {split}" for split, (boxed, total) in counts.items())
        note = f"{box_table(self.root)}: boxes of {listed}"
        if not counts["val"][0]:
            note += "; val has none, so not box accuracy is measured there but grid pointing, which needs none"
        return [note]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _digest(root: Path, files: Sequence[Path]) -> str:
    """A number of names and sizes of files, and of the ends of some, which differ where the beginnings are alike."""
    digest = hashlib.sha256()
    looked_into = max(1, len(files) // 1000)
    for number, path in enumerate(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()!a}{size}".encode("ascii"))
        if number % looked_into == 0:
            with path.open("rb") as file:
                file.seek(max(0, size - 4096))
                digest.update(file.read(4096))
    return digest.hexdigest()[:12]


def class_folders(folder: Path) -> list[str]:
    """The classes of a folder: its folders that are not hidden, sorted by name; by number where all are numbers.

    Folders that camify wrote are none.

    Raises:
        DataError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Put images into {folder.name}/CLASS/.")
    folders = (entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry))
    names = sorted(entry.name for entry in folders if not is_own_output(entry))
    if not names:
        raise DataError(f"{folder}: holds no class folders. Put images into {folder.name}/CLASS/.")
    return sorted(names, key=int) if _are_numbers(names) else names


def order_notes(class_names: Sequence[str]) -> list[str]:
    """What has to be said about the order of class folders: nothing, unless it is that of numbers."""
    if not _are_numbers(class_names):
        return []
    return [f"class folders are all numbers: in order of number, {class_names[0]} to {class_names[-1]}"]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def image_paths(folder: Path) -> list[Path]:
    """Image files anywhere below a class folder, sorted; see ``find_images_below``.

    Raises:
        DataError: it holds none; says what it holds instead.
    """
    return images_of(folder, find_images_below(folder))


def images_of(folder: Path, search: ImageSearch) -> list[Path]:
    """The images that were found below a folder.

    Raises:
        DataError: there are none; says what there is instead.
    """
    if search.paths:
        return search.paths
    instead = "".join(f" {note[0].upper()}{note[1:]}." for note in left_out_notes(search.left_out))
    raise DataError(f"{folder}: holds no images that can be read here.{instead}")


def left_out_beside(folder: Path, classes: Sequence[str]) -> list[LeftOut]:
    """What a folder of class folders holds besides: images, hidden folders, results of camify."""
    left_out = []
    for path in sorted(entry for entry in folder.iterdir() if entry.name not in classes):
        if is_hidden(path):
            left_out.append(LeftOut(path, Reason.HIDDEN))
        elif path.is_dir():
            left_out.append(LeftOut(path, Reason.OWN_OUTPUT))
        elif is_image(path):
            left_out.append(LeftOut(path, Reason.OUTSIDE_CLASSES))
        elif path != box_table(folder):
            left_out.append(LeftOut(path, Reason.NAME))
    return left_out
