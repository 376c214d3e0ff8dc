"""Images to explain and to compare on: files in batches, single pictures with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.boxes_csv import read_boxes, table_above
from ..data.class_folders import images_of
from ..data.image_checks import sizes_of, value_notes
from ..data.image_search import LeftOut, Reason, find_images_below
from ..data.loading import sent_as_one
from ..data.own_boxes import absent_notes
from ..data.remembered_checks import check_files
from ..drawing.own_shape import reduced
from ..errors import DataError
from ..image_files import GrayRange, read_image, read_with_range
from ..preprocessing import Preprocessing

__all__ = [
    "EvaluationImage", "ImageBatch", "boxes_of_class", "find_files", "image_batches", "image_files",
    "images_with_notes",
]  # fmt: skip

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
        pictures: the same to look at, each in its own shape (3, h, w) uint8; empty where none were asked for.
    """

    paths: list[Path]
    images: Tensor
    sizes: list[tuple[int, int]]
    unreadable: dict[Path, str]
    gray_ranges: dict[Path, GrayRange]
    constant: list[Path]
    pictures: list[Tensor]


@dataclass(frozen=True)
class _ReadImage:
    """An image as input (C, H, W), and what was seen of its file; or why there is none."""

    path: Path
    image: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    gray_range: GrayRange | None = None
    is_constant: bool = False
    reason: str = ""
    picture: Tensor | None = None


class _Images(Dataset[_ReadImage]):
    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing, picture_side: int | None) -> None:
        self.files, self.transform, self.bits = files, preprocessing.evaluation(), preprocessing.bits
        self.picture_side = picture_side

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
        picture = None if self.picture_side is None else reduced(image, self.picture_side)
        return _ReadImage(path, prepared.as_subclass(Tensor), size, gray_range, is_constant, picture=picture)


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
        pictures=sent_as_one([one.picture for one in good if one.picture is not None]),
    )


def image_batches(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    picture_side: int | None = None,
) -> DataLoader[ImageBatch]:
    """Batches of image files in order; a file that cannot be read is named in its batch.

    Args:
        files: images.
        preprocessing: how an image becomes an input.
        batch_size: images together.
        workers: processes that decode.
        picture_side: most pixels of the longer side of the batches' ``pictures``; None: no pictures.
    """
    loader: DataLoader[ImageBatch] = DataLoader(
        _Images(files, preprocessing, picture_side),  # type: ignore[arg-type]  # of items; the loader is of batches
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
        image: Tensor = preprocessing.evaluation()(self._read(preprocessing.bits))
        return image.as_subclass(Tensor)

    def picture(self, long_side: int, bits: int | None) -> Tensor:
        """It to look at, in its own shape: (3, h, w) uint8, of at most so many pixels."""
        return reduced(self._read(bits), long_side)

    def _read(self, bits: int | None) -> Tensor:
        return read_image(self.pixels, bits) if isinstance(self.pixels, Path) else self.pixels

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
