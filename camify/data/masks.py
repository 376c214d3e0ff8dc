"""Masks of objects: a PNG for each image, of the same name; what is not 0 is the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import DataError
from ..image_files import open_image
from .box_formats.image_names import ImageNames
from .box_formats.records import ForeignImage
from .file_list import FileList
from .image_search import is_hidden

__all__ = ["MaskFiles", "MaskList", "mask_files", "read_mask"]

_IGNORED = 255  # of class numbers, by Pascal VOC: the border of objects, which belongs to nobody
_SOFT = 128  # no collection of masks has so many classes, and soft edges have such values


@dataclass(frozen=True)
class MaskFiles:
    """The masks of images.

    Attributes:
        by_image: the mask of each image that has one.
        notes: how many masks have no image and images no mask, where some have and some not.
    """

    by_image: dict[Path, Path]
    notes: list[str]


def mask_files(folder: Path, images: Sequence[Path]) -> MaskFiles:
    """The masks of a folder, by image: PNGs that are called as the images, anywhere below it.

    Of several of one name the one counts that has most folders in common with the image.

    Raises:
        DataError: there is no such folder, it holds no PNG, or two masks are equally likely.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Masks are PNG files in a folder, called as the images.")
    masks = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png" and not is_hidden(path))
    if not masks:
        raise DataError(f"{folder}: holds no .png files. Masks are PNG files, called as the images.")
    names, claims = ImageNames(masks, folder), dict[Path, list[Path]]()
    for image in images:
        mask = names.find(ForeignImage(f"{image.with_suffix('').as_posix()}.png", image, "its name"))
        if mask is not None and mask.stem == image.stem:
            claims.setdefault(mask, []).append(image)
    by_image = {_owner(mask, several): mask for mask, several in claims.items()}
    notes, used = [], set(by_image.values())
    alone = [mask for mask in masks if mask not in used]
    without = [image for image in images if image not in by_image]
    if alone:
        notes.append(f"{folder}: masks without an image are left out: {len(alone)}; the first is {alone[0]}")
    if without:
        notes.append(f"{folder}: images without a mask: {len(without)} of {len(images)}; the first is {without[0]}")
    return MaskFiles(by_image, notes)


@dataclass(frozen=True)
class MaskList:
    """The masks of images in order, some of which have none.

    Attributes:
        files: of those that have one.
        numbers: of each image's mask among the files (N,); -1: none.
        orientations: EXIF tags of the images (N,).
    """

    files: FileList
    numbers: NDArray[np.int64]
    orientations: NDArray[np.uint8]

    @classmethod
    def of(cls, folder: Path, masks: Sequence[Path | None], orientations: NDArray[np.uint8]) -> MaskList:
        """Of each image's mask, None where it has none."""
        has_mask = np.array([mask is not None for mask in masks], bool)
        files = FileList(folder, (str(mask.relative_to(folder)) for mask in masks if mask is not None))
        return cls(files, np.where(has_mask, np.cumsum(has_mask) - 1, -1), orientations)

    def part(self, first: int, end: int) -> MaskList:
        """The masks of images that lie next to each other."""
        return MaskList(self.files, self.numbers[first:end], self.orientations[first:end])

    def read(self, index: int, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask (H, W) of an image of that (width, height); all False where it has none."""
        number = int(self.numbers[index])
        if number < 0:
            return np.zeros(size[::-1], bool)
        return read_mask(self.files[number], size, int(self.orientations[index]))


def _owner(mask: Path, images: Sequence[Path]) -> Path:
    """Of images that are called as a mask the one that has most folders in common with it.

    Raises:
        DataError: there are two.
    """
    if len(images) == 1:
        return images[0]
    common = [_common_folders(mask, image) for image in images]
    owners = [image for image, count in zip(images, common, strict=True) if count == max(common)]
    if len(owners) > 1:
        raise DataError(
            f"{mask}: may be the mask of {owners[0]} or of {owners[1]}. Put masks into the same folders as the images."
        )
    return owners[0]


def _common_folders(one: Path, other: Path) -> int:
    pairs = zip(one.parts[-2::-1], other.parts[-2::-1], strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), 0)


def read_mask(path: Path, size: tuple[int, int], orientation: int = 1) -> NDArray[np.bool_]:
    """The pixels (H, W) of the object in the upright image.

    What is not 0 is the object. Where other numbers of classes stand beside it, 255 is nobody's, as in Pascal VOC.

    Args:
        path: a PNG file: gray, 1-bit, of a palette (its numbers count, not its colors), or colored on black.
        size: (width, height) of the upright image, pixels.
        orientation: EXIF tag of the image: a mask that has the size of the stored image is turned with it.

    Raises:
        DataError: the file cannot be read, has another size, or cannot be told from a soft mask.
    """
    try:
        with open_image(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image = image.convert("RGB") if image.mode in ("RGBA", "CMYK", "YCbCr") else image
            image = image.convert("L") if image.mode == "LA" else image
            if image.size != size and image.size == size[::-1] and orientation >= 5:
                image = image.transpose(_TURNS[orientation])
            extent, values = image.size, np.asarray(image)
            has_palette = image.mode == "P"
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise DataError(f"{path}: cannot be read as a mask ({str(error) or type(error).__name__}).") from error
    if extent != size:
        raise DataError(
            f"{path}: has {extent[0]} x {extent[1]} pixels, and its image has {size[0]} x {size[1]}. Save it at the"
            " size of the image."
        )
    if values.dtype.kind == "f":
        raise DataError(
            f"{path}: holds fractions, and nothing says from which on they are the object. Save it as 0 and 255."
        )
    if values.ndim == 3:
        return np.asarray((values > 0).any(axis=2))
    return _object(values, path, has_palette=has_palette)


_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _object(values: NDArray[Any], path: Path, *, has_palette: bool) -> NDArray[np.bool_]:
    is_object = np.asarray(values != 0)
    if values.dtype == bool or not (values == _IGNORED).any():
        return is_object
    numbers = values[is_object & (values != _IGNORED)]
    if not numbers.size:  # 0 and 255 alone
        return is_object
    if not has_palette and int(numbers.max()) >= _SOFT:
        raise DataError(
            f"{path}: has 255 and values up to {int(numbers.max())}: soft edges, or numbers of classes with 255 for"
            " nobody? Save it as 0 and 255, or with a palette."
        )
    return np.asarray(is_object & (values != _IGNORED))
