"""What an evaluation ends in: everything that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .engine import Values
from .intervals import Answers, Figure
from .labelled_images import Labelled
from .network import Contender

__all__ = ["Evaluation", "Figures"]

Figures = dict[str, dict[str, Figure]]
"""By method or baseline, by name of the figure."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes:
        contender: the network with its methods.
        data: the images.
        answers: what the network said of them.
        rows: values of every image, by method and baseline.
        accuracy: ``top1``, ``top5``.
        hard_share: by IoU, of the images with boxes; empty without boxes.
        localisation: on all images with boxes.
        hard: the same on those that no centred box solves at IoU 0.5.
        without_boxes: ``grid``, ``flip``, ``shift``, ``entropy``, ``area``.
        faithfulness: on the sample.
        classes: by number of the class, by method or baseline, without intervals.
        costs: as ``method_costs`` gives them.
        facts: how it was measured, (label, text).
    """

    contender: Contender
    data: Labelled
    answers: Answers
    rows: dict[str, Values]
    accuracy: dict[str, Figure]
    hard_share: dict[str, Figure]
    localisation: Figures
    hard: Figures
    without_boxes: Figures
    faithfulness: Figures
    classes: dict[int, dict[str, dict[str, float | int]]]
    costs: dict[str, Any]
    facts: list[tuple[str, str]]
