"""The figures of all pictures together: means by scenario, localisation, and which columns are set side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import MaxBoxAccuracy
from ..metrics.functional import thresholds
from .image_figures import MEASURES, Finding
from .scenarios import SCENARIOS, UNCHANGED, VIEWS
from .views import Column, Looks

__all__ = [
    "Localisation",
    "LocalisationRow",
    "Mean",
    "compared_pairs",
    "groups",
    "mean_agreement",
    "mean_value",
    "nan_mean",
]


def groups(findings: Sequence[Finding]) -> dict[str, tuple[str, list[Finding]]]:
    """What the tables are split by: all pictures, those of each scenario, and each change of all; with its view."""
    split = {UNCHANGED: (UNCHANGED, list(findings))}
    for scenario in SCENARIOS:
        those = [finding for finding in findings if finding.scenario == scenario]
        if those:
            split[scenario] = (UNCHANGED, those)
    return split | {view: (view, list(findings)) for view in VIEWS if view != UNCHANGED}


@dataclass(frozen=True)
class Mean:
    """A mean over pictures, place by place, without those where the value is NaN; and how many it is of."""

    mean: Tensor
    count: Tensor


def nan_mean(values: Sequence[Tensor]) -> Mean:
    """Mean of tensors of one shape without their NaN, place by place."""
    stacked = torch.stack([value.double() for value in values])
    return Mean(stacked.nanmean(0), (~stacked.isnan()).sum(0))


def mean_agreement(findings: Sequence[Finding], view: str) -> dict[str, Mean]:
    """By measure the mean (M, M) over the pictures in which both maps have heat."""
    names = [*MEASURES, "raw"] if view == UNCHANGED else MEASURES
    return {name: nan_mean([finding.agreement[view][name] for finding in findings]) for name in names}


def mean_value(findings: Sequence[Finding], name: str) -> Mean:
    """Mean (M,) of a value over pictures."""
    return nan_mean([finding.values[name] for finding in findings])


def compared_pairs(columns: Sequence[Column]) -> list[tuple[int, int]]:
    """Indices of the columns that tables set side by side: two methods of one network, one method of two."""
    return [
        (i, j)
        for i, first in enumerate(columns)
        for j, second in enumerate(columns)
        if i < j and (first.model == second.model or first.method == second.method)
    ]


@dataclass(frozen=True)
class LocalisationRow:
    """MaxBoxAcc on a group of pictures.

    Attributes:
        group: all pictures, or a scenario.
        accuracies: by column, 0 to 1.
        thresholds: by column.
        centre_accuracy: of the centre box.
        count: number of pictures.
    """

    group: str
    accuracies: list[float]
    thresholds: list[float]
    centre_accuracy: float
    count: int


class Localisation:
    """MaxBoxAccuracy of every column, over all pictures and by scenario.

    Choe et al. 2020, version 1: the largest component's box, IoU 0.5. The threshold of a column is the one that is best
    over all pictures, in every scenario; so is the size of the centre box.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._metrics = {scenario: [MaxBoxAccuracy(version=1) for _ in columns] for scenario in SCENARIOS}

    def update(self, looks: Looks, findings: Sequence[Finding]) -> None:
        """Add pictures; those without boxes are left out."""
        for index, finding in enumerate(findings):
            if finding.boxes is None or not len(finding.boxes):
                continue
            for metric, heats in zip(self._metrics[finding.scenario], looks.heats[UNCHANGED], strict=True):
                metric.update(heats[index][None], [finding.boxes])

    def compute(self) -> list[LocalisationRow]:
        """Over all pictures, then by scenario; empty where no picture has boxes."""
        hits = {name: torch.stack([m.hits[0] for m in those]) for name, those in self._metrics.items()}  # (M, T)
        centre = {name: those[0].centre_hits[0] for name, those in self._metrics.items()}
        counts = {name: int(those[0].total) for name, those in self._metrics.items()}
        if not sum(counts.values()):
            return []
        hits = {UNCHANGED: torch.stack(list(hits.values())).sum(0), **hits}
        centre = {UNCHANGED: torch.stack(list(centre.values())).sum(0), **centre}
        counts = {UNCHANGED: sum(counts.values()), **counts}
        best, middle = hits[UNCHANGED].argmax(1, keepdim=True), int(centre[UNCHANGED].argmax())
        chosen = thresholds(hits[UNCHANGED].shape[1])[best[:, 0]].tolist()
        return [
            LocalisationRow(
                name,
                (hits[name].gather(1, best)[:, 0] / count).tolist(),
                chosen,
                float(centre[name][middle]) / count,
                count,
            )
            for name, count in counts.items()
            if count
        ]
