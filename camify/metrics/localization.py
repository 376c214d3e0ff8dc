"""Does the map find the object? Box accuracy, always beside what a fixed centred box reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..errors import ConfigError, DataError
from .functional import best_iou_by_threshold, centre_boxes, iou_with_best_box, thresholds

__all__ = ["MaxBoxAccuracy"]

_IOU = {1: (0.5,), 2: (0.3, 0.5, 0.7)}


class MaxBoxAccuracy(Metric):
    """Share of images whose map gives a box that hits the object, at the one best threshold for all images.

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", section 4.1. At a
    threshold tau the boxes of a map are those of the components of ``map >= tau``; an image counts when one
    of them has the IoU with any ground-truth box. Version 1 takes the largest component (its holes count as
    its own) and IoU 0.5; version 2 all components and the mean over IoU 0.3, 0.5 and 0.7, each at its own
    best threshold. Images without boxes are left out.

    ``compute()`` gives ``max_box_acc`` (0..1), ``best_threshold`` (that of the highest mean over the IoUs,
    the first of equals), ``centre_box_acc`` (the best fixed box around the centre on the same images: what a
    map must beat), ``count`` (images with boxes) and ``curve`` (len(iou), T). With no image all figures are
    NaN. Needs no list of maps: its states are counts.

    Args:
        version: 1 or 2.
        iou_thresholds: instead of the version's.
        parity: not available yet.
        count: number of thresholds, from 0 in steps of 1 / count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    centre_hits: Tensor
    total: Tensor

    def __init__(
        self,
        version: int = 2,
        iou_thresholds: Sequence[float] | None = None,
        parity: str | None = None,
        count: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if version not in _IOU:
            raise ConfigError(f"MaxBoxAccuracy: version={version} is unknown. Choose 1 or 2.")
        if parity is not None:
            raise ConfigError(f"MaxBoxAccuracy: parity={parity!r} is not available in this version. Leave it None.")
        ious = _IOU[version] if iou_thresholds is None else tuple(iou_thresholds)
        if not ious or not all(0 < iou <= 1 for iou in ious) or not 1 <= count <= 255:
            raise ConfigError(f"MaxBoxAccuracy: iou_thresholds={ious} must lie in (0, 1], count={count} in 1..255.")
        self.version, self.iou_thresholds, self.count = version, ious, count
        # Whole numbers: they stay exact where a model's precision makes its floats half ones.
        candidates = len(centre_boxes(1, 1))
        self.add_state("hits", torch.zeros(len(ious), count, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("centre_hits", torch.zeros(len(ious), candidates, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, maps: Tensor, boxes: Sequence[Tensor]) -> None:
        """Add images.

        Args:
            maps: (N, H, W) in [0, 1], at the size in whose pixels the boxes are given.
            boxes: N tensors (n, 4), xyxy pixels, exclusive; n may be 0.

        Raises:
            DataError: maps and boxes differ in number or have another shape, maps hold NaN or values outside
                [0, 1], or a box is empty or NaN.
        """
        truths = [truth.cpu() for truth in boxes]
        _check(maps, truths)
        wanted = torch.tensor(self.iou_thresholds, dtype=torch.float64)[:, None]
        centred = centre_boxes(maps.shape[1], maps.shape[2])
        for heat, truth in zip(maps.cpu(), truths, strict=True):
            if len(truth) == 0:
                continue
            ious = best_iou_by_threshold(heat, truth, self.count, largest=self.version == 1)
            self.hits += (ious >= wanted).to(self.hits)
            self.centre_hits += (iou_with_best_box(centred, truth) >= wanted).to(self.centre_hits)
            self.total += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        curve = self.hits / self.total  # 0 / 0 is NaN: no image with boxes, no figure
        best = thresholds(self.count).to(curve)[self.hits.sum(dim=0).argmax()]
        return {
            "max_box_acc": curve.amax(dim=1).mean(),
            "best_threshold": torch.where(self.total > 0, best, torch.nan),
            "centre_box_acc": (self.centre_hits / self.total).amax(dim=1).mean(),
            "count": self.total,
            "curve": curve,
        }


def _check(maps: Tensor, truths: Sequence[Tensor]) -> None:
    if maps.dim() != 3 or 0 in maps.shape[1:] or len(maps) != len(truths):
        raise DataError(f"MaxBoxAccuracy: maps {tuple(maps.shape)} must be (N, H, W) for {len(truths)} box lists.")
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise DataError("MaxBoxAccuracy: maps must lie in [0, 1], without NaN. Use camify.maps.normalize.")
    for index, truth in enumerate(truths):
        if len(truth) == 0:
            continue
        if truth.dim() != 2 or truth.shape[1] != 4:
            raise DataError(f"MaxBoxAccuracy: boxes of image {index} are {tuple(truth.shape)}, not (n, 4).")
        if not bool((truth[:, 2:] > truth[:, :2]).all()):
            raise DataError(f"MaxBoxAccuracy: boxes of image {index} need x0 < x1 and y0 < y1: {truth.tolist()}")
