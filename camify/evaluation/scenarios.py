"""The situations in which methods are compared: what is in a picture, and what is done to it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "ABSENT", "MIRRORED", "SCENARIOS", "SHIFTED", "SMALL", "UNCHANGED", "VIEWS", "absent_classes", "mirrored",
    "scenario_of",
]  # fmt: skip

SMALL = 0.05
"""Share of the picture below which an object is small."""

SINGLE, SEVERAL, TINY, UNKNOWN = "single object", "several instances", "small object", "boxes unknown"
SCENARIOS = (SINGLE, SEVERAL, TINY, UNKNOWN)
"""What is in a picture."""

UNCHANGED, ABSENT, MIRRORED, SHIFTED = "overall", "class not present", "mirrored input", "shifted input"
VIEWS = (UNCHANGED, ABSENT, MIRRORED, SHIFTED)
"""What is asked of every picture: the compared class, a class that is not there, and the picture changed."""


def scenario_of(boxes_n4: Tensor | None, height: int, width: int) -> str:
    """What is in a picture of that size, by its ground-truth boxes: several of them, a small one, or one."""
    if boxes_n4 is None or not len(boxes_n4):
        return UNKNOWN
    if len(boxes_n4) > 1:
        return SEVERAL
    x0, y0, x1, y1 = boxes_n4[0].tolist()
    return TINY if (x1 - x0) * (y1 - y0) < SMALL * height * width else SINGLE


def absent_classes(logits_NK: Tensor, compared: list[int], present: list[set[int]]) -> Tensor:
    """The least probable class of every image that is not in it, (N,).

    Where every class is, it is the least probable one beside the compared class; of a network of one logit, whose
    logits (N, 2) speak of a class and its absence, the other one.
    """
    classes = logits_NK.shape[1]
    masked = logits_NK.clone()
    for row, target, labels in zip(masked, compared, present, strict=True):
        excluded = labels | {target}
        row[sorted(excluded) if len(excluded) < classes else [target]] = torch.inf
    return masked.argmin(1)


def mirrored(images: Tensor) -> Tensor:
    """Images or maps (..., H, W) flipped left to right; twice gives the same again."""
    return images.flip(-1)
