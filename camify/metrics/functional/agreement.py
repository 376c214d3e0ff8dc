"""How alike are the maps of several methods? Of heats (M, H, W), each map against each."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from .stability import correlations

__all__ = ["average_ranks", "box_agreement", "mask_agreement", "rank_correlations", "top_area"]


def rank_correlations(maps_MHW: Tensor) -> Tensor:
    """Spearman's correlation of every two maps, (M, M) float64: Pearson's of their ranks; NaN where one is constant.

    Example:
        >>> rank_correlations(torch.tensor([[[0.0, 1.0], [2.0, 9.0]], [[3.0, 2.0], [1.0, 0.0]]])).round()
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    return correlations(average_ranks(maps_MHW))


def average_ranks(maps_MHW: Tensor) -> Tensor:
    """Ranks of the pixels within every map, from 1; equal values share the mean of theirs. Same shape, float64.

    Example:
        >>> average_ranks(torch.tensor([[[3.0, 1.0], [1.0, 2.0]]]))  # the two lowest share the ranks 1 and 2
        tensor([[[4.0000, 1.5000],
                 [1.5000, 3.0000]]], dtype=torch.float64)
    """
    ranks = []
    for row in maps_MHW.flatten(1):
        _, place, counts = row.unique(return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum(0) - (counts.double() - 1) / 2)[place])
    return torch.stack(ranks).reshape(maps_MHW.shape)


def top_area(heats_MHW: Tensor, share: float) -> Tensor:
    """The pixels of highest heat that take a share of the area, (M, H, W) bool.

    Pixels as hot as the last one belong too; pixels without heat never do, so a map of little heat marks less.

    Example:
        >>> top_area(torch.tensor([[[1.0, 0.5], [0.2, 0.0]]]), share=0.5).int()
        tensor([[[1, 1],
                 [0, 0]]], dtype=torch.int32)
    """
    flat = heats_MHW.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    least = flat.topk(count, dim=1).values[:, -1:]
    return ((flat >= least) & (flat > 0)).reshape(heats_MHW.shape)


def mask_agreement(masks_MHW: Tensor) -> Tensor:
    """Intersection over union of every two masks, (M, M) float64; NaN where one is empty.

    Example:
        >>> mask_agreement(torch.tensor([[[True, True, False]], [[False, True, True]]]))  # one pixel of three is shared
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]], dtype=torch.float64)
    """
    flat = masks_MHW.flatten(1).double()
    shared, areas = flat @ flat.T, flat.sum(1)
    areas = torch.where(areas > 0, areas, torch.nan)
    return shared / (areas[:, None] + areas - shared)


def box_agreement(boxes_M4: Tensor) -> Tensor:
    """IoU of every two boxes, (M, M); NaN where one is missing.

    Example:
        >>> box_agreement(torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 2.0]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    missing = boxes_M4.isnan().any(1)
    ious = box_iou(boxes_M4.nan_to_num(), boxes_M4.nan_to_num())
    return torch.where(missing[:, None] | missing, torch.nan, ious)
