"""Image files looked at before work starts: sizes as they are seen, what cannot be read, which values are absurd."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import ExifTags, Image

from ..errors import DataError
from ..image_files import GrayRange, decode_image, open_image

__all__ = ["ScannedImage", "constant_notes", "gray_range_notes", "scan_images", "value_notes"]

_DARK = 16  # of 256 levels
_OPTION = "data.init_args.bits of train.py, --bits of the other commands"


@dataclass(frozen=True)
class ScannedImage:
    """What was seen of an image file.

    Attributes:
        size: (width, height), upright, pixels.
        gray_range: of gray files of more than 8 bits, where they were decoded.
        brightest: the largest of its values as 8 bits; None where it was not decoded.
        is_constant: whether all its pixels are equal.
    """

    size: tuple[int, int]
    gray_range: GrayRange | None = None
    brightest: int | None = None
    is_constant: bool = False


def scan_images(paths: Sequence[Path], *, decode: bool, bits: int | None = None) -> dict[Path, ScannedImage]:
    """Every image, decoded once unless told otherwise.

    Args:
        paths: image files.
        decode: else only their headers are read.
        bits: see ``Preprocessing``.

    Raises:
        DataError: names every file that is no readable image.
    """
    # Threads: Pillow decodes without the interpreter's lock. Filters are the process's: not set within them.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's name no file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = dict(zip(paths, pool.map(partial(_scan, decode=decode, bits=bits), paths), strict=True))
    bad = [f"{path}: {result}" for path, result in results.items() if isinstance(result, str)]
    if bad:
        noun = "image" if len(bad) == 1 else "images"
        raise DataError(f"{len(bad)} {noun} cannot be read; repair or remove:\n" + "\n".join(bad))
    return {path: result for path, result in results.items() if not isinstance(result, str)}


def _scan(path: Path, *, decode: bool, bits: int | None) -> ScannedImage | str:
    """What is seen of an image, or why it cannot be read."""
    try:
        with open_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            size = (height, width) if turned else (width, height)
            if not decode:
                return ScannedImage(size)
            image.draft("RGB", (64, 64))  # JPEG at an eighth: quicker, and reads the whole file all the same
            scanned, reduced = _scanned(size, image, bits), image.size != (width, height)
        if reduced and (scanned.is_constant or (scanned.brightest or 0) < _DARK):  # fine details have been averaged
            with open_image(path) as image:
                scanned = _scanned(size, image, bits)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file makes them raise
        return str(error) or type(error).__name__
    return scanned


def _scanned(size: tuple[int, int], image: Image.Image, bits: int | None) -> ScannedImage:
    rgb, gray_range = decode_image(image, bits)
    extrema: list[tuple[int, int]] = list(rgb.getextrema())  # type: ignore[arg-type]  # of three bands
    is_constant = all(low == high for low, high in extrema)
    if gray_range is not None:  # whose equal upper bits say little
        is_constant = gray_range.low == gray_range.high
    return ScannedImage(size, gray_range, max(high for _, high in extrema), is_constant)


# ---------------------------------------------------------------- values of a collection


def value_notes(images: Mapping[Path, ScannedImage]) -> list[str]:
    """What has to be said about the values of a collection of decoded images.

    Single dark or constant images are as they should be where others are not; so all are judged together.

    Raises:
        DataError: all gray files of more than 8 bits use so few of their bits that they would come out black.
    """
    ranges = {path: one.gray_range for path, one in images.items() if one.gray_range is not None}
    notes = gray_range_notes(ranges, refuse=True)
    decoded = {path: one for path, one in images.items() if one.brightest is not None}
    if decoded:
        brightest = max(decoded, key=lambda path: decoded[path].brightest or 0)
        most, own = decoded[brightest].brightest or 0, decoded[brightest].gray_range
        if most < _DARK:
            remedy = "Save them with values of 0 to 255 (check_images=false leaves this check out)"
            if own is not None and own.stated:
                remedy = f"Its file has {own}, and bits={own.used_bits} would be enough"
            notes.append(f"{_all(decoded)} nearly black: {brightest} has the largest value, {most} of 255. {remedy}")
    notes += constant_notes([path for path, one in decoded.items() if one.is_constant], len(decoded))
    return notes


def gray_range_notes(ranges: Mapping[Path, GrayRange], *, refuse: bool = False) -> list[str]:
    """What has to be said about the values of gray files of more than 8 bits.

    Args:
        ranges: by file.
        refuse: where all of them would come out black; else that is said.

    Raises:
        DataError: see ``refuse``.
    """
    absurd = [path for path, one in ranges.items() if one.is_absurd]
    if not ranges or all(one.stated for one in ranges.values()):
        return []
    largest = max(ranges, key=lambda path: ranges[path].high)
    one = ranges[largest]
    if len(absurd) == len(ranges):
        count = "" if len(ranges) == 1 else f", the most of {len(ranges)} such files"
        text = (
            f"{largest}: {one}{count}: {'it comes' if len(ranges) == 1 else 'they come'} out {one.shade}. Give"
            f" bits={one.used_bits} if {2**one.used_bits - 1} is white, bits=16 to take them as they are ({_OPTION})"
        )
        if refuse:
            raise DataError(f"{text}.")
        return [text]
    if 2 * len(absurd) >= len(ranges):
        first = ranges[absurd[0]]
        text = (
            f"{len(absurd)} of {len(ranges)} gray files of more than 8 bits come out {first.shade}: {absurd[0]} has"
            f" {first}. If white is less, give bits ({_OPTION})"
        )
        return [text]
    if 2**one.used_bits <= one.white:
        text = (
            f"{largest}: {one}, the most of {len(ranges)} such files. Give bits={one.used_bits} if"
            f" {2**one.used_bits - 1} is white ({_OPTION})"
        )
        return [text]
    return []


def constant_notes(constant: Sequence[Path], count: int) -> list[str]:
    """What has to be said of images all of whose pixels are equal, of so many."""
    if not constant:
        return []
    verb = "is" if len(constant) == 1 else "are"
    return [f"{len(constant)} of {count} images {verb} of one color, with nothing to see; the first is {constant[0]}"]


def _all(images: Mapping[Path, ScannedImage]) -> str:
    return "the one image is" if len(images) == 1 else f"all {len(images)} images are"
