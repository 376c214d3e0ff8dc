"""What the pictures are drawn with: heat over an image, boxes, outlines, color bars, lines of text."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = [
    "cells_picture",
    "color_bar",
    "drawn_side",
    "font",
    "heated_picture",
    "one_line",
    "outline_boxes",
    "outline_region",
    "paper",
    "scaled_picture",
    "scaled_size",
    "shortened",
    "tint",
    "tint_parts",
    "write_legend",
    "write_line",
]

PAPER, INK, MUTED = (252, 252, 250), (31, 35, 40), (106, 112, 119)
GROUND = (224, 224, 224)  # below a color bar and below a map that is drawn without its image
RIGHT, WRONG = (26, 115, 72), (180, 52, 28)
BOX, MAP_BOX, BOX_EDGE = (64, 224, 208), (255, 255, 255), (16, 24, 28)  # ground truth, the map's, around both
PANEL, FRAME = 224, 112  # long side of a picture in an overlay and in a strip, pixels
MARGIN, GAP, BAR, LINE = 12, 8, 10, 19
TICK = 60  # room for the numbers beside a color bar
COLUMN = 184  # least width of an overlay's column, so that captions fit below narrow pictures
PER_ROW = 11  # pictures in a row of a strip
_LONGEST = 3  # times as long as other pictures a panorama is drawn, and how much longer than high it then may be
_LEAST_BAR = 30  # height of a color bar: below a panorama's its two numbers would lie on each other
_BEARING = 4  # pixels that a letter may reach to the left of its place
_BAND = 1_000_000  # pixels
FLAT = 1 / 256  # of the scale: what one step of the colors cannot show

Levels = NDArray[np.uint8]
Color = tuple[int, int, int]


def paper(inner: tuple[int, int]) -> Image.Image:
    """An empty sheet: ``inner`` pixels, a color bar to their right, and margins."""
    return Image.new("RGB", (MARGIN + inner[0] + BAR + TICK, inner[1] + 2 * MARGIN), PAPER)


def scaled_picture(image: Tensor, long_side: int) -> Image.Image:
    """``image`` (3, H, W), uint8 or 0 to 1, as a picture whose longer side has ``long_side`` pixels."""
    pixels = _pixels(image)
    size = scaled_size(pixels.shape[0], pixels.shape[1], long_side)
    picture = Image.fromarray(pixels)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    if image.dtype == torch.uint8:
        return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())
    values = cv2.merge(list(image.detach().float().cpu().numpy()))  # not torch: pictures are drawn beside forwards
    cv2.patchNaNs(values, 0)
    pixels: NDArray[np.uint8] = cv2.convertScaleAbs(values.clip(0, 1), alpha=255)
    return pixels


def scaled_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Width and height of such a picture."""
    factor = long_side / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def drawn_side(height: int, width: int, long_side: int) -> int:
    """The longer side of a picture as it is drawn: ``long_side``, of a panorama up to three times as much or 672.

    Example:
        >>> drawn_side(400, 600, 224), drawn_side(100, 600, 224), drawn_side(6000, 60, 224)
        (224, 448, 672)
    """
    longer = max(height, width) / max(1, min(height, width)) / _LONGEST
    return round(min(long_side * min(max(1.0, longer), _LONGEST), max(long_side, _LONGEST * PANEL)))


def _levels(map_hw: Tensor, scale: float, size: tuple[int, int]) -> tuple[Levels, str]:
    """Heat of a raw map at ``size`` (width, height) in steps 0..255, and a note where there is none."""
    raw = map_hw.detach().float().cpu().numpy()
    nothing = np.zeros(size[::-1], np.uint8)
    if not np.isfinite(raw).all():
        return nothing, "map is not finite"
    low, high = float(raw.min()), float(raw.max())
    if not scale > 0 or high <= FLAT * scale:
        return nothing, "no positive evidence"
    if high - low <= FLAT * scale:
        return nothing, "the same everywhere"
    # As `camify.maps.upsample`, by OpenCV: PyTorch's threads would take time from the forward that runs beside.
    heat = cv2.resize(raw, size, interpolation=cv2.INTER_LINEAR)
    return np.rint((heat * (255 / scale)).clip(0, 255)).astype(np.uint8), ""


@lru_cache(maxsize=8)
def tint_parts(colormap: str) -> NDArray[np.float32]:
    """For each level what a pixel is made of: image, its gray, and red, green, blue on top, (5, 256)."""
    heat = np.linspace(0, 1, 256)[:, None]
    alpha = 0.8 * heat**0.7  # strong early, yet without evidence the picture stays as it is
    fade = np.minimum(1, 2 * heat)  # the picture turns to dim gray below the heat, so that colors read
    color = np.asarray(mpl.colormaps[colormap](heat[:, 0]))[:, :3] * 255
    parts = [(1 - alpha) * (1 - fade), (1 - alpha) * fade * 0.8, alpha * color + 0.5]  # rounded, not cut off
    return np.ascontiguousarray(np.hstack(parts).T.astype(np.float32))


def tint(picture: Image.Image, levels: Levels, colormap: str) -> Image.Image:
    """The picture with heat over it; where the level is 0 it is left as it is."""
    pixels, gray = np.asarray(picture), np.asarray(picture.convert("L"))
    tinted = np.empty((*levels.shape, 3), np.uint8)
    band = max(1, _BAND // levels.shape[1])
    for top in range(0, len(levels), band):  # of a large picture a part at a time
        part = slice(top, top + band)
        picture_share, dimmed, *colors = (amount.take(levels[part]) for amount in tint_parts(colormap))
        dimmed *= gray[part]
        for channel, color in enumerate(colors):
            tinted[part, :, channel] = picture_share * pixels[part, :, channel] + (dimmed + color)
    return Image.fromarray(tinted)


def heated_picture(picture: Image.Image, map_hw: Tensor, scale: float, colormap: str) -> tuple[Image.Image, str]:
    """The map over the picture, and a note where there is no heat to draw."""
    levels, note = _levels(map_hw, scale, picture.size)
    return tint(picture, levels, colormap), note


def cells_picture(size: tuple[int, int], map_hw: Tensor, scale: float, colormap: str) -> tuple[Image.Image, str]:
    """The map alone at ``size``, each of its cells one color, and what to write above it."""
    rows, columns = map_hw.shape
    levels, _ = _levels(map_hw, scale, (columns, rows))
    cells = tint(Image.new("RGB", (columns, rows), GROUND), levels, colormap)
    return cells.resize(size, Image.Resampling.NEAREST), f"map, {rows} by {columns} cells"


def outline_boxes(
    draw: ImageDraw.ImageDraw,
    boxes: Tensor | None,
    image: Tensor | NDArray[Any],
    size: tuple[int, int],
    at: tuple[int, int],
    *,
    width: int,
    color: Color = BOX,
) -> None:
    """Draws boxes, given in pixels of ``image`` (..., H, W), into the panel of ``size`` that stands at ``at``.

    The colored line of ``width`` pixels lies just inside a box, a thin dark one just outside.
    """
    lines = [(-1, BOX_EDGE), *((i, color) for i in range(width))]
    factors = np.divide((*size, *size), (image.shape[-1], image.shape[-2]) * 2)
    limits = np.array([*size, *size])
    for box in [] if boxes is None else boxes.detach().cpu().numpy():
        left, top, right, bottom = np.clip(np.round(box * factors), 0, limits).astype(int)
        x0, y0 = at[0] + left, at[1] + top
        x1, y1 = max(x0, at[0] + right - 1), max(y0, at[1] + bottom - 1)  # PIL's corners are inclusive
        for inset, ink in lines:
            if x1 - x0 >= 2 * inset and y1 - y0 >= 2 * inset:
                draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), outline=ink)


def outline_region(panel: Image.Image, region_HW: NDArray[np.bool_]) -> Image.Image:
    """The panel with a thin line around the pixels of a mask of any size, which is stretched over it."""
    mask = Image.fromarray(region_HW.astype(np.uint8) * 255).resize(panel.size, Image.Resampling.BILINEAR)
    outlines, _ = cv2.findContours((np.asarray(mask) > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    pixels = np.array(panel)
    cv2.drawContours(pixels, outlines, -1, MAP_BOX, 1, cv2.LINE_AA)
    return Image.fromarray(pixels)


def write_legend(
    draw: ImageDraw.ImageDraw, right: int, y: int, entries: Sequence[tuple[Color, str]], width: int
) -> int:
    """Writes what the boxes' colors mean, up to the right edge, in at most ``width`` pixels; returns those left."""
    for color, text in reversed(entries):
        long = int(font(12, False).getlength(text)) + 30
        if long > width:
            continue
        right, width = right - long, width - long
        draw.rectangle((right, y + 3, right + 11, y + 12), fill=color, outline=BOX_EDGE)
        write_line(draw, (right + 17, y + 1), text, long, MUTED, size=12)
    return width


def color_bar(sheet: Image.Image, at: tuple[int, int], height: int, scale: float, colormap: str) -> None:
    """Draws the colors from 0 (bottom) to ``scale`` (top), as they look over a gray picture."""
    height = max(height, _LEAST_BAR)
    sheet.paste(_bar(height, colormap), at)
    draw, x = ImageDraw.Draw(sheet), at[0] + BAR + 4
    write_line(draw, (x, at[1] - 3), f"{scale:.3g}", TICK - 4, MUTED, size=11)
    write_line(draw, (x, at[1] + height - 12), "0", TICK - 4, MUTED, size=11)


@lru_cache(maxsize=32)
def _bar(height: int, colormap: str) -> Image.Image:
    levels = np.linspace(255, 0, height).round().astype(np.uint8)[:, None].repeat(BAR, axis=1)
    return tint(Image.new("RGB", (BAR, height), GROUND), levels, colormap)


@lru_cache(maxsize=8)
def font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", name)), size)


def write_line(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    fill: Color,
    *,
    size: int = 13,
    bold: bool = False,
) -> None:
    """Writes one line of at most ``width`` pixels; what is too long ends in an ellipsis."""
    mask = _line(text, width, size, bold)
    draw.bitmap((at[0] - _BEARING, at[1]), mask, fill=fill)


def one_line(text: str) -> str:
    """Text without what would stop the font engine: a line break, a control character or half a surrogate."""
    return "".join(c if c.isprintable() else " " for c in text)


def shortened(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """One line of at most ``width`` pixels; what is too long ends in an ellipsis."""
    line = one_line(text[: max(1, int(width))])
    if letters.getlength(line) <= width:
        return line
    lengths = range(1, len(line))
    fits = bisect.bisect_left(lengths, True, key=lambda n: letters.getlength(line[:n] + "…") > width)
    return line[:fits].rstrip() + "…"


@lru_cache(maxsize=1024)
def _line(text: str, width: int, size: int, bold: bool) -> Image.Image:
    """One line as a mask: setting text takes longer than all else of a picture but its encoding, and much recurs."""
    letters = font(size, bold)
    line = shortened(text, width, letters)
    _, _, right, bottom = letters.getbbox(line)
    mask = Image.new("L", (int(right) + 2 * _BEARING + 1, int(bottom) + 2))
    ImageDraw.Draw(mask).text((_BEARING, 0), line, fill=255, font=letters)
    return mask
