"""Sizes of images as stored and as seen, and boxes of the stored image turned with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from ...errors import DataError
from ...image_files import open_image
from ..boxes_csv import Box

__all__ = ["ImageSizes", "read_image_sizes", "sizes_of", "upright_box"]

_SHOWN = 10
_AT_ONCE = 8192


@dataclass(frozen=True)
class ImageSizes:
    """Size of an image file.

    Attributes:
        stored: (width, height) of its pixels as they are stored.
        orientation: its EXIF tag, 1 to 8; 1 where it has none.
    """

    stored: tuple[int, int]
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) as it is seen."""
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)


def sizes_of(path: Path) -> ImageSizes:
    """The sizes of an image file, from its header.

    Raises:
        Exception: decoders raise whatever a damaged file makes them raise.
    """
    with open_image(path) as image:
        size = image.size
        tag = image.getexif().get(ExifTags.Base.Orientation)
        orientation = tag if isinstance(tag, int) and 2 <= tag <= 8 else 1
        if image.format == "TIFF" and orientation >= 5:  # whose size Pillow has turned already
            size = (size[1], size[0])
        return ImageSizes(size, orientation)


def read_image_sizes(
    paths: Sequence[Path], sizes: Callable[[Path], ImageSizes] | None = None
) -> dict[Path, ImageSizes]:
    """The sizes of image files, read side by side.

    Args:
        paths: the files.
        sizes: of a file, where that is known; None reads its header.

    Raises:
        DataError: names the files that cannot be read.
    """
    read = sizes_of if sizes is None else sizes

    def guarded(path: Path) -> ImageSizes | str:
        try:
            return read(path)
        except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file makes them raise
            return str(error) or type(error).__name__

    # Threads: Pillow reads without the interpreter's lock. Filters are the process's: not set within them.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = dict[Path, ImageSizes | str]()
        for start in range(0, len(paths), _AT_ONCE):  # so that millions do not wait in one queue
            some = paths[start : start + _AT_ONCE]
            results |= zip(some, pool.map(guarded, some), strict=True)
    bad = [f"{path}: {result}" for path, result in results.items() if isinstance(result, str)]
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(f"{len(bad)} images cannot be read; repair or remove: {'; '.join(bad[:_SHOWN])}{more}.")
    return {path: result for path, result in results.items() if not isinstance(result, str)}


def upright_box(box: Box, sizes: ImageSizes) -> Box:
    """A box of the stored image as it lies in the upright one, as ``PIL.ImageOps.exif_transpose`` turns it.

    Example:
        >>> upright_box((0, 0, 2, 1), ImageSizes((4, 3), 6))  # stored 4 x 3, seen 3 x 4, turned clockwise
        (2, 0, 3, 2)
    """
    (x0, y0, x1, y1), (width, height) = box, sizes.stored
    mirrored_x, mirrored_y = (width - x1, width - x0), (height - y1, height - y0)
    across, down = {
        1: ((x0, x1), (y0, y1)),
        2: (mirrored_x, (y0, y1)),
        3: (mirrored_x, mirrored_y),
        4: ((x0, x1), mirrored_y),
        5: ((y0, y1), (x0, x1)),
        6: (mirrored_y, (x0, x1)),
        7: (mirrored_y, mirrored_x),
        8: ((y0, y1), mirrored_x),
    }[sizes.orientation]
    return across[0], down[0], across[1], down[1]
