"""Concepts over their images: a color for each, and what the network says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..maps import upsample
from .primitives import (
    BOX_EDGE,
    GAP,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PANEL,
    PAPER,
    drawn_side,
    font,
    scaled_picture,
    scaled_size,
    write_line,
)

__all__ = ["CONCEPT_COLORS", "ConceptImage", "concepts_picture"]

CONCEPT_COLORS = {
    "orange": (230, 159, 0), "sky blue": (86, 180, 233), "green": (0, 158, 115), "yellow": (240, 228, 66),
    "blue": (0, 114, 178), "vermilion": (213, 94, 0), "purple": (204, 121, 167),
}  # fmt: skip
"""Told apart also by readers who are color-blind (Okabe & Ito 2008); without their black."""
_LEAST = 0.15  # of a concept's peak: what is weaker is not drawn
_NUMBERED = 0.3  # from which on a concept's number stands in an image
_COLUMNS = 4  # pairs of pictures beside one another
_ENTRY = 400  # least width of an entry of the legend, pixels
_ENTRY_HEIGHT = 2 * LINE + 2


@dataclass(frozen=True)
class ConceptImage:
    """An image and where its concepts are.

    Attributes:
        picture: (3, H, W), uint8 or in [0, 1], in its own shape.
        maps: (P, h, w) in [0, 1], stretched over it.
        caption: below it.
    """

    picture: Tensor
    maps: Tensor
    caption: str


def concepts_picture(
    title: tuple[str, str], images: Sequence[ConceptImage], legend: Sequence[tuple[str, str]], *, side: int = PANEL
) -> Image.Image:
    """Each image beside itself with its concepts in color, and below what each concept is.

    A pixel has the color of the concept that is strongest there, the stronger the concept is; a number stands where a
    concept is strongest in an image.

    Args:
        title: two lines above.
        images: of any shapes; with at most as many concepts as there are ``CONCEPT_COLORS``.
        legend: two lines of each concept.
        side: longer side of a picture, pixels.
    """
    shapes = [(one.picture.shape[-2], one.picture.shape[-1]) for one in images]
    panel = min(drawn_side(*shape, side) for shape in shapes)
    sizes = [scaled_size(*shape, panel) for shape in shapes]
    column = 2 * max(width for width, _ in sizes) + 2 + GAP
    columns = min(len(images), max(1, round(_COLUMNS * (2 * PANEL) / column)), _COLUMNS)
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    heights = [max(sizes[index][1] for index in row) + LINE + GAP for row in rows]
    width = max(columns * column - GAP, _ENTRY)
    beside = width // _ENTRY  # entries in a row
    top = MARGIN + 2 * LINE + 2
    height = top + sum(heights) + 4 + -(-len(legend) // beside) * _ENTRY_HEIGHT + MARGIN
    sheet = Image.new("RGB", (width + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (MARGIN, MARGIN - 4), title[0], width, INK, bold=True)
    write_line(draw, (MARGIN, MARGIN + LINE - 5), title[1], width, MUTED, size=12)
    for row, height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            x, image = MARGIN + place * column, images[index]
            plain = scaled_picture(image.picture, panel)
            sheet.paste(plain, (x, top))
            sheet.paste(_colored(plain, image.maps), (x + plain.width + 2, top))
            write_line(draw, (x, top + plain.height + 3), image.caption, column - GAP, MUTED, size=11)
        top += height
    for number, (first, second) in enumerate(legend):
        x, y = MARGIN + number % beside * (width // beside), top + 4 + number // beside * _ENTRY_HEIGHT
        draw.rectangle((x, y, x + 26, y + 26), fill=_color(number), outline=BOX_EDGE)
        _write_number(draw, (x + 13, y + 13), number)
        write_line(draw, (x + 36, y - 2), first, width // beside - 44, INK, size=12)
        write_line(draw, (x + 36, y + LINE - 5), second, width // beside - 44, MUTED, size=12)
    return sheet


def _color(number: int) -> tuple[int, int, int]:
    return list(CONCEPT_COLORS.values())[number]


def _colored(picture: Image.Image, maps: Tensor) -> Image.Image:
    """The picture in gray with its concepts in color, and their numbers."""
    heat = upsample(maps.float().cpu(), (picture.height, picture.width)).numpy()
    strongest = heat.argmax(0)
    strength: NDArray[np.float32] = np.take_along_axis(heat, strongest[None], 0)[0]
    alpha = np.where(strength < _LEAST, 0, 0.25 + 0.6 * strength)[..., None]
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    colors = np.array([_color(number) for number in range(len(maps))], dtype=np.float32)
    light = 0.5 + 0.5 * gray / 255  # the picture shows through its colors
    pixels = (1 - alpha) * (0.8 * gray + 30) + alpha * colors[strongest] * light
    drawn = Image.fromarray((pixels + 0.5).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for number, own in enumerate(np.where(strongest == np.arange(len(maps))[:, None, None], heat, 0)):
        if own.max() >= _NUMBERED:
            y, x = np.unravel_index(own.argmax(), own.shape)
            inside = (min(max(int(x), 9), max(drawn.width - 10, 9)), min(max(int(y), 9), max(drawn.height - 10, 9)))
            _write_number(draw, inside, number)
    return drawn


def _write_number(draw: ImageDraw.ImageDraw, center: tuple[int, int], number: int) -> None:
    """Black with a white edge: readable on every color."""
    draw.text(
        center, str(number + 1), fill=(0, 0, 0), font=font(13, bold=True), anchor="mm", stroke_width=2,
        stroke_fill=(255, 255, 255),
    )  # fmt: skip
