"""Image files looked at before work starts: sizes as they are seen, what cannot be read, which values are absurd."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..image_files import EncodedImage, GrayRange, decode_image, open_image
from ..progress import tracked

__all__ = [
    "CHECK", "NOT_DECODED", "check_of", "check_readable", "constant_notes", "gray_range_notes", "gray_range_of",
    "refuse_unreadable", "sizes_of", "value_notes",
]  # fmt: skip

CHECK = np.dtype([
    ("width", "<i4"), ("height", "<i4"), ("orientation", "u1"),
    ("brightest", "<i2"), ("is_constant", "?"),
    ("is_gray_range", "?"), ("low", "<i8"), ("high", "<i8"), ("white", "<i8"), ("inverted", "?"), ("stated", "?"),
])  # fmt: skip
"""What is kept of an image: its stored size in pixels and its EXIF orientation (1..8); if it was decoded, the largest
of its values as 8 bits (else -1) and whether all pixels are equal; of gray files of more than 8 bits their range."""
NOT_DECODED = -1
_DARK = 16  # of 256 levels
_TOGETHER = 64  # images that a process checks before it tells
_SHOWN = 100  # unreadable files that are named
_QUIET = 2_000  # images for which no progress is shown
_OPTION = "data.init_args.bits of train.py, --bits of the other commands"


def check_readable(
    files: Sequence[Path | EncodedImage],
    numbers: NDArray[Any],
    *,
    decode: bool,
    bits: int | None = None,
    workers: int = 0,
    label: str = "checking images",
) -> tuple[NDArray[Any], dict[int, str]]:
    """Images of these numbers, each decoded once unless told otherwise, and which of them cannot be read, and why.

    Args:
        files: images.
        numbers: of those to look at (n,).
        decode: else only their headers are read.
        bits: see ``Preprocessing``.
        workers: processes that decode, where there are many images.
        label: of the progress that is shown of many.

    Returns:
        An array (n,) of ``CHECK``, and reasons by number.
    """
    data = _Checks(files, decode, bits)
    groups = [numbers[first : first + _TOGETHER] for first in range(0, len(numbers), _TOGETHER)]
    loader: DataLoader[Any] = DataLoader(
        data, sampler=groups, batch_size=None, num_workers=min(workers, max(0, len(groups) - 1)), collate_fn=_as_it_is
    )
    shown: Iterable[Any] = (
        loader if len(numbers) <= _QUIET else tracked(loader, f"{label}, {_TOGETHER} each,", len(groups))
    )
    checks, bad = np.zeros(len(numbers), CHECK), dict[int, str]()
    for group, (rows, reasons) in enumerate(shown):
        checks[group * _TOGETHER : group * _TOGETHER + len(rows)] = rows
        bad |= reasons
    return checks, bad


def refuse_unreadable(files: Sequence[Path | EncodedImage], bad: dict[int, str]) -> None:
    """Refuse images that cannot be read.

    Raises:
        DataError: names the first 100, by number and reason.
    """
    if not bad:
        return
    noun = "image" if len(bad) == 1 else "images"
    listed = [f"{files[number]}: {reason}" for number, reason in list(bad.items())[:_SHOWN]]
    more = [f"... and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
    raise DataError(f"{len(bad)} {noun} cannot be read; repair or remove:\n" + "\n".join([*listed, *more]))


def _as_it_is(checked: Any) -> Any:
    return checked


class _Checks(Dataset[tuple[NDArray[Any], dict[int, str]]]):
    """Groups of images, checked."""

    def __init__(self, files: Sequence[Path | EncodedImage], decode: bool, bits: int | None) -> None:
        self.files, self.decode, self.bits = files, decode, bits

    def __getitem__(self, numbers: NDArray[Any]) -> tuple[NDArray[Any], dict[int, str]]:
        rows, bad = np.zeros(len(numbers), CHECK), dict[int, str]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's name no file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for row, number in enumerate(numbers.tolist()):
                seen = _checked(self.files[number], self.decode, self.bits)
                if isinstance(seen, str):
                    bad[number] = seen
                else:
                    rows[row] = seen
        return rows, bad


def _checked(file: Path | EncodedImage, decode: bool, bits: int | None) -> tuple[Any, ...] | str:
    """What is seen of an image, as ``CHECK`` has it, or why it cannot be read."""
    try:
        with open_image(file) as image:
            width, height = image.size
            tag = image.getexif().get(ExifTags.Base.Orientation)
            place = (width, height, tag if tag in range(1, 9) and image.format != "TIFF" else 1)  # Pillow turns those
            if not decode:
                return (*place, NOT_DECODED, False, False, 0, 0, 0, False, False)
            image.draft("RGB", (64, 64))  # JPEG at an eighth: quicker, and reads the whole file all the same
            values, reduced = _values(image, bits), image.size != (width, height)
        if reduced and (values[1] or values[0] < _DARK):  # fine details have been averaged
            with open_image(file) as image:
                values = _values(image, bits)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file makes them raise
        return str(error) or type(error).__name__
    return (*place, *values)


def _values(image: Image.Image, bits: int | None) -> tuple[Any, ...]:
    rgb, gray_range = decode_image(image, bits)
    extrema: list[tuple[int, int]] = list(rgb.getextrema())  # type: ignore[arg-type]  # of three bands
    brightest = max(high for _, high in extrema)
    if gray_range is None:
        return brightest, all(low == high for low, high in extrema), False, 0, 0, 0, False, False
    low, high = gray_range.low, gray_range.high  # equal upper bits say little
    return brightest, low == high, True, low, high, gray_range.white, gray_range.inverted, gray_range.stated


def check_of(image_CHW: Tensor, size: tuple[int, int], gray_range: GrayRange | None) -> NDArray[Any]:
    """What is seen of an image (C, H, W) uint8 that was read anyway: a row of ``CHECK``, upright.

    Args:
        image_CHW: as it was decoded.
        size: (height, width) of the whole image, upright.
        gray_range: of gray files of more than 8 bits.
    """
    is_constant = bool((image_CHW == image_CHW[:, :1, :1]).all())
    values: tuple[Any, ...] = (is_constant, False, 0, 0, 0, False, False)
    if gray_range is not None:
        low, high = gray_range.low, gray_range.high
        values = (low == high, True, low, high, gray_range.white, gray_range.inverted, gray_range.stated)
    return np.array((size[1], size[0], 1, int(image_CHW.max()), *values), CHECK)


# ---------------------------------------------------------------- what is kept


def sizes_of(checks: NDArray[Any]) -> NDArray[np.int64]:
    """(width, height) of every image as it is seen, upright: (N, 2)."""
    stored = np.stack([checks["width"], checks["height"]], axis=1).astype(np.int64)
    return np.where((checks["orientation"] >= 5)[:, None], stored[:, ::-1], stored)


def gray_range_of(check: Any) -> GrayRange:
    """The range of a gray file of more than 8 bits."""
    low, high, white = (int(check[name]) for name in ("low", "high", "white"))
    return GrayRange(low, high, white, bool(check["inverted"]), bool(check["stated"]))


# ---------------------------------------------------------------- values of a collection


def value_notes(files: Sequence[Path | EncodedImage], checks: NDArray[Any]) -> list[str]:
    """What has to be said about the values of a collection of images, as far as they were decoded.

    Single dark or constant images are as they should be where others are not; so all are judged together.

    Raises:
        DataError: all gray files of more than 8 bits use so few of their bits that they would come out black.
    """
    gray = np.flatnonzero(checks["is_gray_range"])
    notes = gray_range_notes(((files[n], gray_range_of(checks[n])) for n in gray.tolist()), refuse=True)
    decoded = np.flatnonzero(checks["brightest"] != NOT_DECODED)
    if len(decoded):
        number = int(decoded[checks["brightest"][decoded].argmax()])
        most, check = int(checks[number]["brightest"]), checks[number]
        if most < _DARK:
            remedy = "Save them with values of 0 to 255 (check_images=false leaves this check out)"
            if check["is_gray_range"] and check["stated"]:
                own = gray_range_of(check)
                remedy = f"Its file has {own}, and bits={own.used_bits} would be enough"
            all_images = "the one image is" if len(decoded) == 1 else f"all {len(decoded)} images are"
            notes.append(f"{all_images} nearly black: {files[number]} has the largest value, {most} of 255. {remedy}")
    constant = np.flatnonzero(checks["is_constant"])
    return notes + constant_notes([files[n] for n in constant[:1].tolist()], len(constant), len(decoded))


def gray_range_notes(ranges: Iterable[tuple[Path | EncodedImage, GrayRange]], *, refuse: bool = False) -> list[str]:
    """What has to be said about the values of gray files of more than 8 bits.

    Args:
        ranges: files with theirs; gone through once.
        refuse: where all of them would come out black; else that is said.

    Raises:
        DataError: see ``refuse``.
    """
    count = absurd_count = 0
    all_stated, largest, first_absurd = True, None, None
    for file, one in ranges:
        count += 1
        all_stated = all_stated and one.stated
        if largest is None or one.high > largest[1].high:
            largest = (file, one)
        if one.is_absurd:
            absurd_count += 1
            first_absurd = first_absurd or (file, one)
    if largest is None or all_stated:
        return []
    file, one = largest
    if absurd_count == count:
        most = "" if count == 1 else f", the most of {count} such files"
        text = (
            f"{file}: {one}{most}: {'it comes' if count == 1 else 'they come'} out {one.shade}. Give"
            f" bits={one.used_bits} if {2**one.used_bits - 1} is white, bits=16 to take them as they are ({_OPTION})"
        )
        if refuse:
            raise DataError(f"{text}.")
        return [text]
    if first_absurd is not None and 2 * absurd_count >= count:
        text = (
            f"{absurd_count} of {count} gray files of more than 8 bits come out {first_absurd[1].shade}:"
            f" {first_absurd[0]} has {first_absurd[1]}. If white is less, give bits ({_OPTION})"
        )
        return [text]
    if 2**one.used_bits <= one.white:
        text = (
            f"{file}: {one}, the most of {count} such files. Give bits={one.used_bits} if"
            f" {2**one.used_bits - 1} is white ({_OPTION})"
        )
        return [text]
    return []


def constant_notes(first: Sequence[Path | EncodedImage], constant: int, count: int) -> list[str]:
    """What has to be said of images all of whose pixels are equal: the first, how many they are, of how many."""
    if not constant:
        return []
    verb = "is" if constant == 1 else "are"
    return [f"{constant} of {count} images {verb} of one color, with nothing to see; the first is {first[0]}"]
