"""What every image gives for localisation: of a map, of boxes that are the same for all images, of maps of nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..metrics.functional import (
    area,
    best_iou_at_threshold,
    best_ious_by_threshold,
    box_masks,
    centre_boxes,
    centre_gaussian,
    energy_share,
    entropy,
    iou_with_best_box,
    peak,
    pointing_distance,
    random_maps,
)

__all__ = [
    "BASELINES",
    "CENTRE_BOX",
    "CENTRE_GAUSSIAN",
    "IOUS",
    "RANDOM_MAP",
    "THRESHOLDS",
    "TOLERANCE",
    "WHOLE_IMAGE",
    "Values",
    "baseline_maps",
    "baseline_values",
    "hard_images",
    "map_values",
]

IOUS = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
THRESHOLDS = 100
"""From 0 in steps of 0.01."""
TOLERANCE = 15.0
"""Pixels of the pointing game, as in Zhang et al. 2018."""
CENTRE_BOX, CENTRE_GAUSSIAN, WHOLE_IMAGE, RANDOM_MAP = "centre box", "centre Gaussian", "whole image", "random map"
BASELINES = (CENTRE_BOX, CENTRE_GAUSSIAN, WHOLE_IMAGE, RANDOM_MAP)

Values = dict[str, Tensor]
"""By name one row per image.

``all`` and ``largest`` (N, T) uint8: how many of ``IOUS`` the best box, or that of the largest component, reaches at
each of T thresholds (of a fixed box: at each of T sizes); of maps also ``iou`` (N, T) float16, of the largest, and
``given`` (N, 1) uint8, at the threshold that was asked for; ``pointing``, ``energy``, ``entropy``, ``area`` (N,).
Without boxes 0 or NaN.
"""


def map_values(
    heats: Tensor, evidence: Tensor, boxes: Sequence[Tensor] | None, threshold: float | None = None
) -> Values:
    """Values of maps.

    Args:
        heats: (N, H, W) in [0, 1].
        evidence: (N, H, W), the same before it was scaled; what is negative is none.
        boxes: N tensors (n, 4), xyxy pixels, n may be 0; None where the data has no boxes.
        threshold: cut the heats here too.
    """
    found = {"entropy": entropy(evidence), "area": area(heats)}
    if boxes is None:
        return found
    masks = box_masks(boxes, heats.shape[1], heats.shape[2])
    both = _ious(boxes, [partial(_every_and_largest, heat) for heat in heats], 2 * THRESHOLDS)
    largest = both[:, THRESHOLDS:]
    found |= {
        "all": _levels(both[:, :THRESHOLDS]),
        "largest": _levels(largest),
        "iou": largest.half(),
        "pointing": torch.stack([_pointed(peak(heat), mask) for heat, mask in zip(heats, masks, strict=True)]),
        "energy": torch.where(masks.flatten(1).any(1), energy_share(evidence, masks), torch.nan),
    }
    if threshold is not None:
        found["given"] = _levels(_ious(boxes, [partial(_iou_at, heat, threshold) for heat in heats], 1))
    return found


def baseline_maps(size: tuple[int, int], numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
    """By name the maps (N, H, W) that know nothing of the images; the random ones depend on an image's number alone."""
    return {
        CENTRE_GAUSSIAN: centre_gaussian(*size).expand(len(numbers), *size),
        RANDOM_MAP: torch.cat([random_maps(1, *size, seed=hash((seed, number)) % 2**63) for number in numbers]),
    }


def baseline_values(
    boxes: Sequence[Tensor] | None, size: tuple[int, int], numbers: Sequence[int], seed: int, threshold: float | None
) -> dict[str, Values]:
    """By name the values of what knows nothing of the images."""
    maps = baseline_maps(size, numbers, seed)
    found = {name: map_values(heats, heats, boxes, threshold) for name, heats in maps.items()}
    if boxes is None:
        return found
    masks = box_masks(boxes, *size)
    known = masks.flatten(1).any(1)
    nothing = torch.full((len(boxes),), torch.nan, dtype=torch.float64)
    middle = (size[0] // 2, size[1] // 2)
    candidates = centre_boxes(*size)
    found[CENTRE_BOX] = {
        **_fixed(candidates, boxes),
        "pointing": torch.stack([_pointed(middle, mask) for mask in masks]),
        "energy": nothing,
    }
    found[WHOLE_IMAGE] = {
        **_fixed(candidates[-1:], boxes),  # the largest
        "pointing": nothing,
        "energy": torch.where(known, masks.double().mean((1, 2)), torch.nan),
    }
    return {name: found[name] for name in BASELINES}


def hard_images(centre: Values) -> Tensor:
    """Which images no centred box solves at each IoU, (N, 3) bool; also those without boxes."""
    return centre["all"].amax(1, keepdim=True) <= torch.arange(len(IOUS))


def _fixed(candidates: Tensor, boxes: Sequence[Tensor]) -> Values:
    ious = _ious(boxes, [partial(iou_with_best_box, candidates)] * len(boxes), len(candidates))
    return {"all": _levels(ious), "largest": _levels(ious)}


def _every_and_largest(heat: Tensor, truth: Tensor) -> Tensor:
    return torch.cat(best_ious_by_threshold(heat, truth, THRESHOLDS))


def _iou_at(heat: Tensor, threshold: float, truth: Tensor) -> Tensor:
    return torch.tensor([best_iou_at_threshold(heat, truth, threshold, largest=True)], dtype=torch.float64)


def _ious(boxes: Sequence[Tensor], measures: Sequence[Callable[[Tensor], Tensor]], count: int = THRESHOLDS) -> Tensor:
    """What each measure gives for the boxes of its image, (N, count) float64; NaN where there are none."""
    found = torch.full((len(boxes), count), torch.nan, dtype=torch.float64)
    for row, truth, measure in zip(found, boxes, measures, strict=True):
        if len(truth):
            row[:] = measure(truth)
    return found


def _levels(ious_NT: Tensor) -> Tensor:
    return (ious_NT[..., None] >= IOUS).sum(-1).to(torch.uint8)


def _pointed(point: tuple[int, int] | None, mask: Tensor) -> Tensor:
    """1 or 0: a map without a peak points nowhere; NaN without an object."""
    if not bool(mask.any()):
        return torch.tensor(torch.nan)
    return torch.tensor(float(point is not None and pointing_distance(point, mask) < TOLERANCE))
