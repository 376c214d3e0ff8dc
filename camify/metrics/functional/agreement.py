"""How alike are maps, and what do they say? Pure functions of heats (M, H, W), each map against each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ...boxes import component_boxes
from . import box_masks, peak

__all__ = [
    "average_ranks",
    "box_agreement",
    "correlations",
    "heat_boxes",
    "mask_agreement",
    "peak_hits",
    "top_area",
]


def correlations(maps_MHW: Tensor) -> Tensor:
    """Pearson's correlation of every two maps over their pixels, (M, M) float64; NaN where one is constant.

    A map that differs by no more than the rounding of its upsampling counts as constant, as in
    ``camify.maps.normalize``.
    """
    flat = maps_MHW.flatten(1)
    span = flat.amax(1) - flat.amin(1)
    varies = span > 4 * torch.finfo(flat.dtype).eps * flat.abs().amax(1)
    centred = flat.double() - flat.double().mean(1, keepdim=True)
    unit = centred / torch.where(varies, centred.norm(dim=1), torch.nan)[:, None]
    return (unit @ unit.T).clamp(-1, 1)


def average_ranks(maps_MHW: Tensor) -> Tensor:
    """Ranks of the pixels within every map, from 1; equal values share the mean of theirs. Same shape, float64."""
    ranks = []
    for row in maps_MHW.flatten(1):
        _, place, counts = row.unique(return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum(0) - (counts - 1) / 2).double()[place])
    return torch.stack(ranks).reshape(maps_MHW.shape)


def top_area(heats_MHW: Tensor, share: float) -> Tensor:
    """The pixels of highest heat that take a share of the area, (M, H, W) bool.

    Pixels as hot as the last one belong too; pixels without heat never do, so a map of little heat marks less.
    """
    flat = heats_MHW.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    least = flat.topk(count, dim=1).values[:, -1:]
    return ((flat >= least) & (flat > 0)).reshape(heats_MHW.shape)


def mask_agreement(masks_MHW: Tensor) -> Tensor:
    """Intersection over union of every two masks, (M, M) float64; NaN where one is empty."""
    flat = masks_MHW.flatten(1).double()
    shared, areas = flat @ flat.T, flat.sum(1)
    areas = torch.where(areas > 0, areas, torch.nan)
    return shared / (areas[:, None] + areas - shared)


def heat_boxes(heats_MHW: Tensor, threshold: float) -> Tensor:
    """Tight box of the largest component of ``heat >= threshold``, (M, 4) xyxy exclusive; NaN where there is none."""
    boxes = torch.full((len(heats_MHW), 4), torch.nan, dtype=torch.float64)
    for index, heat in enumerate(heats_MHW.cpu().numpy()):
        found = component_boxes(np.asarray(heat >= threshold), largest=True)
        if len(found):
            boxes[index] = torch.from_numpy(found[0]).double()
    return boxes


def box_agreement(boxes_M4: Tensor) -> Tensor:
    """IoU of every two boxes, (M, M); NaN where one is missing."""
    missing = boxes_M4.isnan().any(1)
    ious = box_iou(boxes_M4.nan_to_num(), boxes_M4.nan_to_num())
    return torch.where(missing[:, None] | missing, torch.nan, ious)


def peak_hits(heats_MHW: Tensor, boxes_n4: Tensor) -> Tensor:
    """Whether the hottest pixel's centre lies in one of the boxes, (M,): 1, 0, or NaN of a map without heat.

    The pointing game (Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop") without its tolerance of
    15 pixels; of equally hot pixels the first in reading order counts.
    """
    (inside,) = box_masks([boxes_n4], *heats_MHW.shape[1:])
    points = [peak(heat) for heat in heats_MHW]
    return torch.tensor([torch.nan if point is None else inside[point] for point in points], dtype=torch.float64)
