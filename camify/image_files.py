"""Image files: which are opened, and how their values become 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, features
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from .errors import DataError

__all__ = [
    "IMAGE_FORMATS", "LEAST_BITS", "MOST_BITS", "EncodedImage", "GrayRange", "decode_image", "has_image_content",
    "image_suffixes", "open_image", "read_image", "read_reduced", "read_with_range", "readable_formats", "upright_rgb",
]  # fmt: skip

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000", "AVIF")
"""As Pillow names them, known by their content; JPEG are also those of several pictures (MPO)."""
_BY_NAME = dict.fromkeys((".tga", ".icb", ".vda", ".vst"), "TGA")  # nothing in such a file says what it is
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jpg_large", ".jpg_orig"),
    "PNG": (".png", ".apng"), "WEBP": (".webp",), "BMP": (".bmp",), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
}  # fmt: skip
_DECODERS = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}  # that a Pillow may lack
_REDUCED = ("JPEG", "MPO")  # which Pillow decodes at a part of their sides
LEAST_BITS, MOST_BITS = 8, 32
_DARK_BITS = 12  # 4095 of 65535, a sixteenth
_PHOTOMETRIC, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 262, 258, 339  # tags of TIFF
_SIGNED = (2,)


# ---------------------------------------------------------------- which


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of ``IMAGE_FORMATS`` that the installed Pillow decodes."""
    known = (*features.modules, *features.codecs)
    missing = {kind for kind, part in _DECODERS.items() if part not in known or not features.check(part)}
    return tuple(kind for kind in IMAGE_FORMATS if kind not in missing)


@cache
def image_suffixes() -> frozenset[str]:
    """How names of image files end, in small letters: of all formats that the installed Pillow decodes."""
    return frozenset([*(suffix for kind in readable_formats() for suffix in _SUFFIXES[kind]), *_BY_NAME])


def open_image(path: str | Path | IO[bytes]) -> Image.Image:
    """An image file, or its bytes, opened and not yet decoded: the only place of camify that opens one.

    The formats are a fixed list: of others Pillow would start programs (Ghostscript for PostScript), or they have many
    pixels in few bytes. They are known by their content, whatever the name; TGA, which has no mark, by its name.

    Raises:
        OSError: it is missing, no regular file (a named pipe would wait for ever), of none of the formats, or has more
            pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, which is known from its header.
    """
    formats = readable_formats()
    if isinstance(path, str | Path):
        if not Path(path).is_file():
            raise OSError("is no regular file" if Path(path).exists() else "no such file")
        by_name = _BY_NAME.get(Path(path).suffix.lower())
        formats = formats if by_name is None else (*formats, by_name)
    image: Image.Image = Image.open(path, formats=formats)
    most, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
    if most is not None and width * height > most:
        image.close()
        raise OSError(
            f"{width} x {height} pixels, of {most} at most; make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS"
        )
    return image


class EncodedImage(BytesIO):
    """The bytes of an image file that lies in another file, such as a table or an archive.

    Args:
        content: of the image file.
        title: what it is called in messages.
    """

    def __init__(self, content: bytes, title: str) -> None:
        super().__init__(content)
        self.title = title

    def __str__(self) -> str:
        return self.title


def has_image_content(path: Path) -> bool:
    """Whether a file begins as an image does, whatever its name."""
    try:
        with open_image(path):
            return True
    except Exception:  # noqa: BLE001 - decoders raise whatever a file makes them raise
        return False


# ---------------------------------------------------------------- values


@dataclass(frozen=True)
class GrayRange:
    """The values of a gray image file of more than 8 bits.

    Attributes:
        low: the smallest.
        high: the largest.
        white: the value that is taken for white; for black where the file says that small values are light.
        inverted: whether the file says so.
        stated: whether the user said how many bits are used.
    """

    low: int
    high: int
    white: int
    inverted: bool = False
    stated: bool = False

    @property
    def used_bits(self) -> int:
        """How many bits the values need, 8 at least: what ``bits`` would have to be."""
        return max(LEAST_BITS, self.high.bit_length())

    @property
    def is_absurd(self) -> bool:
        """Whether the values end so far below white that the image comes out nearly black (inverted: white)."""
        return not self.stated and self.used_bits <= min(_DARK_BITS, self.white.bit_length() - 3)

    @property
    def shade(self) -> str:
        """What it comes out as then."""
        return "nearly white" if self.inverted else "nearly black"

    def __str__(self) -> str:
        return f"gray values up to {self.high} of {self.white}"


def read_image(path: str | Path | EncodedImage, bits: int | None = None) -> tv_tensors.Image:
    """An image file as (3, H, W) uint8; see ``decode_image``.

    Raises:
        DataError: the file is missing, damaged or not an image, or its values have no defined white.
    """
    return read_with_range(path, bits)[0]


def read_with_range(
    path: str | Path | EncodedImage, bits: int | None = None
) -> tuple[tv_tensors.Image, GrayRange | None]:
    """An image file as (3, H, W) uint8, and the values of a gray one of more than 8 bits.

    Raises:
        DataError: as ``read_image``.
    """
    image, gray_range, _ = _read(path, bits, None)
    return image, gray_range


def read_reduced(
    path: str | Path | EncodedImage, bits: int | None = None, *, least: tuple[int, int] | None
) -> tuple[tv_tensors.Image, GrayRange | None, tuple[int, int]]:
    """An image file as (3, h, w) uint8, a JPEG decoded at 1/2, 1/4 or 1/8 of its sides where that is large enough.

    Decoding at a quarter skips most of the work, and each pixel is the mean of the pixels that it stands for: to be
    resized further down.

    Args:
        path: of the file.
        bits: see ``decode_image``.
        least: (height, width) that what is decoded has at least, pixels; None decodes all.

    Returns:
        The image, the values of a gray one of more than 8 bits, and (height, width) of the whole image.

    Raises:
        DataError: as ``read_image``.
    """
    return _read(path, bits, least)


def _read(
    path: str | Path | EncodedImage, bits: int | None, least: tuple[int, int] | None
) -> tuple[tv_tensors.Image, GrayRange | None, tuple[int, int]]:
    try:
        with open_image(path) as image:
            whole = image.size
            if least is not None and image.format in _REDUCED:
                turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                image.draft(None, least if turned else least[::-1])
                whole = whole[::-1] if turned else whole
                rgb, gray_range = decode_image(image, bits)
            else:
                rgb, gray_range = decode_image(image, bits)
                whole = rgb.size
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise DataError(f"{path}: cannot be read as an image ({str(error) or type(error).__name__}).") from error
    return tv_tensors.Image(TF.pil_to_tensor(rgb)), gray_range, whole[::-1]


def upright_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """An opened image as 8-bit RGB, turned upright as its EXIF tag says; see ``decode_image``."""
    return decode_image(image, bits)[0]


def decode_image(image: Image.Image, bits: int | None = None) -> tuple[Image.Image, GrayRange | None]:
    """An opened image as 8-bit RGB, upright as its EXIF tag says, and the values of gray ones of more than 8 bits.

    Transparency is dropped: the colors below it show.

    Args:
        image: opened by ``open_image``.
        bits: how many bits gray files of 16 or 32 bits use, so that ``2 ** bits - 1`` is white; None takes what the
            file says (12 of a 12-bit TIFF), else 15 of signed and 16 of all others.

    Raises:
        ValueError: a float image, or negative values: nothing says which is white or black; or larger values than
            the bits allow.
    """
    tags: Any = getattr(image, "tag_v2", {})  # lost when it is turned
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("float pixels have no defined white; save it with 8 or 16 bits")
    if upright.mode.startswith("I"):  # Pillow would cut these off at 255
        levels, gray_range = _gray_levels(np.asarray(upright), tags, bits)
        return Image.fromarray(levels).convert("RGB"), gray_range
    if upright.mode == "L" and tags.get(_SAMPLE_FORMAT) == _SIGNED and int(np.asarray(upright).max()) > 127:
        raise ValueError("negative values, and nothing says which is black; save it with unsigned 8 or 16 bits")
    if upright.mode == "P":
        upright = upright.convert("RGBA")  # else Pillow warns of palettes with transparency
    return upright.convert("RGB"), None


def _gray_levels(values: NDArray[Any], tags: Any, bits: int | None) -> tuple[NDArray[np.uint8], GrayRange]:
    """Gray values (H, W) of more than 8 bits as 8 bits."""
    sample_bits, signed = tags.get(_BITS_PER_SAMPLE), tags.get(_SAMPLE_FORMAT) == _SIGNED
    if sample_bits == (32,) and not signed:  # Pillow has no unsigned ones
        values = values.view(np.uint32)
    own_bits = 12 if sample_bits == (12,) else 15 if signed and sample_bits == (16,) else 16
    values = values.astype(np.int64)
    white = 2 ** (bits or own_bits) - 1
    gray_range = GrayRange(int(values.min()), int(values.max()), white, tags.get(_PHOTOMETRIC) == 0, bits is not None)
    if gray_range.low < 0:
        raise ValueError(
            f"values from {gray_range.low} to {gray_range.high}, and nothing says which is black; save it with unsigned"
            " values of 8 or 16 bits"
        )
    if gray_range.high > white:
        raise ValueError(f"{gray_range}, the most of {bits or own_bits} bits; give bits={gray_range.used_bits}")
    levels = values >> ((bits or own_bits) - 8)
    return (255 - levels if gray_range.inverted else levels).astype(np.uint8), gray_range
