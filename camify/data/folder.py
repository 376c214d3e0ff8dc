"""The user's own images: ``root/train/CLASS/*`` and ``root/val/CLASS/*``, boxes in ``root/boxes.csv``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..console import warn
from ..errors import DataError
from .class_folders import class_folders, files_of_classes, order_notes
from .image_search import LeftOut, is_hidden, is_own_output
from .labeled_files import LabeledFilesDataModule
from .labeled_images import LabeledFiles
from .splits import SPLITS

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(LabeledFilesDataModule):
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
        boxes: file or folder of boxes in another format than ``root/boxes.csv``: COCO, VOC, YOLO, CVAT and more, known
            by their content; see the page on boxes.
        masks: folder of PNG files that are called as the images; what is not 0 is the object.
        boxes_kind: the format of ``boxes``, where several are there: ``"coco"``, ``"voc"``, ...; None finds it.
        voc_origin: number of the first pixel in files of Pascal VOC, 0 or 1; None derives it.
        exif: ``"stored"`` or ``"upright"``: which of the two boxes belong to, where EXIF turns an image and no size
            decides; None: upright.
        check: ``"start"``: before training starts, ``"first_epoch"``: while it first goes through the images (one that
            cannot be read then stops it), ``"never"``; None: as ``check_images`` says.

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
        check: str | None = None,
        boxes: str | None = None,
        masks: str | None = None,
        boxes_kind: str | None = None,
        voc_origin: int | None = None,
        exif: str | None = None,
    ) -> None:
        super().__init__(
            root, image_size=image_size, batch_size=batch_size, num_workers=num_workers, augment=augment, mean=mean,
            std=std, override_preprocessing=override_preprocessing, bits=bits,
            check=check or ("start" if check_images else "never"), boxes=boxes, masks=masks, boxes_kind=boxes_kind,
            voc_origin=voc_origin, exif=exif,
        )  # fmt: skip
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        self.class_names = class_folders(self.root / "train")
        self._left_out = LeftOut()

    def list_files(self) -> dict[str, LabeledFiles]:
        """The images of every split that there is, class by class."""
        self._left_out = LeftOut()
        return {split: self._files(split) for split in SPLITS if (self.root / split).is_dir()}

    def listing_notes(self) -> list[str]:
        """What has to be said about the folders."""
        notes = [*order_notes(self.class_names), *self._left_out.notes()]
        beside = [entry for entry in self.root.iterdir() if entry.is_dir() and entry.name not in SPLITS]
        unread = sorted(entry.name for entry in beside if not is_hidden(entry) and not is_own_output(entry))
        if unread:
            notes.append(f"folders of {self.root} that are none of {', '.join(SPLITS)} are not read: {_few(unread)}")
        return notes

    def count_classes(self, split: str) -> int:
        """Number of class folders of a split."""
        return len(class_folders(self.root / split))

    def _files(self, split: str) -> LabeledFiles:
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
        files, labels, left_out = files_of_classes(folder, [name for name in self.class_names if name in names])
        self._left_out.update(left_out)
        numbers = np.array([number for number, name in enumerate(self.class_names) if name in names], np.int32)
        return LabeledFiles(files, numbers[labels])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
