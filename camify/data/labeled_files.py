"""What data modules of labeled image files share, however they are listed: checks, boxes, notes, splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CamifyError, ConfigError, DataError
from ..image_files import EncodedImage
from ..preprocessing import Preprocessing
from ..ranks import current
from .box_formats.importing import import_boxes
from .boxes_csv import BoxRows, box_table
from .file_list import FileList
from .image_checks import CHECK, NOT_DECODED, sizes_of, value_notes
from .labeled_images import BoxArrays, JoinedImages, LabeledFiles, LabeledImages, LabelSets
from .leakage import leakage_notes
from .masks import MaskList, mask_files
from .module import PreparedDataModule
from .own_boxes import kept_rows, own_boxes
from .remembered_checks import RememberedChecks, check_files, identities

__all__ = ["CHECKS", "LabeledFilesDataModule", "joined_files", "joined_labels"]

CHECKS = ("start", "first_epoch", "never")
"""When images are decoded to see whether they can be: before training starts, while it goes through them, or not."""
_OPTIONS = {"images": "root", "kind": "boxes_kind"}


class LabeledFilesDataModule(PreparedDataModule):
    """Splits of labeled image files below a root folder; a subclass lists them.

    Args:
        root: folder that all files lie below.
        image_size: this and all further arguments are those of ``ImageFolderDataModule``.
    """

    may_have_other_boxes = False
    """Whether the table of boxes may also name images that are not listed."""

    def __init__(
        self,
        root: str,
        *,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
        augment: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        override_preprocessing: bool = False,
        bits: int | None = None,
        check: str = "start",
        boxes: str | None = None,
        masks: str | None = None,
        boxes_kind: str | None = None,
        voc_origin: int | None = None,
        exif: str | None = None,
    ) -> None:
        super().__init__(
            {"size": image_size, "mean": mean, "std": std, "bits": bits},
            Preprocessing(),
            augment=augment,
            batch_size=batch_size,
            num_workers=num_workers,
            override_preprocessing=override_preprocessing,
        )
        if check not in CHECKS:
            raise ConfigError(f"check={check!r} is unknown. Choose one of {', '.join(CHECKS)}.")
        self.root, self.check = Path(root), check
        self.boxes, self.masks = (None if one is None else Path(one) for one in (boxes, masks))
        self.boxes_kind, self.voc_origin, self.exif = boxes_kind, voc_origin, exif
        if boxes is None and (boxes_kind, voc_origin, exif) != (None, None, None):
            raise ConfigError("boxes_kind, voc_origin and exif say how boxes are meant. Give boxes, or leave them out.")
        self.splits: dict[str, LabeledImages] = {}
        self._listed: dict[str, LabeledFiles] = {}
        self._fingerprint: dict[str, str] = {}
        self._content_notes: list[str] = []
        self._seen: dict[str, NDArray[Any]] = {}  # what the first epoch saw, by split

    # ------------------------------------------------------------ of a subclass

    def list_files(self) -> dict[str, LabeledFiles]:
        """The images of every split that there is."""
        raise NotImplementedError

    def listing_notes(self) -> list[str]:
        """What has to be said about how they were listed."""
        return []

    # ------------------------------------------------------------ set up

    @property
    def listed(self) -> dict[str, LabeledFiles]:
        """The images of every split, listed once."""
        if not self._listed:
            self._listed = self.list_files()
        return self._listed

    @property
    def notes(self) -> list[str]:
        """What has to be said about how the data were read; about boxes and values once they are set up."""
        return [*self.listing_notes(), *self._content_notes]

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - every stage needs the same
        """List files and boxes, look at every image, and take the network's preprocessing."""
        self.settle_preprocessing()
        for split, images in self.splits.items():
            self._prepare(split, images)
        if self.splits:
            return
        self._listed = self.list_files()
        if "val" not in self._listed:
            raise DataError(self.without_val())
        files = joined_files(self.root, [one.files for one in self._listed.values()])
        checks = self._look_at(files)
        boxes, masks = self.read_boxes(files, checks), self._read_masks(files, checks)
        self._listed = self._in_one_memory(files)
        for split, one in self._listed.items():
            self.splits[split] = LabeledImages(
                one.files, one.labels, self.transform_of(split), boxes=boxes.get(split), masks=masks.get(split)
            )
            self._prepare(split, self.splits[split])
        self._content_notes += [*self._box_counts(), *self._leakage()]
        self.say_notes()

    def without_val(self) -> str:
        """What to do where there is no validation split."""
        return f"{self.root / 'val'}: no such folder. Put validation images into val/CLASS/."

    def _prepare(self, split: str, images: LabeledImages) -> None:
        images.transform, images.bits = self.transform_of(split), self.preprocessing.bits
        images.least_size = self.least_size(split)
        images.reports_checks = self.check == "first_epoch"

    def _parts(self) -> dict[str, tuple[int, int]]:
        """Where the images of every split begin and end among those of all."""
        ends = np.cumsum([0, *(len(one.files) for one in self.listed.values())]).tolist()
        return {split: (ends[number], ends[number + 1]) for number, split in enumerate(self.listed)}

    def _in_one_memory(self, files: Sequence[Path | EncodedImage]) -> dict[str, LabeledFiles]:
        """The splits, their files a part of all, whose sizes and times are known then."""
        if not isinstance(files, FileList):
            return self._listed
        parts = self._parts().items()
        return {split: LabeledFiles(files[first:end], self._listed[split].labels) for split, (first, end) in parts}

    def _look_at(self, files: Sequence[Path | EncodedImage]) -> NDArray[Any] | None:
        """What is seen of all images, (N,) of ``CHECK``, as far as that is needed; else None."""
        self._content_notes = []
        decode = self.check == "start"
        if not (decode or self.has_box_source() or self.masks is not None):
            return None
        checks, notes = check_files(
            files, decode=decode, bits=self.preprocessing.bits, workers=self.num_workers, ranks=current()
        )
        self._content_notes += [*notes, *value_notes(files, checks)]
        return checks

    # ------------------------------------------------------------ boxes

    def has_box_source(self) -> bool:
        """Whether there are boxes to read, for which the sizes of the images must be known."""
        return self.boxes is not None or box_table(self.root).is_file()

    @property
    def box_source(self) -> Path:
        """Where boxes stand, or would stand."""
        return self.boxes or box_table(self.root)

    def read_boxes(self, files: Sequence[Path | EncodedImage], checks: NDArray[Any] | None) -> dict[str, BoxArrays]:
        """Boxes by split; none where there is no table."""
        if checks is None or not self.has_box_source():
            return {}
        if not isinstance(files, FileList):
            raise DataError(f"{self.box_source}: names files, and these images are none.")
        labels = joined_labels(self.listed)
        if self.boxes is None:
            others = self.may_have_other_boxes
            own = own_boxes(self.box_source, files, labels, sizes_of(checks), self.class_names, others=others)
        else:
            own = kept_rows(self.boxes, self._imported(self.boxes, files), labels, self.class_names)
        self._content_notes += own.notes
        if own.boxes is None:
            return {}
        return {split: own.boxes.part(first, end) for split, (first, end) in self._parts().items()}

    def _imported(self, source: Path, files: FileList) -> BoxRows:
        """The boxes of a foreign format."""
        try:
            imported = import_boxes(
                source, files, self.root, kind=self.boxes_kind, voc_origin=self.voc_origin, exif=self.exif
            )
        except CamifyError as error:
            raise type(error)(_own_options(str(error))) from error
        self._content_notes += [f"{source}: read as {imported.kind}", *map(_own_options, imported.notes)]
        known = {row[0] for row in imported.rows}
        names = (name.replace(os.sep, "/") for name in files.names())
        numbers = {name: number for number, name in enumerate(names) if name in known}
        return BoxRows.of((numbers[image], (x0, y0, x1, y1), label) for image, x0, y0, x1, y1, label in imported.rows)

    def _read_masks(self, files: Sequence[Path | EncodedImage], checks: NDArray[Any] | None) -> dict[str, MaskList]:
        """The masks by split; none where no folder of masks was given."""
        if self.masks is None or checks is None:
            return {}
        if not isinstance(files, FileList):
            raise DataError(f"{self.masks}: masks are called as files of images, and these images are none.")
        every = mask_files(self.masks, files)
        self._content_notes += every.notes
        masks = MaskList.of(self.masks, [every.by_image.get(path) for path in files], checks["orientation"])
        return {split: masks.part(first, end) for split, (first, end) in self._parts().items()}

    def _box_counts(self) -> list[str]:
        """How many images of each split have boxes, where some have, and some not."""
        counts = {
            split: (0 if images.boxes is None else int((images.boxes.counts > 0).sum()), len(images))
            for split, images in self.splits.items()
        }
        if not any(boxed for boxed, _ in counts.values()) or all(boxed == total for boxed, total in counts.values()):
            return []
        listed = ", ".join(f"{boxed} of {total} images of {split}" for split, (boxed, total) in counts.items())
        note = f"{self.box_source}: boxes of {listed}"
        if not counts["val"][0]:
            note += "; val has none, so not box accuracy is measured there but grid pointing, which needs none"
        return [note]

    def _leakage(self) -> list[str]:
        """That images of other splits are training images too, where all are looked at before training starts."""
        splits = {name: one.files for name, one in self._listed.items() if isinstance(one.files, FileList)}
        return leakage_notes(splits) if self.check == "start" and current().is_first else []

    # ------------------------------------------------------------ identity

    def fingerprint(self) -> dict[str, str]:
        """What tells whether the data is still the same, by split, as it was when this was first asked.

        Names and sizes of all files count, the content of 1,000 of each split, and ``boxes.csv``.
        """
        if not self._fingerprint:
            for split, one in self.listed.items():
                count = f"{len(one.files)} images of {self.count_classes(split)} classes"
                digest = _digest(self.root, one.files) if isinstance(one.files, FileList) else self.digest(split)
                self._fingerprint[split] = f"{count}, digest {digest}"
            for source in (self.box_source, *self.other_sources()):
                names = (
                    [source.name]
                    if source.is_file()
                    else [
                        path.relative_to(source.parent).as_posix()
                        for path in sorted(source.rglob("*"))
                        if path.is_file()
                    ]
                )
                digest = _digest(source.parent, FileList(source.parent, names))
                self._fingerprint[source.name] = digest if names else "none"
        return dict(self._fingerprint)

    def other_sources(self) -> list[Path]:
        """Files and folders besides images and boxes that the data are read from."""
        return [] if self.masks is None else [self.masks]

    def digest(self, split: str) -> str:  # noqa: ARG002 - of a subclass
        """What tells images that are no files of their own from others."""
        return "unknown"

    def count_classes(self, split: str) -> int:
        """Number of classes that images of a split have."""
        labels = self.listed[split].labels
        return len(np.unique(labels.labels if isinstance(labels, LabelSets) else labels))

    # ------------------------------------------------------------ checks while training

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002 - Lightning's signature
        """Take what the images' files looked like out of a batch; said when the first epoch is over."""
        seen = batch.pop("check", None) if isinstance(batch, dict) else None
        if seen is None or self.check != "first_epoch" or self.trainer is None:
            return batch
        measured = "test" if "test" in self.splits and (self.trainer.testing or self.trainer.predicting) else "val"
        split = "train" if self.trainer.training else measured
        if self.trainer.current_epoch > 0 and split == "train":
            self._end_first_epoch()
        elif split in self.splits:
            checks = self._seen.setdefault(split, np.zeros(len(self.splits[split]), CHECK))
            for number, check in seen:
                checks[number] = check
        return batch

    def teardown(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Say what the images that were seen looked like, where that was not said."""
        self._end_first_epoch()

    def _end_first_epoch(self) -> None:
        """Say what has to be said of the images that this process saw, and remember them."""
        if not self._seen:
            return
        every = {split: self._seen.get(split, np.zeros(len(images), CHECK)) for split, images in self.splits.items()}
        checks = np.concatenate(list(every.values()))
        checks["brightest"][checks["width"] == 0] = NOT_DECODED
        files = joined_files(self.root, [images.files for images in self.splits.values()])
        try:
            notes = value_notes(files, checks)
        except DataError as error:  # all come out black, and have been trained on
            notes = [str(error).removesuffix(".")]
        known_by = identities(files)
        if known_by is not None and (self.trainer is None or self.trainer.is_global_zero):
            remembered = RememberedChecks(*known_by, self.preprocessing.bits)
            remembered.keep(checks)
            notes += remembered.notes
        self.say(notes)
        self._seen = {}
        self.check = "never"
        for images in self.splits.values():
            images.reports_checks = False


def _own_options(text: str) -> str:
    """What is said of options of ``camify data import``, of those of a data module."""
    return re.sub(r"--(images|kind|voc_origin|exif)", lambda option: _OPTIONS.get(option[1], option[1]), text)


def joined_files(root: Path, lists: Sequence[Sequence[Path | EncodedImage]]) -> Sequence[Path | EncodedImage]:
    """Several lists of images, one after the other; of files below a root folder with names relative to it."""
    files = [files for files in lists if isinstance(files, FileList)]
    if len(files) == len(lists):
        return FileList.joined(root, files)
    return JoinedImages(lists)


def joined_labels(listed: dict[str, LabeledFiles]) -> NDArray[Any] | LabelSets:
    """The labels of all splits, one after the other."""
    labels = [one.labels for one in listed.values()]
    several = [one for one in labels if isinstance(one, LabelSets)]
    return LabelSets.joined(several) if several else np.concatenate([np.asarray(one) for one in labels])


def _digest(root: Path, files: FileList) -> str:
    """A number of names and sizes of files, and of the ends of some, which differ where the beginnings are alike."""
    digest = hashlib.sha256()
    looked_into = max(1, len(files) // 1000)
    prefix = files.folder.relative_to(root).as_posix()
    prefix = "" if prefix == "." else f"{prefix}/"
    sizes = files.stamps()[:, 0].tolist()
    for number, (name, size) in enumerate(zip(files.names(), sizes, strict=True)):
        digest.update(f"{prefix + Path(name).as_posix()!a}{size}".encode("ascii"))
        if number % looked_into == 0:
            with (files.folder / name).open("rb") as file:
                file.seek(max(0, size - 4096))
                digest.update(file.read(4096))
    return digest.hexdigest()[:12]
