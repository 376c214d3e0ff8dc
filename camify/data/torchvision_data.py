"""Data sets that torchvision knows by name, as files with labels: no sample is read by anybody but camify."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from ..errors import ConfigError, DataError
from ..image_files import EncodedImage
from .file_list import FileList
from .labeled_files import LabeledFilesDataModule
from .labeled_images import LabeledFiles
from .splits import with_val

__all__ = ["TORCHVISION_SETS", "TorchvisionDataModule"]

_THREE = {split: {"split": split} for split in ("train", "val", "test")}
_TWO = {split: {"split": split} for split in ("train", "test")}
_TRAIN_VAL = {split: {"split": split} for split in ("train", "val")}
_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
TORCHVISION_SETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "RenderedSST2"), _THREE),
    **dict.fromkeys(("Food101", "GTSRB", "StanfordCars", "SVHN", "STL10"), _TWO),
    **dict.fromkeys(("ImageNet", "Imagenette"), _TRAIN_VAL),
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "USPS"), _BY_FLAG),
    "EuroSAT": {"train": {}},
    "SUN397": {"train": {}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "Places365": {"train": {"split": "train-standard"}, "val": {"split": "val"}},
}
"""By name what torchvision calls the splits."""
_PICKLED = ("CIFAR10", "CIFAR100", "LSUN")
_PAIRS = ("samples", "_samples", "imgs")
_COLUMNS = (("_image_files", "_labels"), ("_images", "_labels"), ("data", "targets"), ("data", "labels"))


class TorchvisionDataModule(LabeledFilesDataModule):
    """A data set of torchvision by its name, which lies below ``root`` already.

    torchvision says which files there are and what they show; camify reads them. Where a set has no validation images,
    ``val_share`` of each class is set aside. Checks, boxes and notes are those of ``ImageFolderDataModule``.

    Args:
        name: of ``TORCHVISION_SETS``, such as ``"OxfordIIITPet"``.
        root: the folder that torchvision was given.
        options: more arguments of the torchvision class: ``{"partition": 2}``.
        val_share: of the training images, set aside where the set has no ``val``.
        split_seed: of that draw.
        **others: those of ``ImageFolderDataModule``: ``image_size``, ``batch_size``, ``check``, ``boxes``, ...

    Raises:
        ConfigError: there is no such set, or it lies in pickles, which can run code.
        DataError: it does not lie there; says how to get it.
    """

    def __init__(
        self,
        name: str,
        root: str,
        options: dict[str, Any] | None = None,
        val_share: float = 0.2,
        split_seed: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(root, **others)
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        if name in _PICKLED:
            raise ConfigError(
                f"name={name!r}: torchvision keeps it in pickles, which can run code, and camify reads none. Take a"
                " copy in Parquet: HuggingFaceDataModule with path=uoft-cs/cifar10."
            )
        if name not in TORCHVISION_SETS:
            raise ConfigError(f"name={name!r} is unknown. Choose one of {', '.join(sorted(TORCHVISION_SETS))}.")
        self.set_name, self.options = name, dict(options or {})
        self.val_share, self.split_seed = val_share, split_seed
        self._notes: list[str] = []
        self._parts_listed = {split: self._listed_by_torchvision(split) for split in TORCHVISION_SETS[name]}
        self.class_names = self._parts_listed["train"][1]

    def list_files(self) -> dict[str, LabeledFiles]:
        """The images of every split that the set has."""
        parts = {split: files for split, (files, _) in self._parts_listed.items()}
        parts, self._notes = with_val(parts, self.val_share, self.split_seed, f"torchvision's {self.set_name}")
        return parts

    def listing_notes(self) -> list[str]:
        """What has to be said about the splits."""
        return self._notes

    def _listed_by_torchvision(self, split: str) -> tuple[LabeledFiles, list[str]]:
        kind = getattr(datasets, self.set_name)
        known = inspect.signature(kind.__init__).parameters
        unknown = [key for key in self.options if key not in known and self.set_name != "EMNIST"]
        if unknown or {"download", "transform", "loader", "transforms", "target_transform"} & set(self.options):
            raise ConfigError(f"options={self.options}: torchvision's {self.set_name} takes no such option here.")
        arguments = {**TORCHVISION_SETS[self.set_name][split], **self.options}
        try:
            data = kind(str(self.root), **arguments)
        except Exception as error:  # whatever a reader of theirs raises on what lies there
            shown = "".join(f", {key}={value!r}" for key, value in arguments.items())
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{self.root}: torchvision's {self.set_name} ({split}) cannot be read there: {reason} Get it with"
                f" torchvision.datasets.{self.set_name}({str(self.root)!r}{shown}, download=True), or as its page says."
            ) from error
        files, labels = self._files_of(data, split)
        return LabeledFiles(files, labels), _class_names(data, int(labels.max()) + 1 if len(labels) else 0)

    def _files_of(self, data: Any, split: str) -> tuple[Sequence[Path | EncodedImage], NDArray[np.int32]]:
        pairs = next((getattr(data, name) for name in _PAIRS if hasattr(data, name)), None)
        if pairs is not None:
            images, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        else:
            images, labels = next(
                (getattr(data, images), getattr(data, labels))
                for images, labels in _COLUMNS
                if hasattr(data, images) and hasattr(data, labels)
            )
        numbers = np.asarray(labels, np.int32)
        if isinstance(images, list) and images and isinstance(images[0], str | Path):
            root = self.root.resolve()
            names = (str(Path(image).resolve().relative_to(root)) for image in images)
            return FileList(self.root, names), numbers
        return _ArrayImages(np.asarray(images), f"{self.set_name} {split}"), numbers


class _ArrayImages(Sequence[EncodedImage]):
    """Images that lie in an array, as image files: (N, H, W), (N, C, H, W) or (N, H, W, C) uint8."""

    def __init__(self, images: NDArray[np.uint8], title: str) -> None:
        self.images, self.title = images, title

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """An image by number."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, content = self.images[index], BytesIO()
        if image.ndim == 3 and image.shape[0] == 3:
            image = image.transpose(1, 2, 0)
        Image.fromarray(image).save(content, "PNG")
        return EncodedImage(content.getvalue(), f"{self.title} {index}")


def _class_names(data: Any, count: int) -> list[str]:
    """One text for every class; numbers where the set has no names."""
    names = [", ".join(name) if isinstance(name, tuple | list) else str(name) for name in getattr(data, "classes", ())]
    return names if len(names) >= count and len(set(names)) == len(names) else [str(number) for number in range(count)]
