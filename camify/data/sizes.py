"""Sizes of image files as they are seen, and which of them cannot be read."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import ExifTags, Image

from ..errors import DataError
from ..preprocessing import open_image, upright_rgb

__all__ = ["image_sizes"]


def image_sizes(paths: list[Path], *, decode: bool) -> dict[Path, tuple[int, int]]:
    """(width, height) of every image, upright; decoded once unless told otherwise.

    Raises:
        DataError: names every file that is no readable image.
    """
    # Threads: Pillow decodes without the interpreter's lock. Filters are the process's: not set within them.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's name no file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = dict(zip(paths, pool.map(partial(_measure, decode=decode), paths), strict=True))
    bad = [f"{path}: {result}" for path, result in results.items() if isinstance(result, str)]
    if bad:
        noun = "image" if len(bad) == 1 else "images"
        raise DataError(f"{len(bad)} {noun} cannot be read; repair or remove:\n" + "\n".join(bad))
    return {path: result for path, result in results.items() if not isinstance(result, str)}


def _measure(path: Path, *, decode: bool) -> tuple[int, int] | str:
    """(width, height) of an image, upright, or why it cannot be read."""
    try:
        with open_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            if decode:
                image.draft("RGB", (64, 64))  # JPEG at an eighth: quicker, and reads the whole file all the same
                upright_rgb(image)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file makes them raise
        return str(error) or type(error).__name__
    return (height, width) if turned else (width, height)
