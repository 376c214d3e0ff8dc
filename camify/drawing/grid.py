"""Grids of heat maps: rows of an image and its maps by several methods, all scaled by the same rule."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .primitives import (
    GAP,
    GROUND,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PAPER,
    drawn_side,
    font,
    heated_picture,
    one_line,
    outline_boxes,
    scaled_picture,
    scaled_size,
    tint,
    write_line,
)

__all__ = ["MIN_MAX", "POSITIVE", "Cell", "Row", "grid_figure"]

EMPTY = (240, 240, 238)
KEY_WIDTH, KEY_HEIGHT = 120, 10
SMALL, LETTER = 11, 6  # size of small text and the width of its letters, pixels
MIN_MAX = "heat: every map from its own least to its largest value, after the ReLU where its method has one"
POSITIVE = "heat: every map from zero, or from its least value where that is positive, to its largest value"


@dataclass(frozen=True)
class Cell:
    """A map over the image of its row.

    Attributes:
        heat: (h, w) of any size: at 0 and below there is none, 1 is full; None where there is no map to show.
        caption: below it.
        note: what stands in the place of a heat that is None.
    """

    heat: Tensor | None
    caption: str = ""
    note: str = ""

    @classmethod
    def of_map(cls, map_hw: Tensor) -> Cell:
        """A raw map scaled as ``POSITIVE`` says, with its range below."""
        low, high = float(map_hw.min()), float(map_hw.max())
        zero = max(low, 0.0)
        heat = (map_hw - zero) / (high - zero) if high > zero else torch.zeros_like(map_hw)
        return cls(heat, f"raw {low:.3g} to {high:.3g}")


@dataclass(frozen=True)
class Row:
    """An image and its maps.

    Attributes:
        picture: (3, H, W), uint8 or in [0, 1]; heats are stretched over it.
        boxes: ground truth (n, 4) xyxy in its pixels, or None.
        captions: two lines below the picture.
        cells: one per column.
    """

    picture: Tensor
    boxes: Tensor | None
    captions: tuple[str, str]
    cells: Sequence[Cell]


def grid_figure(
    title: str,
    heads: Sequence[tuple[str, str]],
    rows: Sequence[Row],
    *,
    rule: str = MIN_MAX,
    side: int = 152,
    colormap: str = "inferno",
) -> Image.Image:
    """Rows of images with their maps, under the two lines of every column's head; one color key for all.

    Args:
        title: line above.
        heads: of the columns, the image's not among them.
        rows: of images of any shapes.
        rule: how maps are scaled, written beside the key.
        side: of a panel, pixels.
        colormap: name in ``matplotlib.colormaps``.
    """
    shapes = [(row.picture.shape[-2], row.picture.shape[-1]) for row in rows]
    panel = min(drawn_side(*shape, side) for shape in shapes)  # larger where all are panoramas
    sizes = [scaled_size(*shape, panel) for shape in shapes]
    width = max(side, max(width for width, _ in sizes))
    sheet_width = 2 * MARGIN + (len(heads) + 1) * (width + GAP) - GAP
    title_lines = _title_lines(title, sheet_width - 2 * MARGIN)
    head = MARGIN + len(title_lines) * LINE
    tops = list(accumulate((height + 2 * LINE + GAP for _, height in sizes), initial=head + 2 * LINE))
    rule_lines = textwrap.wrap(rule, (sheet_width - 2 * MARGIN - KEY_WIDTH - GAP) // LETTER)
    sheet = Image.new("RGB", (sheet_width, tops[-1] + len(rule_lines) * LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(title_lines):
        write_line(draw, (MARGIN, MARGIN - 4 + index * LINE), line, sheet.width - 2 * MARGIN, INK, bold=True)
    for column, (upper, lower) in enumerate([("", "image"), *heads]):
        x = MARGIN + column * (width + GAP)
        write_line(draw, (x, head), upper, width, MUTED, size=SMALL)
        write_line(draw, (x, head + LINE - 4), lower, width, INK, size=12)
    for row, top in zip(rows, tops[:-1], strict=True):
        _draw_row(sheet, draw, row, top, (width, panel), colormap)
    _draw_key(sheet, draw, tops[-1] + 6, rule_lines, colormap)
    return sheet


def _title_lines(title: str, width: int) -> list[str]:
    """The title in lines of at most ``width`` pixels, broken where its parts (`` · ``) end; one that fits is one."""
    letters = font(13, bold=True)
    lines: list[str] = []
    for part in one_line(title).split(" · "):
        joined = f"{lines[-1]} · {part}" if lines else part
        if lines and letters.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, y: int, sizes: tuple[int, int], colormap: str
) -> None:
    width, side = sizes
    picture = scaled_picture(row.picture, side)
    sheet.paste(picture, (MARGIN, y))
    outline_boxes(draw, row.boxes, row.picture, picture.size, (MARGIN, y), width=2)
    _write_captions(draw, (MARGIN, y + picture.height), row.captions, width, INK)
    for column, cell in enumerate(row.cells, start=1):
        x, no_heat = MARGIN + column * (width + GAP), ""
        if cell.heat is None:
            sheet.paste(Image.new("RGB", picture.size, EMPTY), (x, y))
            write_line(draw, (x + 10, y + picture.height // 2 - 8), cell.note, width - 20, MUTED, size=12)
        else:
            heated, nothing = heated_picture(picture, cell.heat, 1.0, colormap)
            sheet.paste(heated, (x, y))
            outline_boxes(draw, row.boxes, row.picture, picture.size, (x, y), width=1)
            no_heat = "no heat" if nothing else ""
        _write_captions(draw, (x, y + picture.height), (cell.caption, no_heat), width, MUTED)


def _write_captions(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], captions: tuple[str, str], width: int, ink: tuple[int, int, int]
) -> None:
    write_line(draw, (at[0], at[1] + 3), captions[0], width, ink, size=SMALL)
    write_line(draw, (at[0], at[1] + LINE - 1), captions[1], width, MUTED, size=SMALL)


def _draw_key(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, rule_lines: Sequence[str], colormap: str) -> None:
    """The colors from no heat to full heat as they look over gray, and the rule by which maps are scaled."""
    levels = (
        torch.linspace(0, 255, KEY_WIDTH, dtype=torch.float32).round().byte().numpy()[None].repeat(KEY_HEIGHT, axis=0)
    )
    sheet.paste(tint(Image.new("RGB", (KEY_WIDTH, KEY_HEIGHT), GROUND), levels, colormap), (MARGIN, y))
    x = MARGIN + KEY_WIDTH + GAP
    for index, line in enumerate(rule_lines):
        write_line(draw, (x, y - 3 + index * LINE), line, sheet.width - x - MARGIN, MUTED, size=SMALL)
