"""How well a network classifies, by task."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

__all__ = ["class_score"]


def class_score(task: str, count: int, **options: Any) -> tuple[str, Metric]:
    """Name and metric: ``acc``, the share of right images, or ``map``, the mean average precision over the classes."""
    if task == "multilabel":
        return "map", MultilabelAveragePrecision(num_labels=count, average="macro", **options)
    return "acc", MulticlassAccuracy(num_classes=count, average="micro", **options)
