"""The figures of all pictures together: means by scenario, localisation, and which columns are set side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..metrics import MaxBoxAccuracy
from .findings import MEASURES, Finding
from .looking import Column, Looks
from .scenarios import SCENARIOS, UNCHANGED, VIEWS

__all__ = ["Localisation", "compared_pairs", "groups", "mean_agreement", "mean_value", "nan_mean"]


def groups(findings: Sequence[Finding]) -> dict[str, tuple[str, list[Finding]]]:
    """What the tables are split by: all pictures, those of each scenario, and each change of all; with its view."""
    split = {UNCHANGED: (UNCHANGED, list(findings))}
    for scenario in SCENARIOS:
        those = [finding for finding in findings if finding.scenario == scenario]
        if those:
            split[scenario] = (UNCHANGED, those)
    return split | {view: (view, list(findings)) for view in VIEWS if view != UNCHANGED}


def nan_mean(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of tensors of one shape without their NaN, and how many were counted, place by place."""
    stacked = torch.stack([value.double() for value in values])
    return stacked.nanmean(0), (~stacked.isnan()).sum(0)


def mean_agreement(findings: Sequence[Finding], view: str) -> dict[str, tuple[Tensor, Tensor]]:
    """By measure the mean (M, M) and the number of pictures (M, M) in which both maps have heat."""
    names = [*MEASURES, "raw"] if view == UNCHANGED else MEASURES
    return {name: nan_mean([finding.agreement[view][name] for finding in findings]) for name in names}


def mean_value(findings: Sequence[Finding], name: str) -> tuple[Tensor, Tensor]:
    """Mean (M,) of a value over pictures, and their number (M,)."""
    return nan_mean([finding.values[name] for finding in findings])


def compared_pairs(columns: Sequence[Column]) -> list[tuple[int, int]]:
    """Indices of the columns that tables set side by side: two methods of one network, one method of two."""
    return [
        (i, j)
        for i, first in enumerate(columns)
        for j, second in enumerate(columns)
        if i < j and (first.model == second.model or first.method == second.method)
    ]


class Localisation:
    """MaxBoxAccuracy of every column, over all pictures and by scenario.

    Choe et al. 2020, version 1: the largest component's box, IoU 0.5. The threshold of a column is the one that is best
    over all pictures, in every scenario; so is the size of the centre box.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._metrics = {scenario: [MaxBoxAccuracy(version=1) for _ in columns] for scenario in SCENARIOS}
        self._overall = [MaxBoxAccuracy(version=1) for _ in columns]

    def update(self, looks: Looks, findings: Sequence[Finding]) -> None:
        """Add pictures; those without boxes are left out."""
        for index, finding in enumerate(findings):
            if finding.boxes is None or not len(finding.boxes):
                continue
            for column, heats in enumerate(looks.heats[UNCHANGED]):
                heat, boxes = heats[index][None], [finding.boxes]
                self._metrics[finding.scenario][column].update(heat, boxes)

    def compute(self) -> Iterator[tuple[str, list[float], list[float], float, int]]:
        """Scenario, accuracy and threshold of every column, accuracy of the centre box, and number of pictures."""
        for column, overall in enumerate(self._overall):
            overall.reset()
            for metrics in self._metrics.values():
                if int(metrics[column].total):
                    overall.hits += metrics[column].hits
                    overall.centre_hits += metrics[column].centre_hits
                    overall.total += metrics[column].total
        results = [overall.compute() for overall in self._overall]
        chosen = [float(result["best_threshold"]) for result in results]
        if not int(results[0]["count"]):
            return
        centre = int(self._overall[0].centre_hits[0].argmax())
        yield (
            UNCHANGED,
            [float(result["max_box_acc"]) for result in results],
            chosen,
            float(results[0]["centre_box_acc"]),
            int(results[0]["count"]),
        )
        for scenario, metrics in self._metrics.items():
            count = int(metrics[0].total)
            if count:
                places = [0 if math.isnan(value) else round(value * metrics[0].count) for value in chosen]
                hits = [
                    float(metric.hits[0, place]) / count for metric, place in zip(metrics, places, strict=True)
                ]
                yield scenario, hits, chosen, float(metrics[0].centre_hits[0, centre]) / count, count
