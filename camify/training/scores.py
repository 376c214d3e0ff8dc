"""How well a network classifies, by task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAveragePrecision

from ..task import Task

__all__ = ["class_score", "score_inputs"]

_UNKNOWN = -1


def class_score(task: Task, count: int, **options: Any) -> tuple[str, Metric]:
    """Name and metric: ``acc``, the share of right images, or ``map``, the mean average precision over the labels."""
    if task is Task.MULTILABEL:
        options = {"num_labels": count, "average": "macro", "ignore_index": _UNKNOWN, **options}
        return "map", MultilabelAveragePrecision(**options)
    if task is Task.BINARY:
        return "acc", BinaryAccuracy(ignore_index=_UNKNOWN, **options)
    return "acc", MulticlassAccuracy(num_classes=count, average="micro", **options)


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
