"""Does the map find the object? Box accuracy, always beside what a fixed centered box reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import UnitIntervalMetric
from .checks import check_class_scores, check_map_boxes
from .functional import (
    best_iou_at_threshold,
    best_iou_by_threshold,
    center_box_ious,
    center_boxes,
    label_ranks,
    thresholds,
)

__all__ = ["LocalizationAccuracy", "MaxBoxAccuracy"]

_IOU = {1: (0.5,), 2: (0.3, 0.5, 0.7)}
_MOST_THRESHOLDS = 1000


class _BoxHits(UnitIntervalMetric):
    """Hits (rows, T) of maps' boxes at T thresholds, those of fixed boxes around the center, and the images with boxes.

    Whole numbers: they stay exact where a model's precision makes its floats half ones.
    """

    hits: Tensor
    center_hits: Tensor
    total: Tensor

    def __init__(self, rows: int, tried: int, parity: str | None, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        if parity not in (None, "wsolevaluation"):
            raise ConfigError(f'{name}: parity={parity!r} is unknown. Choose None or "wsolevaluation".')
        if not 1 <= count <= _MOST_THRESHOLDS:
            raise ConfigError(f"{name}: count={count} must lie in 1 ... {_MOST_THRESHOLDS}.")
        self.parity, self.count = parity, count
        for state, size in (("hits", tried), ("center_hits", len(center_boxes(1, 1)))):
            self.add_state(state, torch.zeros(rows, size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, hits: Tensor, center_hits: Tensor) -> None:
        self.hits += hits.to(self.hits)
        self.center_hits += center_hits.to(self.center_hits)
        self.total += 1


class MaxBoxAccuracy(_BoxHits):
    """Share of images whose map gives a box that hits the object, at the one best threshold for all images.

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", section 4.1. At a
    threshold tau the boxes of a map are those of the components of ``map >= tau``; an image counts when one
    of them has the IoU with any ground-truth box. Version 1 takes the largest component (its holes count as
    its own) and IoU 0.5; version 2 all components and the mean over IoU 0.3, 0.5 and 0.7, each at its own
    best threshold. Images without boxes are left out. Boxes that reach over the image's edge are used as they are.

    ``compute()`` gives ``max_box_acc`` (0..1), ``best_threshold`` (that of the highest mean over the IoUs,
    the first of equals), ``center_box_acc`` (the best fixed box around the center on the same images: what a
    map must beat), ``whole_image_acc`` (the box of the whole image), ``count`` (images with boxes) and ``curve``
    (len(iou), T). With no image all figures are NaN. Needs no list of maps: its states are counts.

    With ``parity="wsolevaluation"`` the boxes and IoUs are those of the paper's code, bit for bit, so that figures
    can stand beside published ones; `functional.best_iou_by_threshold` lists what that changes. Published figures
    take ``count=1000``, maps resized to 224 x 224 with bicubic interpolation, and `functional.resize_boxes`. On
    189 photographs with MobileNetV2's maps the two modes differ by at most 0.006. The baselines are the clean
    definition's in both.

    Args:
        version: 1 or 2.
        iou_thresholds: instead of the version's.
        parity: None for the clean definition or ``"wsolevaluation"``.
        count: number of thresholds, from 0 in steps of 1 / count; at most 1000.

    Example:
        >>> import torch
        >>> heat = torch.zeros(1, 8, 8)
        >>> heat[0, 2:6, 1:5] = 1
        >>> metric = MaxBoxAccuracy()
        >>> metric.update(heat, [torch.tensor([[1, 2, 5, 6]])])
        >>> metric.compute()["max_box_acc"]
        tensor(1.)
    """

    def __init__(
        self,
        version: int = 2,
        iou_thresholds: Sequence[float] | None = None,
        parity: str | None = None,
        count: int = 100,
        **kwargs: Any,
    ) -> None:
        if version not in _IOU:
            raise ConfigError(f"MaxBoxAccuracy: version={version} is unknown. Choose 1 or 2.")
        ious = _IOU[version] if iou_thresholds is None else tuple(iou_thresholds)
        if not ious or not all(0 < iou <= 1 for iou in ious):
            raise ConfigError(f"MaxBoxAccuracy: iou_thresholds={ious} must lie in (0, 1].")
        super().__init__(len(ious), count, parity, count, **kwargs)
        self.version, self.iou_thresholds = version, ious

    def update(self, maps: Tensor, boxes: Sequence[Tensor]) -> None:
        """Add images.

        Args:
            maps: (N, H, W) in [0, 1], at the size in whose pixels the boxes are given.
            boxes: N tensors (n, 4), xyxy pixels, exclusive; n may be 0.

        Raises:
            DataError: maps and boxes differ in number or have another shape, maps hold NaN or values outside
                [0, 1], or a box is empty, NaN or wholly outside the image.
        """
        truths = [truth.cpu() for truth in boxes]
        check_map_boxes("MaxBoxAccuracy", maps, truths)
        least_ious = torch.tensor(self.iou_thresholds, dtype=torch.float64)[:, None]
        curves = best_iou_by_threshold(maps, truths, self.count, largest=self.version == 1, parity=self.parity)
        for truth, *ious in zip(truths, curves, center_box_ious(truths, *maps.shape[1:]), strict=True):
            if len(truth):
                self._add(*(own >= least_ious for own in ious))

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        curve = self.hits.float() / self.total  # 0 / 0 is NaN: no image with boxes, no figure
        center = self.center_hits.float() / self.total
        best = thresholds(self.count).to(curve)[self.hits.sum(dim=0).argmax()]
        return {
            "max_box_acc": curve.amax(dim=1).mean(),
            "best_threshold": torch.where(self.total > 0, best, torch.nan),
            "center_box_acc": center.amax(dim=1).mean(),
            "whole_image_acc": center[:, -1].mean(),  # the largest of the centered boxes
            "count": self.total,
            "curve": curve,
        }


class LocalizationAccuracy(_BoxHits):
    """Share of images whose map gives the object's box, whatever the network says (GT-known) and where it is right.

    The box at a threshold is that of the largest component of ``map >= threshold``; the map is that of the true
    class. With one box for each class, Top-1 Loc (Zhou et al. 2016, section 3.2; Russakovsky et al. 2015, section
    4.3) is GT-known and the true class first, Top-5 Loc GT-known and the true class among the first five. So Top-1 <=
    Top-5 <= GT-known. A class as high as the true one counts as before it where its number is lower.

    ``compute()`` gives ``gt_known``, ``top1``, ``top5`` (0..1), ``threshold`` (the given one, or the first of those
    with the best GT-known), the three figures of the best fixed box around the center as ``center_gt_known``,
    ``center_top1`` and ``center_top5``, and ``count`` (images with boxes). With no image all figures are NaN.

    Args:
        threshold: cut the maps here, in [0, 1] of the map; Zhou et al. take 0.2. None finds the best for all images.
        iou_threshold: least IoU with any ground-truth box.
        parity: None or ``"wsolevaluation"``, as in `MaxBoxAccuracy`.
        count: number of thresholds to choose from, from 0 in steps of 1 / count; at most 1000.

    Example:
        >>> import torch
        >>> heat = torch.zeros(2, 8, 8)
        >>> heat[:, 2:6, 1:5] = 1
        >>> metric = LocalizationAccuracy(threshold=0.2)
        >>> boxes = [torch.tensor([[1, 2, 5, 6]])] * 2
        >>> metric.update(heat, boxes, scores=torch.tensor([[0.9, 0.1], [0.8, 0.2]]), labels=torch.tensor([0, 1]))
        >>> figures = metric.compute()
        >>> figures["gt_known"], figures["top1"]
        (tensor(1.), tensor(0.5000))
    """

    def __init__(
        self,
        threshold: float | None = None,
        iou_threshold: float = 0.5,
        parity: str | None = None,
        count: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(3, count if threshold is None else 1, parity, count, **kwargs)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"LocalizationAccuracy: threshold={threshold} must lie in [0, 1].")
        if not 0 < iou_threshold <= 1:
            raise ConfigError(f"LocalizationAccuracy: iou_threshold={iou_threshold} must lie in (0, 1].")
        self.threshold, self.iou_threshold = threshold, iou_threshold

    def update(self, maps: Tensor, boxes: Sequence[Tensor], scores: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            maps: (N, H, W) in [0, 1], of the true classes, at the size in whose pixels the boxes are given.
            boxes: N tensors (n, 4), xyxy pixels, exclusive; n may be 0.
            scores: (N, K) logits or probabilities.
            labels: (N,) true classes.

        Raises:
            DataError: numbers or shapes do not fit, maps or scores hold NaN, maps leave [0, 1], a label is out of
                range, or a box is empty, NaN or wholly outside the image.
        """
        truths = [truth.cpu() for truth in boxes]
        check_map_boxes("LocalizationAccuracy", maps, truths)
        check_class_scores("LocalizationAccuracy", scores, labels, len(truths))
        ranks = label_ranks(scores.detach().cpu(), labels.cpu())
        curves = self._ious(maps.detach().cpu(), truths)
        for truth, rank, *ious in zip(
            truths, ranks.tolist(), curves, center_box_ious(truths, *maps.shape[1:]), strict=True
        ):
            if len(truth):
                counts = torch.tensor([[True], [rank < 1], [rank < 5]])
                self._add(*(counts & (own >= self.iou_threshold) for own in ious))

    def _ious(self, maps: Tensor, truths: Sequence[Tensor]) -> Tensor:
        """(N, T)."""
        if self.threshold is None:
            return best_iou_by_threshold(maps, truths, self.count, largest=True, parity=self.parity)
        best_ious = [
            best_iou_at_threshold(heat, truth, self.threshold, largest=True, parity=self.parity) if len(truth) else 0.0
            for heat, truth in zip(maps, truths, strict=True)
        ]
        return torch.tensor(best_ious, dtype=torch.float64)[:, None]

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        best, center = self.hits[0].argmax(), self.center_hits[0].argmax()
        accuracies = self.hits[:, best].float() / self.total
        center_accuracies = self.center_hits[:, center].float() / self.total
        threshold = (
            thresholds(self.count)[best.cpu()]
            if self.threshold is None
            else torch.tensor(self.threshold, dtype=torch.float32)
        )
        names = ("gt_known", "top1", "top5")
        return {
            **dict(zip(names, accuracies, strict=True)),
            "threshold": torch.where(self.total > 0, threshold.to(accuracies), torch.nan),
            **{f"center_{name}": value for name, value in zip(names, center_accuracies, strict=True)},
            "count": self.total,
        }
