"""How well a network classifies, by task."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAveragePrecision

from ..task import Task

__all__ = ["bounded_score", "class_score", "score_inputs", "score_thresholds"]

_UNKNOWN = -1
_EXACT, _THRESHOLDS = 50_000_000, 1_000


def class_score(task: Task, count: int, **options: Any) -> tuple[str, Metric]:
    """Name and metric: ``acc``, the share of right images, or ``map``, the mean average precision over the labels.

    Args:
        task: what the logits mean.
        count: of classes.
        **options: of the metric. ``thresholds`` of the average precision: None keeps every probability and is exact.
    """
    if task is Task.MULTILABEL:
        options = {"num_labels": count, "average": "macro", "ignore_index": _UNKNOWN, **options}
        return "map", MultilabelAveragePrecision(**options)
    options.pop("thresholds", None)
    if task is Task.BINARY:
        return "acc", BinaryAccuracy(ignore_index=_UNKNOWN, **options)
    return "acc", MulticlassAccuracy(num_classes=count, average="micro", **options)


def score_thresholds(task: Task, count: int, images: int | None) -> int | None:
    """At how many thresholds the average precision is taken: None, exactly, of up to 50 million probabilities.

    Of more, and where the number of images is not known, at 1,000: what is kept no longer grows with the images.

    Args:
        task: what the logits mean.
        count: of classes.
        images: how many are measured; None where that is not known.
    """
    bounded = task is Task.MULTILABEL and (images is None or images * count > _EXACT)
    return _THRESHOLDS if bounded else None


def bounded_score(score: Metric, task: Task, count: int, images: int | None) -> Metric:
    """The metric, or where it would keep the probabilities of millions of images one that does not, which is said."""
    thresholds = score_thresholds(task, count, images)
    if thresholds is None or getattr(score, "thresholds", None) is not None:
        return score
    rank_zero_info(f"The average precision is taken at {thresholds} thresholds, since there are so many images.")
    return class_score(task, count, thresholds=thresholds)[1]


def score_inputs(task: Task, logits_NK: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and labels as ``class_score``'s metric takes them.

    Probabilities, not logits: torchmetrics takes the logits of a batch for probabilities where all lie in [0, 1].

    Args:
        task: what the logits mean.
        logits_NK: the network's own.
        targets: as ``Task.targets`` gives them.
    """
    if task is Task.MULTICLASS:
        return logits_NK, targets.argmax(1) if targets.dim() == 2 else targets
    probabilities = task.probabilities(logits_NK)
    hard = torch.where(targets.isnan(), _UNKNOWN, (targets >= 0.5).long())
    return (probabilities[:, 0], hard[:, 0]) if task is Task.BINARY else (probabilities, hard)
