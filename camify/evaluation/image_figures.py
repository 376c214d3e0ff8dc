"""What is measured on one picture, from the heats of all columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.functional import average_drop
from ..metrics.functional.agreement import (
    average_ranks,
    box_agreement,
    correlations,
    heat_boxes,
    mask_agreement,
    peak_hits,
    top_area,
)
from .images import Subject
from .scenarios import ABSENT, MIRRORED, SHIFTED, UNCHANGED, overlap, scenario_of
from .views import Looks

__all__ = ["BOX_THRESHOLD", "MEASURES", "TOP_SHARE", "Finding", "findings"]

TOP_SHARE = 0.2
"""Share of the area that a thresholded map takes."""
BOX_THRESHOLD = 0.5
"""Heat from which on a pixel belongs to a map's box."""
MEASURES = ("pearson", "spearman", "top_iou", "box_iou")
"""How alike two heats are."""


@dataclass(frozen=True)
class Finding:
    """The figures of one picture on M columns of P networks.

    Attributes:
        name: of the picture.
        scenario: what is in it.
        target: index of the compared class.
        absent: index of the class that is not there.
        boxes: ground truth (n, 4) xyxy at the size of the heats, or None.
        agreement: by view and measure (M, M); also ``raw``, Pearson's correlation of the raw maps, unchanged view.
        values: by name (M,): ``low``, ``high``, ``absent_low``, ``absent_high`` (raw range), ``pointing``, ``drop``,
            ``increase``, ``mean_heat``, ``mirrored``, ``shifted``, ``absent`` (correlation with the unchanged heat),
            ``absent_empty``; NaN where a map has no heat or there is no box.
        logits: (P, 2) of both classes.
        probabilities: (P, 2).
        centre: ``drop`` and ``increase`` (P,) of a blob in the middle, and whether the middle lies in a box.
    """

    name: str
    scenario: str
    target: int
    absent: int
    boxes: Tensor | None
    agreement: dict[str, dict[str, Tensor]]
    values: dict[str, Tensor]
    logits: Tensor
    probabilities: Tensor
    centre: dict[str, Tensor]


def findings(looks: Looks, subjects: list[Subject]) -> list[Finding]:
    """The figures of every picture; a subject's boxes are those that count for the compared class."""
    return [_finding(looks, index, subject) for index, subject in enumerate(subjects)]


def _finding(looks: Looks, index: int, subject: Subject) -> Finding:
    heats = {view: maps[:, index] for view, maps in looks.heats.items()}
    height, width = looks.pictures.shape[-2:]
    boxes = subject.boxes_at(height, width)
    agreement = {view: _agreement(maps) for view, maps in heats.items()}
    agreement[UNCHANGED]["raw"] = correlations(looks.raw[:, index])
    heat, absent = heats[UNCHANGED], heats[ABSENT]
    whole, centred = looks.probabilities[:, index, 0], looks.centred[:, index]
    names = [column.model for column in looks.columns]
    models = list(dict.fromkeys(names))
    own = torch.stack([whole[models.index(name)] for name in names])
    masked = looks.masked[:, index]
    nothing = torch.full((len(heat),), torch.nan, dtype=torch.float64)
    middle = torch.zeros(1, height, width)
    middle[0, height // 2, width // 2] = 1
    return Finding(
        subject.name,
        scenario_of(boxes, height, width),
        int(looks.targets[index]),
        int(looks.absent[index]),
        boxes,
        agreement,
        {
            "low": looks.ranges[UNCHANGED][:, index, 0],
            "high": looks.ranges[UNCHANGED][:, index, 1],
            "absent_low": looks.ranges[ABSENT][:, index, 0],
            "absent_high": looks.ranges[ABSENT][:, index, 1],
            "pointing": nothing if boxes is None else peak_hits(heat, boxes),
            "drop": average_drop(own, masked),
            "increase": (masked > own).double(),
            "mean_heat": heat.mean((1, 2)).double(),
            "mirrored": _pairwise(heat, heats[MIRRORED]),
            "shifted": _pairwise(*overlap(heat, heats[SHIFTED])),
            "absent": _pairwise(heat, absent),
            "absent_empty": (absent.amax((1, 2)) == 0).double(),
        },
        looks.logits[:, index],
        looks.probabilities[:, index],
        {
            "drop": average_drop(whole, centred),
            "increase": (centred > whole).double(),
            "pointing": nothing[:1] if boxes is None else peak_hits(middle, boxes),
        },
    )


def _agreement(heats: Tensor) -> dict[str, Tensor]:
    """By measure (M, M)."""
    return {
        "pearson": correlations(heats),
        "spearman": correlations(average_ranks(heats)),
        "top_iou": mask_agreement(top_area(heats, TOP_SHARE)),
        "box_iou": box_agreement(heat_boxes(heats, BOX_THRESHOLD)),
    }


def _pairwise(heats: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation (M,) of two maps each."""
    pairs = [correlations(torch.stack(pair))[0, 1] for pair in zip(heats, others, strict=True)]
    return torch.stack(pairs)
