"""The box of a map inside an exported graph: tensor steps alone, no loop that depends on values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["largest_boxes", "percentile"]

ROUNDS = 10
"""Rounds of joining: eight join a path of 13,000 pixels, and noise at its percolation threshold (tests)."""


def largest_boxes(mask_NHW: Tensor) -> Tensor:
    """Boxes (N, 4), xyxy pixels, exclusive, of each mask's largest 8-connected component; zeros if it is empty.

    The largest has most pixels; those of holes do not count, unlike in ``camify.maps.component_boxes``, so that of
    two about equally large ones another may be chosen. The first in reading order wins a tie. Components are joined as
    by Zhang, Azad & Buluc 2020, "FastSV: a distributed-memory connected component algorithm with fast convergence":
    every pixel points to one of higher index, trees are hooked onto neighbours' trees and halved in height.
    """
    count, height, width = mask_NHW.shape
    mask = mask_NHW.reshape(count, height * width)
    parents = torch.arange(height * width, device=mask.device).expand(count, -1)
    for _ in range(ROUNDS):
        grand = torch.where(mask, parents.gather(1, parents), -1).float()
        near = F.max_pool2d(grand.reshape(count, 1, height, width), 3, stride=1, padding=1).reshape(mask.shape).long()
        near = torch.where(mask, near, parents)
        parents = torch.maximum(parents.scatter_reduce(1, parents, near, "amax"), near)
        parents = parents.gather(1, parents)
    sizes = torch.zeros_like(grand).scatter_add(1, parents, mask.float()).gather(1, parents)
    sizes = torch.where(mask, sizes, 0)
    first = (sizes == sizes.amax(1, keepdim=True)).float().argmax(1, keepdim=True)
    chosen = (mask & (parents == parents.gather(1, first))).reshape(count, height, width).float()
    x0, x1 = _span(chosen.amax(1))
    y0, y1 = _span(chosen.amax(2))
    return torch.stack([x0, y0, x1, y1], dim=1)


def _span(hit_NL: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place + 1 of the ones in each row; 0 and 0 where there is none."""
    places = torch.arange(hit_NL.shape[1], device=hit_NL.device, dtype=torch.float32)
    some = hit_NL.amax(1)
    end = (hit_NL * (places + 1)).amax(1)
    start = hit_NL.shape[1] - (hit_NL * (hit_NL.shape[1] - places)).amax(1)
    return start * some, end


def percentile(maps_NHW: Tensor, share: float) -> Tensor:
    """The percentile (0..100) of each map, (N, 1, 1): linear between the two nearest values, as ``torch.quantile``."""
    values = maps_NHW.flatten(1).sort(dim=1).values
    last = torch.ones_like(values[:1]).sum(1, keepdim=True) - 1
    place = last * (share / 100)
    low = place.floor()
    below, above = (
        values.gather(1, at.long().expand(values.shape[0], 1)) for at in (low, torch.minimum(low + 1, last))
    )
    return (below + (above - below) * (place - low))[:, :, None]
