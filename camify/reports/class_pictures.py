"""Confusion matrix and calibration curve as pictures, for loggers: the geometry is that of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageColor, ImageDraw

from ..drawing.primitives import GROUND, INK, MARGIN, MUTED, PAPER, font
from .html import style_values

__all__ = ["calibration_picture", "confusion_picture"]

Color = tuple[int, int, int]
_COLORS = [ImageColor.getrgb(style_values()[f"s{index}"])[:3] for index in range(6)]
_CELLS = {"right": _COLORS[0], "wrong": _COLORS[1], "others": MUTED}
_DEEPEST = float(style_values()["deepest"])
_LINE = 18
_TITLE, _LEAST = 30, 420  # room for the title, least width


def confusion_picture(matrix: Mapping[str, Any], title: str) -> Image.Image:
    """The matrix of ``class_page.class_view`` as a picture: rows are true classes, columns what they are taken for."""
    width, height = matrix["size"]
    sheet = Image.new("RGB", (max(_LEAST, int(width) + 2 * MARGIN), int(height) + 2 * MARGIN + _TITLE), PAPER)
    draw, left, top = ImageDraw.Draw(sheet), MARGIN, MARGIN + _TITLE
    _write(draw, (MARGIN, MARGIN), title, "lt", bold=True)
    origin, cell = int(matrix["origin"]), matrix["cell"]
    for _, y, text, _ in matrix["rows"]:
        _write(draw, (left + origin - 8, top + y), text, "rm")
    for x, y, text, _ in matrix["columns"]:
        label = Image.new("RGB", (origin - 8, _LINE), PAPER)
        _write(ImageDraw.Draw(label), (0, _LINE / 2), text, "lm")
        sheet.paste(label.rotate(90, expand=True), (int(left + x - 9), int(top + y - label.width)))
    for one in matrix["cells"]:
        x, y = int(left + one["x"]), int(top + one["y"])
        color = _mixed(_CELLS[one["kind"]], _DEEPEST * float(one["depth"]) / 100)
        draw.rectangle((x, y, x + cell - 3, y + cell - 3), fill=color)
        middle = (x + cell / 2 - 1, y + cell / 2 - 1)
        _write(draw, middle, one["count"], "mm")
    return sheet


def calibration_picture(calibration: Mapping[str, Any]) -> Image.Image:
    """The calibration curves of ``class_page.class_view`` as a picture, with their expected calibration errors."""
    width, height = calibration["size"]
    lines = calibration["lines"]
    sheet = Image.new("RGB", (int(width) + 280, max(int(height), _TITLE + len(lines) * _LINE) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    left, right, top, bottom = calibration["area"]
    for y, text in calibration["y_ticks"]:
        draw.line((MARGIN + left, MARGIN + y, MARGIN + right, MARGIN + y), GROUND)
        _write(draw, (MARGIN + left - 6, MARGIN + y), text, "rm", MUTED)
    for x, text in calibration["x_ticks"]:
        _write(draw, (MARGIN + x, MARGIN + bottom + 8), text, "mt", MUTED)
    draw.line((MARGIN + left, MARGIN + bottom, MARGIN + right, MARGIN + top), MUTED)
    _write(draw, (MARGIN + (left + right) / 2, MARGIN + bottom + 28), "confidence; up: share right", "mt", MUTED)
    _write(draw, (width + MARGIN, MARGIN), "expected calibration error", "lt", bold=True)
    for index, (_, label, dots) in enumerate(lines):
        color = _COLORS[index % len(_COLORS)]
        points = [(MARGIN + x, MARGIN + y) for x, y, _, _ in dots]
        draw.line(points, color, width=2)
        for (x, y), (_, _, radius, _) in zip(points, dots, strict=True):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PAPER, outline=color, width=2)
        _write(draw, (width + MARGIN, MARGIN + _TITLE + index * _LINE), label, "lt", color)
    return sheet


def _mixed(color: Color, share: float) -> Color:
    red, green, blue = (round(share * own + (1 - share) * ground) for own, ground in zip(color, PAPER, strict=True))
    return red, green, blue


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str, fill: Color = INK, *, bold: bool = False
) -> None:
    """A line of text, of which ``anchor`` (as Pillow names it) stands at the place."""
    draw.text(at, "".join(c if c.isprintable() else " " for c in text), fill=fill, font=font(13, bold), anchor=anchor)
