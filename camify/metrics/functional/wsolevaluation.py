"""Box curves as clovaai/wsolevaluation's code (Choe et al. 2020) has them, bit for bit."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .box import best_per_level, box_pixels, iou_with_best
from .largest_component import largest_per_level
from .level_sets import level_set_boxes

__all__ = ["published_curves", "published_iou"]


def published_curves(heats: np.ndarray, truths: list[np.ndarray], count: int, largest: bool) -> NDArray[np.float64]:
    """The best IoU of maps (N, H, W), float64, with their boxes at every threshold, (N, count)."""
    truths = [np.trunc(truth) for truth in truths]
    bits = (heats * 255).astype(np.uint8)
    level = bits.astype(np.int32)
    highest = level.max((1, 2))
    levels_each = int(highest.max()) + 1
    share = np.arange(count) * (1 / count)
    asked = (share * highest[:, None]).astype(np.intp) + 1  # (N, count)
    numbers = asked + levels_each * np.arange(len(heats))[:, None]
    numbers[highest == 0] = 0
    levels = level_set_boxes(heats, level, levels_each, units=_half_squares(bits) if largest else (), holes=not largest)
    if largest:
        levels = largest_per_level(
            levels, level, levels_each, np.unique(numbers), 2 * box_pixels(levels.boxes, 1),
            lambda line: 2 * cv2.contourArea(line), _largest_polygon, topmost=False,
        )  # fmt: skip
    levels = levels._replace(boxes=_cut(levels.boxes, *heats.shape[1:]))
    curves: NDArray[np.float64] = best_per_level(levels, truths, levels_each, corner=1).ravel()[numbers]
    for place in np.flatnonzero(highest == 0):
        curves[place] = iou_with_best(np.zeros((1, 4)), truths[place], corner=1)[0]
    return curves


def published_iou(heat: np.ndarray, truth: np.ndarray, threshold: float, largest: bool) -> float:
    """The same of one map (H, W) at one threshold."""
    level = (heat * 255).astype(np.uint8)
    outlines, _ = cv2.findContours(
        (level > int(threshold * int(level.max()))).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
    )
    chosen = [max(outlines, key=cv2.contourArea)] if largest and outlines else outlines
    predicted = np.array([cv2.boundingRect(outline) for outline in chosen] or [(0, 0, 0, 0)])
    predicted[:, 2:] += predicted[:, :2]
    return float(iou_with_best(_cut(predicted, *level.shape), np.trunc(truth), corner=1).max())


def _half_squares(level_NHW: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The levels up to which a polygon through pixels' centers has one and two halves of a pixel's square (2 x 2)."""
    padded = np.pad(level_NHW, ((0, 0), (0, 1), (0, 1)))
    top, bottom = padded[:, :-1], padded[:, 1:]
    least = [np.minimum(row[..., :-1], row[..., 1:]) for row in (top, bottom)]
    most = [np.maximum(row[..., :-1], row[..., 1:]) for row in (top, bottom)]
    return [np.minimum(*least), np.minimum(np.maximum(*least), np.minimum(*most))]


def _cut(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    cut: np.ndarray = np.minimum(boxes, (width, height, width - 1, height - 1))
    return cut


def _largest_polygon(mask: np.ndarray) -> np.ndarray:
    """The box of the border, a component's or a hole's, that encloses most; the first in OpenCV's order of equals."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    x, y, width, height = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    return np.array((x, y, x + width, y + height))
