"""Images to explain and to measure on: files in batches, single pictures with boxes, labeled folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.boxes_csv import box_table, read_boxes, table_above
from ..data.file_list import FileList
from ..data.folder import class_folders, files_of_classes, images_of, order_notes
from ..data.image_checks import sizes_of, value_notes
from ..data.image_search import LeftOut, Reason, find_images_below
from ..data.image_table import table_files
from ..data.label_table import read_label_table
from ..data.labeled_images import BoxArrays, LabeledImages, LabelSets
from ..data.own_boxes import absent_notes, own_boxes
from ..data.remembered_checks import check_files
from ..data.splits import SPLIT_NAMES
from ..errors import ConfigError, DataError
from ..image_files import GrayRange, read_image, read_with_range
from ..preprocessing import Preprocessing
from ..task import Classes, Task

__all__ = [
    "EvaluationImage", "ImageBatch", "LabeledFolder", "boxes_of_class", "find_files", "find_labeled",
    "image_batches", "image_files", "images_with_notes",
]  # fmt: skip

_SPLIT = "val"


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class ListedFiles:
    """Image files, and what was left out in looking for them."""

    paths: Sequence[Path]
    left_out: LeftOut


def image_files(given: Sequence[str | Path], *, outside: str | Path | None = None) -> Sequence[Path]:
    """The image files among files and folders; see ``find_files``."""
    return find_files(given, outside=outside).paths


def find_files(given: Sequence[str | Path], *, outside: str | Path | None = None) -> ListedFiles:
    """The image files among files and folders, each once, folders in order of name; and what is left out.

    Args:
        given: files and folders. A file that is named is taken, also a hidden one.
        outside: a folder, such as the one to write, whose files are no input.

    Raises:
        DataError: there is no such file or folder, or a folder holds no image.
    """
    place = None if outside is None else Path(outside).resolve()
    parts, left_out = list[Sequence[Path]](), LeftOut()
    for path in map(Path, given):
        if not (path.is_dir() or path.is_file()):
            raise DataError(f"{path}: no such file or folder.")
        if place is not None and (path.resolve() == place or place in path.resolve().parents):
            left_out.add(path, Reason.BELOW_OUTPUT)
        elif path.is_dir():
            search = find_images_below(path, outside=place)
            only_output = set(search.left_out.counts) == {Reason.BELOW_OUTPUT}
            parts.append(search.paths if only_output else images_of(path, search))
            left_out.update(search.left_out)
        else:
            parts.append([path])
    if given and not any(map(len, parts)):
        raise DataError(f"{outside}: all images lie below the folder to write. Choose another one, or other images.")
    paths = parts[0] if len(parts) == 1 else list(dict.fromkeys(path for part in parts for path in part))
    return ListedFiles(paths, left_out)


@dataclass(frozen=True)
class ImageBatch:
    """Images of files.

    Attributes:
        paths: those that could be read.
        images: as inputs (N, C, H, W).
        sizes: (height, width) of the files, pixels.
        unreadable: those that could not, and why.
        gray_ranges: the values of gray files of more than 8 bits.
        constant: files all of whose pixels are equal.
    """

    paths: list[Path]
    images: Tensor
    sizes: list[tuple[int, int]]
    unreadable: dict[Path, str]
    gray_ranges: dict[Path, GrayRange]
    constant: list[Path]


@dataclass(frozen=True)
class _ReadImage:
    """An image as input (C, H, W), and what was seen of its file; or why there is none."""

    path: Path
    image: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    gray_range: GrayRange | None = None
    is_constant: bool = False
    reason: str = ""


class _Images(Dataset[_ReadImage]):
    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.files, self.transform, self.bits = files, preprocessing.evaluation(), preprocessing.bits

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _ReadImage:
        path = self.files[index]
        try:
            image, gray_range = read_with_range(path, self.bits)
        except DataError as error:
            return _ReadImage(path, reason=str(error))
        first, some = image[:, :1, :1], image[:, ::16, ::16]  # of others few pixels are enough
        is_constant = bool((some == first).all()) and bool((image == first).all())
        if gray_range is not None:
            is_constant = gray_range.low == gray_range.high
        prepared: Tensor = self.transform(image)
        size = (image.shape[-2], image.shape[-1])
        return _ReadImage(path, prepared.as_subclass(Tensor), size, gray_range, is_constant)


def _collate(items: Sequence[_ReadImage]) -> ImageBatch:
    good = [one for one in items if one.image is not None]
    images = [one.image for one in good if one.image is not None]
    return ImageBatch(
        paths=[one.path for one in good],
        images=torch.stack(images) if images else torch.zeros(0),
        sizes=[one.size for one in good],
        unreadable={one.path: one.reason for one in items if one.image is None},
        gray_ranges={one.path: one.gray_range for one in good if one.gray_range is not None},
        constant=[one.path for one in good if one.is_constant],
    )


def image_batches(
    files: Sequence[Path], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> DataLoader[ImageBatch]:
    """Batches of image files in order; a file that cannot be read is named in its batch."""
    loader: DataLoader[ImageBatch] = DataLoader(
        _Images(files, preprocessing),  # type: ignore[arg-type]  # of items; the loader is of batches
        batch_size=batch_size,
        num_workers=min(workers, len(files) // batch_size),
        collate_fn=_collate,
    )
    return loader


# ---------------------------------------------------------------- pictures with boxes


@dataclass(frozen=True)
class EvaluationImage:
    """A picture to compare on.

    Attributes:
        name: as it is shown.
        pixels: (3, H, W) uint8, upright; or a file that is read when it is needed.
        boxes: (n, 4) xyxy in shares of the sides; None where the data know no boxes of it.
        labels: of the boxes.
        target: the class to compare where it is given, else None.
    """

    name: str
    pixels: Tensor | Path
    boxes: Tensor | None = None
    labels: tuple[str, ...] = ()
    target: int | None = None

    def input(self, preprocessing: Preprocessing) -> Tensor:
        """The picture as a network's input (C, S, S)."""
        pixels = read_image(self.pixels, preprocessing.bits) if isinstance(self.pixels, Path) else self.pixels
        image: Tensor = preprocessing.evaluation()(pixels)
        return image.as_subclass(Tensor)

    def boxes_at(self, height: int, width: int) -> Tensor | None:
        """Its boxes in pixels of that size."""
        return None if self.boxes is None else self.boxes * torch.tensor([width, height, width, height])


def boxes_of_class(image: EvaluationImage, name: str) -> EvaluationImage:
    """The image with the boxes of one class, where some of its boxes have that label; else with all of them."""
    if image.boxes is None or name not in image.labels:
        return image
    kept = [index for index, label in enumerate(image.labels) if label == name]
    return replace(image, boxes=image.boxes[kept], labels=tuple(image.labels[i] for i in kept))


def images_with_notes(
    files: Sequence[Path], *, check_images: bool = True, bits: int | None = None
) -> tuple[list[EvaluationImage], list[str]]:
    """The pictures of image files, with the boxes of a ``boxes.csv`` in their folder or one of the three above.

    Args:
        files: images.
        check_images: decode every image, so that what cannot be read is named before anything is computed.
        bits: see ``Preprocessing``.

    Returns:
        The pictures, and what has to be said about them.

    Raises:
        DataError: an image cannot be read or all come out black, or a line on one of these images cannot be right.
    """
    tables: dict[Path, list[Path]] = {}
    for file in files:
        table = table_above(file)
        if table is not None:
            tables.setdefault(table, []).append(file)
    needed = list(files) if check_images else [file for boxed in tables.values() for file in boxed]
    checks, notes = check_files(needed, decode=check_images, bits=bits)
    notes += value_notes(needed, checks)
    sizes = {file: (width, height) for file, (width, height) in zip(needed, sizes_of(checks).tolist(), strict=True)}
    boxes: dict[Path, tuple[Tensor, tuple[str, ...]]] = {}
    for table, boxed in tables.items():
        boxes |= _boxes(table, {file: sizes[file] for file in boxed})
        notes += absent_notes(table, [_name_in(table, file) for file in boxed])
    if boxes and len(boxes) < len(files):
        notes.append(f"boxes are known of {len(boxes)} of {len(files)} images")
    return [EvaluationImage(file.name, file, *boxes.get(file, (None, ()))) for file in files], notes


def _name_in(table: Path, file: Path) -> str:
    return file.resolve().relative_to(table.parent).as_posix()


def _boxes(table: Path, sizes: Mapping[Path, tuple[int, int]]) -> dict[Path, tuple[Tensor, tuple[str, ...]]]:
    """Boxes in shares of the sides, and their labels, of those of the images (of known size) that the table has."""
    names = {_name_in(table, file): file for file in sizes}
    boxes = {}
    for name, rows in read_boxes(table, {name: sizes[file] for name, file in names.items()}, others=True).items():
        sides = torch.tensor([*sizes[names[name]], *sizes[names[name]]])
        shares = torch.tensor([box for box, _ in rows], dtype=torch.float32) / sides
        boxes[names[name]] = (shares, tuple(label for _, label in rows))
    return boxes


# ---------------------------------------------------------------- labeled folders


@dataclass(frozen=True)
class LabeledFolder:
    """Images with the network's number of their class.

    Attributes:
        folder: that holds the class folders.
        images: in order of class and name.
        classes: the network's number of every class of the folder, by name.
        names: the network's classes in order, where the folder is what names them; else as they were given.
        has_boxes: whether ``boxes.csv`` knows any of the images.
        available: number of images in the folder.
        notes: what has to be said about them.
    """

    folder: Path
    images: LabeledImages
    classes: dict[str, int]
    names: tuple[str, ...] | None
    has_boxes: bool
    available: int
    notes: tuple[str, ...] = ()


def find_labeled(
    root: Path,
    split: str | None,
    preprocessing: Preprocessing,
    classes: Classes,
    class_count: int,
    *,
    limit: int | None = None,
    seed: int = 0,
    check_images: bool = True,
    workers: int = 0,
) -> LabeledFolder:
    """The images of ``root/SPLIT/CLASS/*``, or ``root/CLASS/*`` without splits, with boxes of ``root/boxes.csv``.

    Args:
        root: the data's folder; or a table of images and labels (see ``ImageTableDataModule``), one label each.
        split: None takes ``val``, or ``root`` itself where it has no such folder; all of a table without splits.
        preprocessing: how an image becomes an input.
        classes: the network's.
        class_count: how many classes the network has; 2 of one logit.
        limit: measure on so many images, drawn with the seed; None takes all.
        seed: of the draw.
        check_images: decode every image before anything is measured.
        workers: processes that decode.

    Raises:
        DataError: a folder is missing or empty, an image cannot be read, or boxes cannot be right.
        ConfigError: a class of the data is none of the network's, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1.")
    if root.is_file():
        folder, folders, files, labels, listing_notes = _of_table(root, split)
        root = folder
    else:
        folder, folders, files, labels, listing_notes = _of_folder(root, split)
    numbers, notes = _class_numbers(folders, classes, class_count, folder)
    available = len(files)
    if limit is not None and limit < available:
        drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:limit].sort().values.numpy()
        files, labels = files.taken(drawn), labels[drawn]
    table = box_table(root)
    boxes: BoxArrays | None = None
    if check_images or table.is_file():
        checks, said = check_files(files, decode=check_images, bits=preprocessing.bits, workers=workers)
        notes += said
        if table.is_file():
            own = own_boxes(table, files, labels, sizes_of(checks), folders, others=True)
            boxes = own.boxes
            notes += own.notes
        notes += value_notes(files, checks)
    if boxes is None:
        missing = "knows none of these images" if table.is_file() else "does not exist"
        notes.append(f"no boxes: {table} {missing}")
    if not check_images:
        notes.append("the images were not decoded beforehand (check_images false)")
    notes += listing_notes
    own_numbers = np.array([numbers[name] for name in folders])[labels]
    images = LabeledImages(files, own_numbers, preprocessing.evaluation(), preprocessing.bits, boxes=boxes)
    names = tuple(folders) if classes.names is None else classes.names
    return LabeledFolder(folder, images, numbers, names, boxes is not None, available, tuple(notes))


_Listed = tuple[Path, list[str], FileList, NDArray[np.int32], list[str]]
"""The folder of the images, their classes, the images, the place of each one's class, and notes."""


def _of_folder(root: Path, split: str | None) -> _Listed:
    folder = root / (split or _SPLIT)
    if split is None and not folder.is_dir():
        folder = root
    folders = class_folders(folder)
    files, labels, left_out = files_of_classes(folder, folders)
    return folder, folders, files, labels, left_out.notes()


def _of_table(table: Path, split: str | None) -> _Listed:
    rows, root = read_label_table(table), table.parent
    if isinstance(rows.labels, LabelSets):
        raise DataError(
            f"{table}: images have several labels, and figures of maps are those of one class an image. Give a table of"
            " one label each."
        )
    files, labels = table_files(rows, table, root), rows.labels
    if rows.splits is not None:
        wanted = _SPLIT if split is None else split
        if wanted.lower() not in SPLIT_NAMES:
            raise ConfigError(f"--split {wanted!r}: a table has train, val and test.")
        chosen = np.flatnonzero(rows.splits == SPLIT_NAMES[wanted.lower()])
        if not len(chosen):
            raise DataError(f"{table}: no line is of split {wanted}.")
        files, labels = files.taken(chosen), labels[chosen]
    elif split is not None:
        raise ConfigError(f"--split {split!r}: {table} has no column split.")
    present = np.unique(labels)
    names = [rows.class_names[number] for number in present]
    return root, names, files, np.searchsorted(present, labels).astype(np.int32), rows.notes


def _class_numbers(
    folders: Sequence[str], classes: Classes, count: int, folder: Path
) -> tuple[dict[str, int], list[str]]:
    """The network's number of every class folder, and what was assumed."""
    names, one_logit = classes.names, classes.task is Task.BINARY
    if names is None:
        if len(folders) != count:
            raise ConfigError(
                f"{folder}: has {len(folders)} classes, the network {count}, and nothing names the network's."
                " Give a checkpoint folder with class names, or a folder of every class in the network's order."
            )
        order = order_notes(folders)
        how = "order of number" if order else "alphabetical order"
        assumed = f"the network names no classes: those of the folder in {how} were assumed to be its own"
        if one_logit:
            assumed += f"; its one logit speaks for the second, {folders[1]}, against {folders[0]}"
        return {name: index for index, name in enumerate(folders)}, [assumed, *order]
    if one_logit and len(names) == 1 and len(folders) == 2 and names[0] in folders:
        (other,) = (name for name in folders if name != names[0])
        return {names[0]: 0, other: 1}, [
            f"{other} was taken for the absence of {names[0]}, which the one logit stands for"
        ]
    _require_known(folders, names, folder)
    twice = sorted({name for name in folders if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{folder / twice[0]}: the network has several classes of that name. Name them apart.")
    return {name: list(names).index(name) for name in folders}, []


def _require_known(folders: Iterable[str], names: Sequence[str], folder: Path) -> None:
    unknown = [name for name in folders if name not in names]
    if unknown:
        listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ConfigError(
            f"{folder}: {listed}: no class of the network has that name. Its classes: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}. Rename the folders, or name the split with --split."
        )
