"""Pictures of where a network looks: overlays, filmstrips and sheets of them. Pure functions, PIL images.

Every picture has one raw scale, so that pictures of different epochs can be compared: full heat is the
same map value in all of them, and negative evidence is drawn as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..boxes import BoxRule
from ..console import fixed
from .primitives import (
    BOX,
    COLUMN,
    FRAME,
    GAP,
    INK,
    LINE,
    MAP_BOX,
    MARGIN,
    MUTED,
    PANEL,
    PAPER,
    PER_ROW,
    RIGHT,
    WRONG,
    cells_picture,
    color_bar,
    drawn_side,
    heated_picture,
    outline_boxes,
    outline_region,
    paper,
    scaled_picture,
    scaled_size,
    write_legend,
    write_line,
)

__all__ = [
    "ClassMap",
    "Region",
    "boxes_in_overlay",
    "overlay_picture",
    "plain_overlay",
    "sheet_picture",
    "strip_picture",
]


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


@dataclass(frozen=True)
class Region:
    """The pixels of a map above the threshold from which on it makes boxes.

    Attributes:
        mask: bool, of any size: it is stretched over the image.
        rule: that cut the map there.
    """

    mask: NDArray[np.bool_]
    rule: BoxRule


def overlay_picture(
    image: Tensor,
    true: ClassMap | None,
    predicted: ClassMap,
    *,
    scale: float,
    boxes: Tensor | None = None,
    region: Region | None = None,
    colormap: str = "inferno",
    title: str = "",
    of_predicted: bool = False,
    long_side: int = PANEL,
) -> Image.Image:
    """The image, the map of the predicted class and the map of the true class, side by side; of panoramas in a column.

    All pictures of equally large images have the same size. Where the prediction is right the second
    panel shows the one map as the network computes it, cell by cell, so that the third always is the true
    class over the image; with ``of_predicted`` both panels show the predicted class so.

    Args:
        image: (3, H, W), uint8 or 0 to 1, not normalized; maps and regions are stretched over it.
        true: map of the true class; None where it is not known.
        predicted: map of the predicted class; the prediction is right if both names are equal.
        scale: raw map value that is drawn as full heat; where it is not positive no heat is drawn.
        boxes: ground truth, (n, 4) xyxy in pixels of ``image``, exclusive.
        region: of the map in the third panel; drawn there with the box around its largest part.
        colormap: name in ``matplotlib.colormaps``.
        title: line above the picture.
        of_predicted: show the predicted class alone, where the prediction is wrong.
        long_side: of a panel, pixels; of panoramas up to three times as many.
    """
    right = true is None or true.name == predicted.name
    picture = scaled_picture(image, drawn_side(image.shape[-2], image.shape[-1], long_side))
    width, height = max(picture.width, COLUMN), picture.height
    *places, end = _places(picture.size, long_side)
    is_column = places[1][0] == MARGIN
    sheet = paper((end[0] - MARGIN, places[2][1] + height + 2 * LINE - MARGIN))
    draw = ImageDraw.Draw(sheet)

    shown_map = predicted if of_predicted else true or predicted
    last, note = heated_picture(picture, shown_map.map_hw, scale, colormap)
    map_boxes = None
    if region is not None and region.mask.any():
        last, map_boxes = outline_region(last, region.mask), region.rule.mask_boxes(region.mask)
    if right or of_predicted:
        middle, label = cells_picture(picture.size, shown_map.map_hw, scale, colormap)
        labels = ["image", label, note or ("map over the image" if right else "map of the predicted class")]
    else:
        middle, other = heated_picture(picture, predicted.map_hw, scale, colormap)
        labels = ["image", other or "map of the predicted class", note or "map of the true class"]
    if true is None:
        captions, color = [(predicted.name, "")], INK
    else:
        mark, color = ("✓", RIGHT) if right else ("✗", WRONG)
        captions = [(f"true: {true.name}", f"{mark} predicted: {predicted.name}")]
    captions += [(m.name, f"logit {fixed(m.logit, 2)} · p {m.probability:.2f}") for m in (predicted, shown_map)]

    keys = [(BOX, "ground truth")] if boxes is not None and len(boxes) else []
    keys += [(MAP_BOX, f"found, {region.rule.threshold_text}")] if region is not None and map_boxes is not None else []
    inner = end[0] - GAP - MARGIN
    legend = inner * 4 // 5 if is_column else inner * 2 // 3
    room = write_legend(draw, MARGIN + inner, MARGIN - 2, keys, legend)
    write_line(draw, (MARGIN, MARGIN - 2), title, inner - legend + room - GAP, INK)
    for i, (panel, (x, y)) in enumerate(zip((picture, middle, last), places, strict=True)):
        sheet.paste(panel, (x, y))
        outline_boxes(draw, boxes, image, panel.size, (x, y), width=1 if i else 2)
        if i == 2 and region is not None and map_boxes is not None:
            corners = torch.from_numpy(map_boxes)
            outline_boxes(draw, corners, region.mask, panel.size, (x, y), width=1, color=MAP_BOX)
        write_line(draw, (x, y - LINE), labels[i], width, MUTED)
        write_line(draw, (x, y + height + 4), captions[i][0], width, INK)
        write_line(draw, (x, y + height + 4 + LINE), captions[i][1], width, MUTED if i else color, bold=not i)
    bar = places[2][1] + height - places[0][1] if is_column else height
    color_bar(sheet, end, bar, scale, colormap)
    return sheet


def _places(size: tuple[int, int], long_side: int) -> list[tuple[int, int]]:
    """Corners of an overlay's three panels of ``size`` (width, height), and that of what stands to their right."""
    width, height = max(size[0], COLUMN), size[1]
    x, y = MARGIN, MARGIN + 2 * LINE
    if 2 * size[0] > 3 * long_side:  # a panorama
        return [*((x, y + panel * (height + 3 * LINE + GAP)) for panel in range(3)), (x + width + GAP, y)]
    return [(x + panel * (width + GAP), y) for panel in range(4)]


def plain_overlay(
    image: Tensor,
    map_hw: Tensor,
    *,
    scale: float,
    boxes: NDArray[Any] | None = None,
    colormap: str = "inferno",
) -> Image.Image:
    """A map over the image in the image's own resolution, with boxes and nothing else.

    Args:
        image: (3, H, W), uint8 or 0 to 1.
        map_hw: raw signed map, (h, w).
        scale: raw map value that is drawn as full heat.
        boxes: that the map makes, (n, 4) xyxy in pixels of ``image``, exclusive.
        colormap: name in ``matplotlib.colormaps``.
    """
    long_side = max(image.shape[-2:])
    picture, _ = heated_picture(scaled_picture(image, long_side), map_hw, scale, colormap)
    if boxes is not None and len(boxes):
        line = max(1, round(long_side / 400))
        draw = ImageDraw.Draw(picture)
        outline_boxes(draw, torch.as_tensor(boxes), image, picture.size, (0, 0), width=line, color=MAP_BOX)
    return picture


def boxes_in_overlay(boxes: NDArray[Any], size: tuple[int, int], panel: int) -> list[list[float]]:
    """Boxes (n, 4), xyxy pixels of an image of ``size`` (height, width), as pixels of its overlay's panel 0, 1 or 2."""
    width, height = scaled_size(*size, drawn_side(*size, PANEL))
    x, y = _places((width, height), PANEL)[panel]
    corners = boxes.reshape(-1, 4) * ([width / size[1], height / size[0]] * 2) + ([x, y] * 2)
    return [[float(value) for value in box] for box in corners]


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
        image: (3, H, W), uint8 or 0 to 1, not normalized.
        maps: raw signed maps of one class, (h, w) each.
        captions: one per map, e.g. ``"epoch 3"``.
        scale: raw map value that is drawn as full heat.
        boxes: ground truth, (n, 4) xyxy in pixels of ``image``, exclusive.
        colormap: name in ``matplotlib.colormaps``.
        title: line above the strip.
    """
    picture = scaled_picture(image, drawn_side(image.shape[-2], image.shape[-1], FRAME))
    frames = [picture, *(heated_picture(picture, map_hw, scale, colormap)[0] for map_hw in maps)]
    column = max(picture.width, FRAME // 2)
    most = max(1, PER_ROW * (FRAME + GAP) // (max(column, FRAME) + GAP))  # of panoramas fewer
    rows = -(-len(frames) // most)
    columns = -(-len(frames) // rows)  # rows of about equal length
    step = (column + GAP, picture.height + LINE + GAP)
    sheet = paper((columns * step[0], rows * step[1] + LINE))
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (MARGIN, MARGIN - 2), title, sheet.width - 2 * MARGIN, INK)
    for i, (frame, caption) in enumerate(zip(frames, ["image", *captions], strict=True)):
        x, y = MARGIN + i % columns * step[0], MARGIN + LINE + 4 + i // columns * step[1]
        sheet.paste(frame, (x, y))
        if i == 0:
            outline_boxes(draw, boxes, image, frame.size, (x, y), width=1)
        write_line(draw, (x, y + frame.height + 2), caption, column, MUTED, size=11)
    color_bar(sheet, (MARGIN + columns * step[0], MARGIN + LINE + 4), picture.height, scale, colormap)
    return sheet


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
