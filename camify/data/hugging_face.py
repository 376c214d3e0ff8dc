"""Data sets of Hugging Face: of the Hub, of folders with metadata, Parquet files or a folder of ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..image_files import EncodedImage
from .boxes_csv import Box, BoxRows, box_problem
from .image_checks import sizes_of
from .label_table import LABEL_COLUMNS
from .labeled_files import LabeledFilesDataModule, joined_labels
from .labeled_images import BoxArrays, LabeledFiles, LabelSets, TakenImages
from .own_boxes import kept_rows
from .splits import SPLIT_NAMES, SPLITS, class_order, with_val

__all__ = ["HuggingFaceDataModule", "HuggingFaceImages"]

_SAVED = ("dataset_dict.json", "state.json")  # files of ``save_to_disk``
_CATEGORIES = ("category", "categories", "label", "labels")


class HuggingFaceImages(Sequence[Path | EncodedImage]):
    """The image files of a ``datasets.Dataset``, not decoded.

    Args:
        rows: whose image column is not decoded.
        column: of the images.
        title: what the data set is called in messages.

    Attributes:
        fingerprint: of the library, which tells whether the data are still the same.
    """

    def __init__(self, rows: Any, column: str, title: str) -> None:
        self.every, self.rows = rows, rows.select_columns([column])
        self.column, self.title, self.fingerprint = column, title, str(rows._fingerprint)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """An image by number: a path where the data set holds only that."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image = self.rows[int(index)][self.column] or {}
        content, path = image.get("bytes"), image.get("path")
        if content is None and path is not None:
            return Path(path)
        name = f" ({Path(path).name})" if path else ""
        return EncodedImage(content or b"", f"{self.title} row {index}{name}")


class HuggingFaceDataModule(LabeledFilesDataModule):
    """A data set that ``datasets.load_dataset`` reads: of the Hub, a folder, Parquet or CSV files; extra ``datasets``.

    Classes and their order are those of its ``ClassLabel``; of labels that are texts or numbers sorted. A list of
    labels is multi-label. Boxes may stand in ``objects`` (``bbox`` as x, y, width, height in pixels, ``category`` or
    ``categories``). Where there are no validation images, ``val_share`` of each class is set aside; a split without
    labels is left out. Checks and notes are those of ``ImageFolderDataModule``. No code of a data set is run: the
    library has left that out.

    Args:
        path: name on the Hub (``"uoft-cs/cifar10"``), a folder, or a folder of ``save_to_disk``.
        config: of a data set with several.
        revision: of the Hub.
        image_column: None: the first column of images.
        label_column: None: the usual names (label, labels, class, ...), else the first ``ClassLabel``.
        class_names: all classes in order; None: those of the data.
        train_split: what the split of training images is called; None: the usual names, and ``val`` and ``test``
            likewise.
        val_split: likewise.
        test_split: likewise.
        val_share: of the training images, set aside where there is no ``val``.
        split_seed: of that draw.
        **others: those of ``ImageFolderDataModule``: ``image_size``, ``batch_size``, ``check``, ``boxes``, ...

    Raises:
        ConfigError: the library is missing, or a column or split that was named.
        DataError: the data set cannot be read, or has no images or labels.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: list[str] | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        val_share: float = 0.2,
        split_seed: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(path, **others)
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        if self.boxes is not None or self.masks is not None:
            raise ConfigError("boxes and masks name files, and rows are none. Boxes stand in the column objects.")
        self.val_share, self.split_seed = val_share, split_seed
        self._notes: list[str] = []
        every = _loaded(path, config, revision)
        named = {"train": train_split, "val": val_split, "test": test_split}
        self._data = _splits(every, named, path)
        features = self._data["train"].features
        self.image_column = _image_column(features, image_column, path)
        self.label_column = _label_column(features, label_column, path)
        self._data = {split: _undecoded(rows, self.image_column) for split, rows in self._data.items()}
        labels = {split: rows.with_format(None)[self.label_column][:] for split, rows in self._data.items()}
        self._unlabeled = [split for split, cells in labels.items() if all(cell in (None, -1) for cell in cells)]
        if "train" in self._unlabeled:
            raise DataError(f"{path}: the training images have no labels in column {self.label_column}.")
        self._data = {split: rows for split, rows in self._data.items() if split not in self._unlabeled}
        names = _names_of(features[self.label_column])
        self.class_names = list(class_names or names or _sorted_names(labels["train"]))
        self.task = "multilabel" if isinstance(labels["train"][0], list) else None
        self._numbers = {split: self._numbers_of(split, labels[split], names) for split in self._data}

    def list_files(self) -> dict[str, LabeledFiles]:
        """The images of every split."""
        parts = {
            split: LabeledFiles(
                HuggingFaceImages(rows, self.image_column, f"{self.root} {split}"), self._numbers[split]
            )
            for split, rows in self._data.items()
        }
        parts, notes = with_val(parts, self.val_share, self.split_seed, str(self.root))
        unlabeled = [f"{self.root}: split {split} has no labels and is left out" for split in self._unlabeled]
        self._notes = unlabeled + notes
        return parts

    def listing_notes(self) -> list[str]:
        """What has to be said about the splits."""
        return self._notes

    def digest(self, split: str) -> str:
        """The library's own fingerprint of the data."""
        return str(self._data[split if split in self._data else "train"]._fingerprint)

    # ------------------------------------------------------------ labels and boxes

    def _numbers_of(
        self, split: str, labels: Sequence[Any], names: Sequence[str] | None
    ) -> NDArray[np.int32] | LabelSets:
        """Class indices of a split's rows, or several each."""
        numbers = {name: number for number, name in enumerate(self.class_names)}

        def number_of(row: int, label: Any) -> int:
            number = numbers.get(_named(label, names))
            if number is None:
                shown_label = _named(label, names) or str(label)
                raise DataError(
                    f"{self.root}, {split} row {row}: label {shown_label[:40]!r} is none of the classes"
                    f" ({', '.join(self.class_names[:5])}{', ...' if len(self.class_names) > 5 else ''})."
                )
            return number

        if self.task == "multilabel":
            rows = ([number_of(row, label) for label in cell or ()] for row, cell in enumerate(labels))
            return LabelSets.of([sorted(set(cell)) for cell in rows], len(self.class_names))
        return np.array([number_of(row, label) for row, label in enumerate(labels)], np.int32)

    def has_box_source(self) -> bool:
        """Whether rows have boxes."""
        return "objects" in self._data["train"].features

    def read_boxes(self, files: Sequence[Path | EncodedImage], checks: NDArray[Any] | None) -> dict[str, BoxArrays]:
        """The boxes of ``objects`` by split: x, y, width and height in pixels."""
        if checks is None or not self.has_box_source():
            return {}
        sizes = sizes_of(checks)
        rows = BoxRows.of(self._box_rows(files, sizes))
        own = kept_rows(self.root, rows, joined_labels(self.listed), self.class_names)
        self._content_notes += own.notes
        if own.boxes is None:
            return {}
        return {split: own.boxes.part(first, end) for split, (first, end) in self._parts().items()}

    def _box_rows(
        self, files: Sequence[Path | EncodedImage], sizes: NDArray[np.int64]
    ) -> Iterator[tuple[int, Box, str]]:
        """Numbers of images, their boxes and labels.

        Raises:
            DataError: a box cannot be right.
        """
        place = 0
        for one in self.listed.values():
            for rows, row, label in _rows_behind(one, self.class_names):
                objects = rows[row]["objects"] or {}
                for box, name in _objects(objects, rows.features["objects"], label):
                    x, y, width, height = box
                    edges = (x, y, x + width, y + height)
                    problem = box_problem(edges, sizes[place])
                    if problem is not None:
                        raise DataError(f"{files[place]}: objects: {problem}")
                    yield place, edges, name
                place += 1


# ---------------------------------------------------------------- what the library gives


def _loaded(path: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    """The splits by the names that the data set gives them.

    Raises:
        ConfigError: the library is missing.
        DataError: it cannot read the data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("HuggingFaceDataModule needs datasets. Run: pip install 'camify[datasets]'.") from error
    try:
        if any((Path(path) / name).is_file() for name in _SAVED):
            loaded = datasets.load_from_disk(path)
        elif Path(path).is_file():
            kind = {".parquet": "parquet", ".arrow": "arrow"}.get(Path(path).suffix.lower())
            if kind is None:
                raise DataError(f"{path}: is neither .parquet nor .arrow. Other tables are for ImageTableDataModule.")
            loaded = datasets.load_dataset(kind, data_files=path)
        else:
            loaded = datasets.load_dataset(path, config, revision=revision)
    except DataError:
        raise
    except Exception as error:  # whatever readers raise on strangers' files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read as a data set of Hugging Face ({reason}).") from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _splits(every: Mapping[str, Any], named: Mapping[str, str | None], path: str) -> dict[str, Any]:
    usual = {SPLITS[SPLIT_NAMES[name.lower()]]: name for name in reversed(list(every)) if name.lower() in SPLIT_NAMES}
    chosen = {}
    for split in SPLITS:
        name = named[split] or usual.get(split)
        if name is not None and name not in every:
            raise ConfigError(f"{split}_split={name!r}: {path} has no such split. Splits: {', '.join(every)}.")
        if name is not None:
            chosen[split] = every[name]
    if "train" not in chosen:
        raise ConfigError(f"{path}: no split is called train. Splits: {', '.join(every)}. Give train_split.")
    return chosen


def _undecoded(rows: Any, column: str) -> Any:
    from datasets import Image

    return rows.with_format(None).cast_column(column, Image(decode=False))


def _image_column(features: Mapping[str, Any], given: str | None, path: str) -> str:
    from datasets import Image

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if given is not None and given not in images:
        raise ConfigError(f"image_column={given!r}: {path} has no such column of images. It has {', '.join(images)}.")
    if not images:
        raise DataError(f"{path}: no column holds images. Columns: {', '.join(features)}.")
    return given or images[0]


def _label_column(features: Mapping[str, Any], given: str | None, path: str) -> str:
    from datasets import ClassLabel

    if given is not None and given not in features:
        raise ConfigError(f"label_column={given!r}: {path} has no such column. Columns: {', '.join(features)}.")
    usual = next((name for name in LABEL_COLUMNS if name in features), None)
    labels = (name for name, feature in features.items() if isinstance(feature, ClassLabel))
    column = given or usual or next(labels, None)
    if column is None:
        raise DataError(f"{path}: no column holds labels. Columns: {', '.join(features)}. Give label_column.")
    return column


def _names_of(feature: Any) -> list[str] | None:
    """The names of a ``ClassLabel``, or of a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(label: Any, names: Sequence[str] | None) -> str:
    if names is not None and isinstance(label, int):
        return names[label] if 0 <= label < len(names) else ""
    return str(label)


def _sorted_names(labels: Sequence[Any]) -> list[str]:
    cells = (cell if isinstance(cell, list) else [cell] for cell in labels)
    return class_order(dict.fromkeys(str(label) for cell in cells for label in cell))


def _rows_behind(one: LabeledFiles, class_names: Sequence[str]) -> Iterator[tuple[Any, int, str | None]]:
    """The rows of a split's images, and the name of each one's class where it has one."""
    files, labels = one.files, one.labels
    numbers = files.numbers.tolist() if isinstance(files, TakenImages) else range(len(files))
    images: Any = files.images if isinstance(files, TakenImages) else files
    for place, number in enumerate(numbers):
        yield images.every, number, None if isinstance(labels, LabelSets) else class_names[int(labels[place])]


def _objects(objects: Any, feature: Any, own: str | None) -> Iterator[tuple[Sequence[float], str]]:
    """Boxes and their labels; of boxes without any the image's class."""
    if isinstance(objects, list):  # one record each
        objects = {key: [one.get(key) for one in objects] for key in (objects[0] if objects else {})}
        feature = getattr(feature, "feature", feature)
    boxes = objects.get("bbox") or []
    key = next((name for name in _CATEGORIES if name in objects), None)
    names = _names_of(feature.get(key) if isinstance(feature, Mapping) and key is not None else None)
    labels = [own or ""] * len(boxes) if key is None else [_named(label, names) for label in objects[key]]
    yield from zip(boxes, labels, strict=False)
