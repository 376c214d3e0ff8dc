"""The user's own images: ``root/train/CLASS/*`` and ``root/val/CLASS/*``, boxes in ``root/boxes.csv``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from ..console import warn
from ..errors import DataError
from ..preprocessing import Preprocessing, read_image
from .boxes_csv import Box, box_table, read_boxes
from .module import PreparedDataModule
from .samples import finish
from .sizes import image_sizes

__all__ = [
    "ImageFolderDataModule",
    "LabeledFile",
    "LabeledImages",
    "class_folders",
    "image_paths",
    "left_out_notes",
    "order_notes",
    "own_boxes",
]


@dataclass(frozen=True)
class LabeledFile:
    """An image file, its class and its boxes in pixels; None where the data set has no boxes."""

    path: Path
    label: int
    boxes: tuple[Box, ...] | None


class LabeledImages(Dataset[dict[str, Any]]):
    """Image files with a class and, where known, boxes of that class; samples are dicts."""

    def __init__(self, records: Sequence[LabeledFile], transform: v2.Transform) -> None:
        self.records = list(records)
        self.transform = transform

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
        image = read_image(record.path)
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
    training starts, and all that cannot be read are named. Nothing below ``root`` is ever written to.

    Args:
        root: folder that holds the splits.
        image_size: side of the square input, or (height, width), pixels; None: the network's, else 224.
        batch_size: images per step.
        num_workers: loading processes.
        augment: ``"crop_flip"``, ``"flip"`` or ``"none"``, for training.
        mean: per channel, of values in [0, 1]; None: the network's, else ImageNet's.
        std: likewise.
        check_images: decode every image before training starts.
        override_preprocessing: size, mean and std that are given go before what the network expects; else a
            contradiction is an error.

    Raises:
        DataError: a folder is missing or empty, a class of another split is not in train, images cannot be
            read, or boxes cannot be right.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
        augment: str = "crop_flip",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        check_images: bool = True,
        override_preprocessing: bool = False,
    ) -> None:
        super().__init__(
            {"size": image_size, "mean": mean, "std": std},
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

    @property
    def notes(self) -> list[str]:
        """What has to be said about how the folder was read."""
        splits = [self.root / split for split in ("train", "val", "test") if (self.root / split).is_dir()]
        return [*order_notes(self.class_names), *left_out_notes(splits)]

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - every stage needs the same
        """Read folders, boxes and every image, and take the network's preprocessing."""
        self.settle_preprocessing()
        for split, images in self.splits.items():
            images.transform = self.transform_of(split)
        if self.splits:
            return
        present = [split for split in ("train", "val", "test") if (self.root / split).is_dir()]
        if "val" not in present:
            raise DataError(f"{self.root / 'val'}: no such folder. Put validation images into val/CLASS/.")
        files = {split: self._files(split) for split in present}
        boxes = self._boxes([file for split in files.values() for file in split])
        for split, pairs in files.items():
            records = [LabeledFile(path, label, None if boxes is None else boxes[path]) for path, label in pairs]
            self.splits[split] = LabeledImages(records, self.transform_of(split))

    def fingerprint(self) -> dict[str, str]:
        """What tells whether the data is still the same, by split, as it was when this was first asked.

        Names and sizes of all files count, the content of 1,000 of each split, and ``boxes.csv``.
        """
        if not self._fingerprint:
            for split in ("train", "val", "test"):
                if (self.root / split).is_dir():
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
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            warn(f"{folder}: no images of {len(missing)} classes ({listed})", stacklevel=3)
        with_images = [(index, name) for index, name in enumerate(self.class_names) if name in names]
        return [(path, index) for index, name in with_images for path in image_paths(folder / name)]

    def _boxes(self, files: list[tuple[Path, int]]) -> dict[Path, tuple[Box, ...]] | None:
        named = [(path, self.class_names[index]) for path, index in files]
        return own_boxes(self.root, named, decode=self.check_images)


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


def own_boxes(
    root: Path, files: Sequence[tuple[Path, str]], *, decode: bool, others: bool = False
) -> dict[Path, tuple[Box, ...]] | None:
    """Boxes of every image that have its class, None where ``root`` has no ``boxes.csv``; checks the images.

    Args:
        root: folder of ``boxes.csv``, which names the images relative to it.
        files: images with the names of their classes.
        decode: decode every image.
        others: the table may also hold boxes of other images; None where it holds none of these.

    Raises:
        DataError: images cannot be read, or boxes cannot be right.
    """
    table = box_table(root)
    if not (decode or table.is_file()):
        return None
    names = {path: path.relative_to(root).as_posix() for path, _ in files}
    sizes = image_sizes(list(names), decode=decode)
    if not table.is_file():
        return None
    rows_by_name = read_boxes(table, {name: sizes[path] for path, name in names.items()}, others=others)
    if not rows_by_name:
        return None
    boxes = {
        path: tuple(box for box, label in rows_by_name.get(names[path], ()) if label == class_name)
        for path, class_name in files
    }
    if not any(boxes.values()):
        labels = sorted({label for rows in rows_by_name.values() for _, label in rows})
        classes = sorted({class_name for _, class_name in files})
        raise DataError(
            f"{table}: no box has the class of its image as its label. Labels: {', '.join(labels[:5])}."
            f" Classes: {', '.join(classes[:5])}."
        )
    return boxes


def class_folders(folder: Path) -> list[str]:
    """The classes of a folder: its folders that are not hidden, sorted by name; by number where all are numbers.

    Raises:
        DataError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Put images into {folder.name}/CLASS/.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: holds no class folders. Put images into {folder.name}/CLASS/.")
    return sorted(names, key=int) if _are_numbers(names) else names


def order_notes(class_names: Sequence[str]) -> list[str]:
    """What has to be said about the order of class folders: nothing, unless it is that of numbers."""
    if not _are_numbers(class_names):
        return []
    return [f"class folders are all numbers: in order of number, {class_names[0]} to {class_names[-1]}"]


def left_out_notes(folders: Sequence[Path]) -> list[str]:
    """What has to be said of files that are not taken for images: how many, by the ends of their names."""
    counts: Counter[str] = Counter()
    for folder in folders:
        for path in folder.rglob("*"):
            if not path.name.startswith(".") and path.is_file() and path.suffix.lower() not in IMG_EXTENSIONS:
                counts[path.suffix.lower() or "no suffix"] += 1
    if not counts:
        return []
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
    return [f"files left out, since their names do not end as those of images ({', '.join(IMG_EXTENSIONS)}): {listed}"]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def image_paths(folder: Path) -> list[Path]:
    """Image files anywhere below a class folder, sorted; hidden files and folders are left out.

    Raises:
        DataError: it holds none.
    """
    paths = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMG_EXTENSIONS and not hidden and not path.is_dir():
            paths.append(path)
    if not paths:
        raise DataError(f"{folder}: holds no images ({', '.join(IMG_EXTENSIONS)}).")
    return paths
