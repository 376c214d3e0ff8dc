"""Pictures of where a network looks: overlays, filmstrips and sheets of them. Pure functions, PIL images.

Every picture has one raw scale, so that pictures of different epochs can be compared: full heat is the
same map value in all of them, and negative evidence is drawn as none.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from camify.maps import upsample

__all__ = [
    "ClassMap",
    "grid_picture",
    "outline_boxes",
    "overlay_picture",
    "scaled_picture",
    "sheet_picture",
    "strip_picture",
    "tint",
    "write_line",
]

PAPER, INK, MUTED = (252, 252, 250), (31, 35, 40), (106, 112, 119)
GROUND = (224, 224, 224)  # below a colour bar and below a map that is drawn without its image
RIGHT, WRONG = (26, 115, 72), (180, 52, 28)
BOX, BOX_EDGE = (64, 224, 208), (16, 24, 28)
PANEL, FRAME = 224, 112  # long side of a picture in an overlay and in a strip, pixels
MARGIN, GAP, BAR, LINE = 12, 8, 10, 19
TICK = 44  # room for the numbers beside a colour bar
COLUMN = 184  # least width of an overlay's column, so that captions fit below narrow pictures
PER_ROW = 11  # pictures in a row of a strip
FLAT = 1 / 256  # of the scale: what one step of the colours cannot show

Levels = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassMap:
    """One class's raw map for one image.

    Attributes:
        name: class name as the user wrote it.
        map_hw: raw signed map in logit units, (h, w), at map resolution.
        logit: the class's logit.
        probability: its softmax, 0 to 1.
    """

    name: str
    map_hw: Tensor
    logit: float
    probability: float


def overlay_picture(
    image: Tensor,
    true: ClassMap | None,
    predicted: ClassMap,
    *,
    scale: float,
    boxes: Tensor | None = None,
    colormap: str = "inferno",
    title: str = "",
) -> Image.Image:
    """The image, the map of the predicted class and the map of the true class, side by side.

    All pictures of equally large images have the same size. Where the prediction is right the second
    panel shows the one map as the network computes it, cell by cell, so that the third always is the true
    class over the image.

    Args:
        image: (3, H, W), 0 to 1, not normalised.
        true: map of the true class; None where it is not known.
        predicted: map of the predicted class; the prediction is right if both names are equal.
        scale: raw map value that is drawn as full heat; where it is not positive no heat is drawn.
        boxes: ground truth, (n, 4) xyxy in pixels of ``image``, exclusive.
        colormap: name in ``matplotlib.colormaps``.
        title: line above the picture.
    """
    right = true is None or true.name == predicted.name
    picture = scaled_picture(image, PANEL)
    width, height = max(picture.width, COLUMN), picture.height
    paper = _paper((3 * (width + GAP), height + 4 * LINE))
    draw = ImageDraw.Draw(paper)

    shown = true or predicted
    last, note = _heated(picture, shown.map_hw, scale, colormap)
    if right:
        middle, label = _cells(picture.size, shown.map_hw, scale, colormap)
        labels = ["image", label, note or "map over the image"]
    else:
        middle, other = _heated(picture, predicted.map_hw, scale, colormap)
        labels = ["image", other or "map of the predicted class", note or "map of the true class"]
    if true is None:
        captions, colour = [(predicted.name, "")], INK
    else:
        mark, colour = ("✓", RIGHT) if right else ("✗", WRONG)
        captions = [(f"true: {true.name}", f"{mark} predicted: {predicted.name}")]
    captions += [(m.name, f"logit {m.logit:.2f} · p {m.probability:.2f}") for m in (predicted, shown)]

    x, y = MARGIN, MARGIN + 2 * LINE
    write_line(draw, (x, MARGIN - 2), title, paper.width - 2 * MARGIN, INK)
    for i, panel in enumerate((picture, middle, last)):
        paper.paste(panel, (x, y))
        outline_boxes(draw, boxes, image, panel.size, (x, y), width=1 if i else 2)
        write_line(draw, (x, y - LINE), labels[i], width, MUTED)
        write_line(draw, (x, y + height + 4), captions[i][0], width, INK)
        write_line(draw, (x, y + height + 4 + LINE), captions[i][1], width, MUTED if i else colour, bold=not i)
        x += width + GAP
    _colour_bar(paper, (x, y), height, scale, colormap)
    return paper


def grid_picture(
    image: Tensor,
    columns: Sequence[str],
    rows: Sequence[Sequence[ClassMap]],
    *,
    boxes: Tensor | None = None,
    colormap: str = "inferno",
    title: str = "",
) -> Image.Image:
    """The image, then maps over it: a row for each class, a column for each method.

    Methods have different units, so every map has its own scale, which stands below it: from zero, or from its minimum
    where that is positive, to its maximum.

    Args:
        image: (3, H, W), 0 to 1, not normalised.
        columns: names of the methods.
        rows: of each class the maps of all methods.
        boxes: ground truth, (n, 4) xyxy in pixels of ``image``, exclusive.
        colormap: name in ``matplotlib.colormaps``.
        title: line above the picture.
    """
    picture = scaled_picture(image, PANEL)
    width, height = max(picture.width, COLUMN), picture.height
    step = (width + GAP, height + 3 * LINE)
    paper = _paper(((1 + len(columns)) * step[0], len(rows) * step[1] + 2 * LINE))
    draw = ImageDraw.Draw(paper)
    write_line(draw, (MARGIN, MARGIN - 2), title, paper.width - 2 * MARGIN, INK)
    for i, label in enumerate(["image", *columns]):
        write_line(draw, (MARGIN + i * step[0], MARGIN + LINE), label, width, MUTED)
    for j, maps in enumerate(rows):
        y = MARGIN + 2 * LINE + j * step[1]
        panels, notes = [picture], [f"logit {maps[0].logit:.2f} · p {maps[0].probability:.2f}"]
        for shown in maps:
            low, high = max(float(shown.map_hw.min()), 0.0), float(shown.map_hw.max())
            heated, note = _heated(picture, shown.map_hw - low, high - low, colormap)
            panels.append(heated)
            notes.append(note or f"{low:.3g} to {high:.3g}")
        for i, (panel, note) in enumerate(zip(panels, notes, strict=True)):
            x = MARGIN + i * step[0]
            paper.paste(panel, (x, y))
            outline_boxes(draw, boxes, image, panel.size, (x, y), width=1 if i else 2)
            write_line(
                draw, (x, y + height + 4), maps[0].name if i == 0 else note, width, MUTED if i else INK, bold=not i
            )
        write_line(draw, (MARGIN, y + height + 4 + LINE), notes[0], width, MUTED)
    bar = MARGIN + (1 + len(columns)) * step[0]
    _colour_bar(paper, (bar, MARGIN + 2 * LINE), height, ("low", "high"), colormap)
    return paper


def strip_picture(
    image: Tensor,
    maps: Sequence[Tensor],
    captions: Sequence[str],
    *,
    scale: float,
    boxes: Tensor | None = None,
    colormap: str = "inferno",
    title: str = "",
) -> Image.Image:
    """The image, then one class's map over it for each epoch, on one common scale.

    Args:
        image: (3, H, W), 0 to 1, not normalised.
        maps: raw signed maps of one class, (h, w) each.
        captions: one per map, e.g. ``"epoch 3"``.
        scale: raw map value that is drawn as full heat.
        boxes: ground truth, (n, 4) xyxy in pixels of ``image``, exclusive.
        colormap: name in ``matplotlib.colormaps``.
        title: line above the strip.
    """
    picture = scaled_picture(image, FRAME)
    frames = [picture, *(_heated(picture, map_hw, scale, colormap)[0] for map_hw in maps)]
    column = max(picture.width, FRAME // 2)
    rows = -(-len(frames) // PER_ROW)
    columns = -(-len(frames) // rows)  # rows of about equal length
    step = (column + GAP, picture.height + LINE + GAP)
    paper = _paper((columns * step[0], rows * step[1] + LINE))
    draw = ImageDraw.Draw(paper)
    write_line(draw, (MARGIN, MARGIN - 2), title, paper.width - 2 * MARGIN, INK)
    for i, (frame, caption) in enumerate(zip(frames, ["image", *captions], strict=True)):
        x, y = MARGIN + i % columns * step[0], MARGIN + LINE + 4 + i // columns * step[1]
        paper.paste(frame, (x, y))
        if i == 0:
            outline_boxes(draw, boxes, image, frame.size, (x, y), width=1)
        write_line(draw, (x, y + frame.height + 2), caption, column, MUTED, size=11)
    _colour_bar(paper, (MARGIN + columns * step[0], MARGIN + LINE + 4), picture.height, scale, colormap)
    return paper


def sheet_picture(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """The pictures in a grid of ``columns`` columns, row by row; cells are as large as the largest one."""
    width = max((p.width for p in pictures), default=1) + GAP
    height = max((p.height for p in pictures), default=1) + GAP
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def _paper(inner: tuple[int, int]) -> Image.Image:
    """An empty sheet: ``inner`` pixels, a colour bar to their right, and margins."""
    return Image.new("RGB", (MARGIN + inner[0] + BAR + TICK, inner[1] + 2 * MARGIN), PAPER)


def scaled_picture(image: Tensor, long_side: int) -> Image.Image:
    """``image`` (3, H, W), 0 to 1, as a picture whose longer side has ``long_side`` pixels."""
    values = np.nan_to_num(image.detach().float().cpu().numpy())  # not torch: pictures are drawn beside forwards
    pixels = np.ascontiguousarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    height, width = pixels.shape[:2]
    factor = long_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _levels(map_hw: Tensor, scale: float, size: tuple[int, int]) -> tuple[Levels, str]:
    """Heat of a raw map at ``size`` (width, height) in steps 0..255, and a note where there is none."""
    raw = map_hw.detach().float().cpu()
    nothing = np.zeros(size[::-1], np.uint8)
    if not bool(torch.isfinite(raw).all()):
        return nothing, "map is not finite"
    low, high = float(raw.min()), float(raw.max())
    if not scale > 0 or high <= FLAT * scale:
        return nothing, "no positive evidence"
    if high - low <= FLAT * scale:
        return nothing, "the same everywhere"
    heat = (upsample(raw, size[::-1]) / scale).numpy().clip(0, 1)
    return np.rint(heat * 255).astype(np.uint8), ""


@lru_cache(maxsize=8)
def _recipe(colormap: str) -> NDArray[np.float32]:
    """For each level what a pixel is made of: image, its grey, and red, green, blue on top, (5, 256)."""
    heat = np.linspace(0, 1, 256)[:, None]
    alpha = 0.8 * heat**0.7  # strong early, yet without evidence the picture stays as it is
    fade = np.minimum(1, 2 * heat)  # the picture turns to dim grey below the heat, so that colours read
    colour = np.asarray(mpl.colormaps[colormap](heat[:, 0]))[:, :3] * 255
    parts = [(1 - alpha) * (1 - fade), (1 - alpha) * fade * 0.8, alpha * colour + 0.5]  # rounded, not cut off
    return np.ascontiguousarray(np.hstack(parts).T.astype(np.float32))


def tint(picture: Image.Image, levels: Levels, colormap: str) -> Image.Image:
    """The picture with heat over it; where the level is 0 it is left as it is."""
    own, dimmed, *colours = (part.take(levels) for part in _recipe(colormap))
    dimmed *= np.asarray(picture.convert("L"))
    tinted = np.empty((*levels.shape, 3), np.uint8)
    for channel, (pixels, colour) in enumerate(zip(picture.split(), colours, strict=True)):
        tinted[..., channel] = own * np.asarray(pixels) + (dimmed + colour)
    return Image.fromarray(tinted)


def _heated(picture: Image.Image, map_hw: Tensor, scale: float, colormap: str) -> tuple[Image.Image, str]:
    """The map over the picture, and a note where there is no heat to draw."""
    levels, note = _levels(map_hw, scale, picture.size)
    return tint(picture, levels, colormap), note


def _cells(size: tuple[int, int], map_hw: Tensor, scale: float, colormap: str) -> tuple[Image.Image, str]:
    """The map alone at ``size``, each of its cells one colour, and what to write above it."""
    rows, columns = map_hw.shape
    levels, _ = _levels(map_hw, scale, (columns, rows))
    cells = tint(Image.new("RGB", (columns, rows), GROUND), levels, colormap)
    return cells.resize(size, Image.Resampling.NEAREST), f"map, {rows} by {columns} cells"


def outline_boxes(
    draw: ImageDraw.ImageDraw,
    boxes: Tensor | None,
    image: Tensor,
    size: tuple[int, int],
    at: tuple[int, int],
    *,
    width: int,
) -> None:
    """Draws boxes, given in pixels of ``image``, into the panel of ``size`` that stands at ``at``.

    The coloured line of ``width`` pixels lies just inside a box, a thin dark one just outside.
    """
    lines = [(-1, BOX_EDGE), *((i, BOX) for i in range(width))]
    factors = np.divide((*size, *size), (image.shape[-1], image.shape[-2]) * 2)
    limits = np.array([*size, *size])
    for box in [] if boxes is None else boxes.detach().cpu().numpy():
        left, top, right, bottom = np.clip(np.round(box * factors), 0, limits).astype(int)
        x0, y0 = at[0] + left, at[1] + top
        x1, y1 = max(x0, at[0] + right - 1), max(y0, at[1] + bottom - 1)  # PIL's corners are inclusive
        for inset, colour in lines:
            if x1 - x0 >= 2 * inset and y1 - y0 >= 2 * inset:
                draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), outline=colour)


def _colour_bar(
    paper: Image.Image, at: tuple[int, int], height: int, ends: float | tuple[str, str], colormap: str
) -> None:
    """Draws the colours from 0 (bottom) to ``ends`` (top), or between two words, as they look over a grey picture."""
    bottom, top = ("0", f"{ends:.3g}") if isinstance(ends, float | int) else ends
    paper.paste(_bar(height, colormap), at)
    draw, x = ImageDraw.Draw(paper), at[0] + BAR + 4
    write_line(draw, (x, at[1] - 3), top, TICK - 4, MUTED, size=11)
    write_line(draw, (x, at[1] + height - 12), bottom, TICK - 4, MUTED, size=11)


@lru_cache(maxsize=32)
def _bar(height: int, colormap: str) -> Image.Image:
    levels = np.linspace(255, 0, height).round().astype(np.uint8)[:, None].repeat(BAR, axis=1)
    return tint(Image.new("RGB", (BAR, height), GROUND), levels, colormap)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), size)


def write_line(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    fill: Colour,
    *,
    size: int = 13,
    bold: bool = False,
) -> None:
    """Writes one line of at most ``width`` pixels; what is too long ends in an ellipsis."""
    font = _font(size, bold)
    # a line break, a control character or half a surrogate would stop the font engine
    line = "".join(c if c.isprintable() else " " for c in text[:width])
    if font.getlength(line) > width:
        lengths = range(1, len(line))
        fits = bisect.bisect_left(lengths, True, key=lambda n: font.getlength(line[:n] + "…") > width)
        line = line[:fits].rstrip() + "…"
    draw.text(at, line, fill=fill, font=font)
