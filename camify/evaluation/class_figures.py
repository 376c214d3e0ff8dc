"""What a network takes for what: figures of its answers by class, and the images behind them with their maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..drawing.overlay import ClassMap, overlay_picture
from ..metrics.functional import calibration_bins, confused_pairs, expected_calibration_error
from ..task import Classes

__all__ = [
    "PER_CELL",
    "ClassAnswers",
    "ExplainedAnswer",
    "calibration",
    "choose_examples",
    "class_figures_of",
    "example_picture",
]

PER_CELL = 6
"""Images at most behind a cell of the confusion matrix."""


@dataclass(frozen=True)
class ClassAnswers:
    """What a network said of N images, on the CPU.

    Attributes:
        labels: (N,) classes.
        predicted: (N,) its first choices.
        confidences: (N,) their probabilities.
    """

    labels: Tensor
    predicted: Tensor
    confidences: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, classes: Classes) -> ClassAnswers:
        """Of logits (N, K) of classes that exclude each other; of one logit (N, 1) or (N, 2)."""
        logits = classes.two_sided(logits)
        confidences, predicted = classes.probabilities(logits).max(1)
        return cls(labels.cpu().int(), predicted.cpu().int(), confidences.detach().float().cpu())

    @classmethod
    def joined(cls, parts: Sequence[ClassAnswers]) -> ClassAnswers:
        """Several batches as one."""
        if not parts:
            nothing = torch.zeros(0, dtype=torch.int32)
            return cls(nothing, nothing, torch.zeros(0, dtype=torch.float32))
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, numbers: Tensor) -> ClassAnswers:
        """Those of some images."""
        return ClassAnswers(self.labels[numbers], self.predicted[numbers], self.confidences[numbers])

    @property
    def right(self) -> Tensor:
        """(N,) bool."""
        return self.labels == self.predicted

    @property
    def bins(self) -> Tensor:
        """The rows of ``calibration_bins``."""
        return calibration_bins(self.confidences, self.right)


def calibration(bins: Tensor) -> dict[str, Any]:
    """``error``, the expected calibration error, and ``bins``, the rows of ``calibration_bins``; plain values."""
    return {"error": expected_calibration_error(bins), "bins": bins.tolist()}


def class_figures_of(answers: ClassAnswers, names: Sequence[str]) -> dict[str, Any]:
    """Figures by class, as plain values: what ``reports.class_page`` shows.

    ``names`` of all classes; ``pairs`` as ``confused_pairs``; ``classes``, of each one that there is or that was
    predicted: ``class``, ``images``, ``precision``, ``recall``, ``f1`` (torchmetrics; None where it is of nothing);
    ``calibration`` of the first choices.
    """
    labels, predicted, count = answers.labels.long(), answers.predicted.long(), len(names)
    pairs = confused_pairs(labels, predicted)
    present = sorted(set(pairs[:, :2].flatten().tolist()))
    options: dict[str, Any] = {"num_classes": max(2, count), "average": None}
    from torchmetrics.functional.classification import (  # slow to import, and not needed to explain
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    scores = (multiclass_precision, multiclass_recall, multiclass_f1_score)
    precision, recall, f1 = (score(predicted, labels, **options).tolist() for score in scores)
    images, chosen = (values.bincount(minlength=count).tolist() for values in (labels, predicted))
    rows = [
        {
            "class": k,
            "images": images[k],
            "precision": precision[k] if chosen[k] else None,
            "recall": recall[k] if images[k] else None,
            "f1": f1[k],
        }
        for k in present
    ]
    return {
        "names": list(names),
        "pairs": pairs.tolist(),
        "classes": rows,
        "calibration": calibration(answers.bins),
    }


def choose_examples(answers: ClassAnswers, most: int, per_cell: int = PER_CELL) -> list[int]:
    """Numbers of images to show, from every cell of the confusion matrix as evenly as can be.

    First those of mistakes, the most certain first in each cell, the most frequent confusions first; what is left of
    ``most`` goes to right answers, of each class those of least confidence.
    """
    chosen: list[int] = []
    for is_right in (False, True):
        numbers = (answers.right == is_right).nonzero().flatten()
        order = numbers[answers.confidences[numbers].argsort(descending=not is_right, stable=True)]
        cells: dict[tuple[int, int], list[int]] = {}
        pairs = zip(answers.labels[order].tolist(), answers.predicted[order].tolist(), strict=True)
        for pair, number in zip(pairs, order.tolist(), strict=True):
            cells.setdefault(pair, []).append(number)
        by_count = sorted(cells.values(), key=len, reverse=True)
        turns = zip_longest(*(cell[:per_cell] for cell in by_count))
        chosen += [number for turn in turns for number in turn if number is not None][: most - len(chosen)]
    return chosen


class ExplainedAnswer(NamedTuple):
    """One image with the maps of its predicted (0) and its true class (1).

    Attributes:
        picture: (3, h, w), uint8 or in [0, 1], in its own shape.
        title: of the image.
        classes: predicted and true.
        maps: their raw maps, (2, h, w).
        logits: theirs, (2,).
        probabilities: theirs, (2,).
        boxes: ground truth (n, 4) in pixels of the picture, or None.
    """

    picture: Tensor
    title: str
    classes: tuple[int, int]
    maps: Tensor
    logits: Tensor
    probabilities: Tensor
    boxes: Tensor | None = None


def example_picture(
    answer: ExplainedAnswer, names: Sequence[str], encode: Callable[[Any], bytes], *, known: bool = True
) -> bytes:
    """The image, the map of the predicted class and that of the true class, on one scale; or the first alone."""
    predicted, true = (
        ClassMap(names[k], map_hw, float(logit), float(probability))
        for k, map_hw, logit, probability in zip(
            answer.classes, answer.maps, answer.logits, answer.probabilities, strict=True
        )
    )
    scale = max(0.0, float(answer.maps.max()))
    drawn = overlay_picture(
        answer.picture, true if known else None, predicted, scale=scale, boxes=answer.boxes, title=answer.title
    )
    return encode(drawn)
