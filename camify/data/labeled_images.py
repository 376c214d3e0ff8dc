"""Images with their labels and boxes as a data set, kept in arrays: tens of bytes each, not objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from ..image_files import EncodedImage, read_reduced
from .file_list import FileList
from .image_checks import check_of
from .loading import seed_sample
from .masks import MaskList
from .samples import finish

__all__ = ["BoxArrays", "JoinedImages", "LabelSets", "LabeledFiles", "LabeledImages", "TakenImages", "taken"]


@dataclass(frozen=True)
class BoxArrays:
    """The boxes of many images, one after the other.

    Attributes:
        ends: where each image's boxes end (N,).
        boxes: of all images (R, 4), x0, y0, x1, y1 in pixels of the upright image, exclusive.
    """

    ends: NDArray[np.int64]
    boxes: NDArray[np.float32]

    @classmethod
    def of(cls, count: int, images: NDArray[Any] | Sequence[int], boxes: Any) -> BoxArrays:
        """Of rows in any order: the number of each row's image, and its box."""
        numbers = np.asarray(images, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        rows = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        return cls(np.cumsum(np.bincount(numbers, minlength=count)), rows[order])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The boxes (n, 4) of an image."""
        return self.boxes[self.ends[index - 1] if index else 0 : self.ends[index]]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of boxes of every image."""
        return np.diff(self.ends, prepend=0)

    def part(self, first: int, end: int) -> BoxArrays:
        """The boxes of images that lie next to each other, in the same memory."""
        start = int(self.ends[first - 1]) if first else 0
        ends = self.ends[first:end]
        return BoxArrays(ends - start, self.boxes[start : int(ends[-1]) if len(ends) else start])


@dataclass(frozen=True)
class LabelSets:
    """Several labels for each of many images: only those that are there are kept.

    Attributes:
        ends: where each image's labels end (N,).
        labels: numbers of classes, of all images one after the other.
        class_count: K.
        values: of the labels; None: 1 for all. NaN where it is not known whether the label is there.
    """

    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    class_count: int
    values: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], class_count: int) -> LabelSets:
        """Of each image's numbers of classes."""
        ends, labels = list[int](), list[int]()
        for row in rows:
            labels += row
            ends.append(len(labels))
        return cls(np.array(ends, np.int64), np.array(labels, np.int32), class_count)

    @classmethod
    def joined(cls, sets: Sequence[LabelSets]) -> LabelSets:
        """Several images' labels, one after the other."""
        firsts = np.cumsum([0, *(len(one.labels) for one in sets[:-1])])
        ends = np.concatenate([one.ends + first for one, first in zip(sets, firsts, strict=True)])
        values = None
        if any(one.values is not None for one in sets):
            values = np.concatenate(
                [np.ones(len(s.labels), np.float32) if s.values is None else s.values for s in sets]
            )
        return cls(ends, np.concatenate([one.labels for one in sets]), sets[0].class_count, values)

    def taken(self, numbers: NDArray[Any]) -> LabelSets:
        """The labels of some of the images."""
        counts = np.diff(self.ends, prepend=0)[numbers]
        ends = np.cumsum(counts)
        places = np.repeat(self.ends[numbers] - ends, counts) + np.arange(counts.sum())
        values = None if self.values is None else self.values[places]
        return LabelSets(ends, self.labels[places], self.class_count, values)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Tensor:
        """An image's labels as (K,) float: 1 where a label is there, else 0."""
        part = slice(self.ends[index - 1] if index else 0, self.ends[index])
        row = torch.zeros(self.class_count, dtype=torch.float32)
        values = 1.0 if self.values is None else torch.from_numpy(self.values[part].copy())
        row[torch.from_numpy(self.labels[part].astype(np.int64))] = values
        return row


@dataclass(frozen=True)
class LabeledFiles:
    """The images of a split.

    Attributes:
        files: the images.
        labels: numbers of their classes (N,), or several each.
    """

    files: Sequence[Path | EncodedImage]
    labels: NDArray[Any] | LabelSets

    def taken(self, numbers: NDArray[Any]) -> LabeledFiles:
        """Some of the images."""
        files = self.files.taken(numbers) if isinstance(self.files, FileList) else TakenImages(self.files, numbers)
        return LabeledFiles(files, taken(self.labels, numbers))


class TakenImages(Sequence[Path | EncodedImage]):
    """Some images of a list, read when they are asked for."""

    def __init__(self, images: Sequence[Path | EncodedImage], numbers: NDArray[Any]) -> None:
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        """An image by number."""
        return self.images[int(self.numbers[index])]


class JoinedImages(Sequence[Path | EncodedImage]):
    """Several lists of images, one after the other."""

    def __init__(self, lists: Sequence[Sequence[Path | EncodedImage]]) -> None:
        self.lists = lists
        self.ends = np.cumsum([len(one) for one in lists])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        """An image by number."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.lists[part][index - int(self.ends[part - 1]) if part else index]


def taken(labels: NDArray[Any] | LabelSets, numbers: NDArray[Any]) -> NDArray[Any] | LabelSets:
    """The labels of some of the images."""
    return labels.taken(numbers) if isinstance(labels, LabelSets) else labels[numbers]


class LabeledImages(Dataset[dict[str, Any]]):
    """Image files with their classes and, where known, boxes; samples are dicts, see ``collate``.

    Args:
        files: the images.
        labels: class indices (N,), or several for each image.
        transform: of the samples.
        bits: see ``Preprocessing``.
        boxes: in pixels of the upright images, of each image's own class; of several labels all. None where the data
            have none.
        masks: of the objects; None likewise.
        least_size: (height, width) that a decoded image has at least: large JPEGs are decoded at a part of their sides.
            None decodes all.

    Attributes:
        has_boxes: whether there is any box.
        epoch_seed: see ``TrainingLoader``.
        reports_checks: samples have ``check``: the number of the image, and what was seen of its file.
    """

    def __init__(
        self,
        files: Sequence[Path | EncodedImage],
        labels: NDArray[Any] | Sequence[int] | LabelSets,
        transform: v2.Transform,
        bits: int | None = None,
        *,
        boxes: BoxArrays | None = None,
        masks: MaskList | None = None,
        least_size: tuple[int, int] | None = None,
    ) -> None:
        self.files = files
        self.label_sets = labels if isinstance(labels, LabelSets) else None
        self._classes = np.zeros(0, np.int32) if isinstance(labels, LabelSets) else np.asarray(labels, np.int32)
        self.transform, self.bits, self.least_size = transform, bits, least_size
        self.boxes, self.masks = boxes, masks
        self.has_boxes = boxes is not None and len(boxes.boxes) > 0
        self.epoch_seed = torch.zeros((), dtype=torch.int64)
        self.reports_checks = False

    @property
    def labels(self) -> list[int] | Tensor:
        """Class index of every sample; of several labels shares (N, K)."""
        if self.label_sets is None:
            numbers: list[int] = self._classes.tolist()
            return numbers
        return torch.stack([self.label_sets[index] for index in range(len(self))])

    @property
    def paths(self) -> Sequence[str]:
        """File of every sample."""
        return [str(file) for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        image, gray_range, size = read_reduced(file, self.bits, least=self.least_size)
        label = int(self._classes[index]) if self.label_sets is None else self.label_sets[index]
        sample: dict[str, Any] = {"image": image, "label": label, "path": str(file), "original_size": size}
        height, width = image.shape[-2:]
        if self.boxes is not None:
            boxes = torch.from_numpy(self.boxes[index].copy())
            if (height, width) != size:
                boxes *= torch.tensor([width / size[1], height / size[0]] * 2, dtype=torch.float32)
            sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        if self.masks is not None:
            mask = tv_tensors.Mask(self.masks.read(index, (size[1], size[0])))
            sample["mask"] = TF.resize(mask, [height, width]) if (height, width) != size else mask
        if self.reports_checks:
            sample["check"] = (index, check_of(image, size, gray_range))
        seed_sample(self.epoch_seed, index)
        return finish(self.transform(sample))
