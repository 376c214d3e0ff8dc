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

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", section 4.1. At a threshold
    tau the boxes of a map are those of the components of ``map >= tau``; an image counts when one of them has the
    IoU with any ground-truth box. Version 1 takes the largest component and IoU 0.5; version 2 all components and
    the mean over IoU 0.3, 0.5 and 0.7, each at its own best threshold. Images without boxes are left out.

    ``compute()`` gives ``max_box_acc`` (0..1), ``best_threshold``, ``centre_box_acc`` (the best fixed box around
    the centre on the same images: what a map must beat), ``count`` (images with boxes) and ``curve`` (len(iou), T).
    With no image all figures are NaN. Needs no list of maps: its states are sums.

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
        self.version, self.count = version, count
        self.register_buffer("iou_thresholds", torch.tensor(ious), persistent=False)
        self.add_state("hits", torch.zeros(len(ious), count), dist_reduce_fx="sum")
        self.add_state("centre_hits", torch.zeros(len(ious), 400), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, maps: Tensor, boxes: Sequence[Tensor]) -> None:
        """Add images.

        Args:
            maps: (N, H, W) in [0, 1], at the size in whose pixels the boxes are given.
            boxes: N tensors (n, 4), xyxy pixels, exclusive; n may be 0.

        Raises:
            DataError: maps and boxes differ in number, or maps hold NaN or values outside [0, 1].
        """
        if maps.dim() != 3 or len(maps) != len(boxes):
            raise DataError(f"MaxBoxAccuracy: maps {tuple(maps.shape)} must be (N, H, W) for {len(boxes)} box lists.")
        if len(maps) and not bool(((maps >= 0) & (maps <= 1)).all()):
            raise DataError("MaxBoxAccuracy: maps must lie in [0, 1], without NaN. Use camify.maps.normalize.")
        wanted = self.iou_thresholds.to("cpu")[:, None]
        centred = centre_boxes(maps.shape[1], maps.shape[2])
        for heat, truth in zip(maps.cpu(), boxes, strict=True):
            if len(truth) == 0:
                continue
            ious = best_iou_by_threshold(heat, truth, self.count, largest=self.version == 1)
            self.hits += (ious >= wanted).to(self.hits)
            self.centre_hits += (iou_with_best_box(centred, truth.cpu()) >= wanted).to(self.centre_hits)
            self.total += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        curve = self.hits / self.total  # 0 / 0 is NaN: no image with boxes, no figure
        mean_curve = curve.mean(dim=0)
        best = thresholds(self.count).to(curve)[mean_curve.argmax()]
        return {
            "max_box_acc": curve.amax(dim=1).mean(),
            "best_threshold": torch.where(self.total > 0, best, torch.nan),
            "centre_box_acc": (self.centre_hits / self.total).amax(dim=1).mean(),
            "count": self.total,
            "curve": curve,
        }
