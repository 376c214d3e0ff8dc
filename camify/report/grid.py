"""Pictures of a comparison: heats over the picture, methods side by side, all scaled by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import (
    GAP,
    GROUND,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PAPER,
    outline_boxes,
    scaled_picture,
    tint,
    write_line,
)

__all__ = ["Cell", "Row", "grid_figure"]

EMPTY = (240, 240, 238)
KEY_WIDTH, KEY_HEIGHT = 120, 10
RULE = "heat: every map from its own least to its largest value, after the ReLU where its method has one"


@dataclass(frozen=True)
class Cell:
    """A heat over the picture of its row.

    Attributes:
        heat: (H, W) in [0, 1]; None where there is none to show.
        caption: below it.
        note: what stands in the place of a heat that is None.
    """

    heat: Tensor | None
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A picture and what the methods make of it.

    Attributes:
        picture: (3, H, W) in [0, 1].
        boxes: ground truth (n, 4) xyxy in its pixels, or None.
        captions: two lines below the picture.
        cells: one per column.
    """

    picture: Tensor
    boxes: Tensor | None
    captions: tuple[str, str]
    cells: Sequence[Cell]


def grid_figure(
    title: str, heads: Sequence[tuple[str, str]], rows: Sequence[Row], *, side: int = 152, colormap: str = "inferno"
) -> Image.Image:
    """Rows of pictures with their heats, under the two lines of every column's head; one key for all.

    Args:
        title: line above.
        heads: of the columns, the picture's not among them.
        rows: equally large pictures.
        side: of a panel, pixels.
        colormap: name in ``matplotlib.colormaps``.
    """
    first = scaled_picture(rows[0].picture, side)
    width, height = max(first.width, side), first.height
    top = MARGIN + 3 * LINE
    step = height + 2 * LINE + GAP
    sheet = Image.new(
        "RGB", (2 * MARGIN + (len(heads) + 1) * (width + GAP) - GAP, top + len(rows) * step + LINE + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (MARGIN, MARGIN - 4), title, sheet.width - 2 * MARGIN, INK, bold=True)
    for column, (upper, lower) in enumerate(heads, start=1):
        x = MARGIN + column * (width + GAP)
        write_line(draw, (x, MARGIN + LINE), upper, width, MUTED, size=11)
        write_line(draw, (x, MARGIN + 2 * LINE - 4), lower, width, INK, size=12)
    for index, row in enumerate(rows):
        _draw_row(sheet, draw, row, top + index * step, (width, side), colormap)
    _draw_key(sheet, draw, sheet.height - MARGIN - LINE + 6, colormap)
    return sheet


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, y: int, sizes: tuple[int, int], colormap: str
) -> None:
    width, side = sizes
    picture = scaled_picture(row.picture, side)
    sheet.paste(picture, (MARGIN, y))
    outline_boxes(draw, row.boxes, row.picture, picture.size, (MARGIN, y), width=2)
    for line, caption in enumerate(row.captions):
        colour = MUTED if line else INK
        write_line(draw, (MARGIN, y + picture.height + 3 + line * (LINE - 4)), caption, width, colour, size=11)
    for column, cell in enumerate(row.cells, start=1):
        x = MARGIN + column * (width + GAP)
        if cell.heat is None:
            sheet.paste(Image.new("RGB", picture.size, EMPTY), (x, y))
            write_line(draw, (x + 10, y + picture.height // 2 - 8), cell.note, width - 20, MUTED, size=12)
        else:
            sheet.paste(tint(picture, _levels(cell.heat, picture.size), colormap), (x, y))
            outline_boxes(draw, row.boxes, row.picture, picture.size, (x, y), width=1)
        write_line(draw, (x, y + picture.height + 3), cell.caption, width, MUTED, size=11)


def _levels(heat_HW: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Heat at ``size`` (width, height) in steps 0..255."""
    shown = Image.fromarray(heat_HW.detach().float().cpu().numpy()).resize(size, Image.Resampling.BILINEAR)
    return (np.asarray(shown).clip(0, 1) * 255).round().astype(np.uint8)


def _draw_key(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, colormap: str) -> None:
    """The colours from no heat to full heat as they look over grey, and the rule by which maps are scaled."""
    levels = torch.linspace(0, 255, KEY_WIDTH).round().byte().numpy()[None].repeat(KEY_HEIGHT, axis=0)
    sheet.paste(tint(Image.new("RGB", (KEY_WIDTH, KEY_HEIGHT), GROUND), levels, colormap), (MARGIN, y))
    x = MARGIN + KEY_WIDTH + 8
    write_line(draw, (x, y - 3), RULE, sheet.width - x - MARGIN, MUTED, size=11)
