"""From values of images to figures: each with its interval over resampled images, and how many images it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.functional import bootstrap_means, percentiles
from . import engine
from .engine import IOU_50, IOUS, THRESHOLDS, Rows, Statistic

__all__ = [
    "MEAN_ROWS", "Answers", "Figure", "best_cut", "class_figures", "figure", "localization_figures", "mean_figures",
]  # fmt: skip

MEAN_ROWS = {"pointing_15px": "pointing", "energy": "energy", "entropy": "entropy", "area": "area"}
"""Rows that have a mean by class, and the names of the means."""


@dataclass(frozen=True)
class Figure:
    """A figure over images; NaN where it is of none.

    Attributes:
        value: the figure.
        low: lower bound of its 95 % interval (percentile bootstrap over the images).
        high: upper bound.
        count: number of images.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Answers:
    """What the network said of N images.

    Attributes:
        labels: (N,) classes.
        predicted: (N,) its first choices.
        ranks: (N,) the place of the true class, from 0.
        probabilities: (N,) of the true class.
        confidences: (N,) of the predicted class.
        with_boxes: (N,) bool.
        hard: (N, 3) bool, for each of ``IOUS``: no centered box reaches it.
    """

    labels: Tensor
    predicted: Tensor
    ranks: Tensor
    probabilities: Tensor
    confidences: Tensor
    with_boxes: Tensor
    hard: Tensor


def figure(values: Tensor, statistic: Statistic = lambda means: means, seed: int = 0) -> Figure:
    """The figure of values (N, ...), of which rows with NaN are left out.

    Args:
        values: one row per image.
        statistic: from mean rows (B, ...) to figures (B,). What it chooses, such as a threshold, every resample chooses
            anew, so that the interval knows of the choice.
        seed: of the resamples.
    """
    if values.is_floating_point():
        values = values[~values.flatten(1).isnan().any(1)] if values.dim() > 1 else values[~values.isnan()]
    if not len(values):
        return Figure(torch.nan, torch.nan, torch.nan, 0)
    value = float(statistic(values.double().mean(0, keepdim=True))[0])
    return Figure(value, *percentiles(statistic(bootstrap_means(values, seed=seed))), len(values))


def mean_figures(values: Mapping[str, Tensor], seed: int = 0) -> dict[str, Figure]:
    """Figures of means (N,) each."""
    return {name: figure(rows, seed=seed) for name, rows in values.items()}


def localization_figures(values: Rows, center: Rows, ranks: Tensor, kept: Tensor, seed: int = 0) -> dict[str, Figure]:
    """Everything that says whether the object was found, on the images kept (N,) bool.

    ``max_box_acc_v1`` (largest component, IoU 0.5), ``max_box_acc_v2`` (any component, mean over the IoUs) and its
    parts ``v2_0.3`` ..., each at its best threshold on these images; ``over_center_box``, by how much V1 exceeds the
    best centered box on the same resamples; ``gt_known``, ``top1_loc``, ``top5_loc`` at the best threshold, or the
    given one; ``pointing``, ``energy``; of maps ``threshold``, the best one of V1.
    """
    rows = {name: value[kept] for name, value in values.items()}
    center_hits, ranks = center["largest"][kept] >= IOU_50, ranks[kept]
    hits = rows["largest"] >= IOU_50
    every = torch.stack([rows["all"] > index for index in range(len(IOUS))], dim=1)
    hits_at_threshold = rows["given"] >= IOU_50 if "given" in rows else hits
    figures = {
        "max_box_acc_v1": figure(hits, engine.best, seed),
        "max_box_acc_v2": figure(every, engine.mean_of_best, seed),
        **{f"v2_{iou:.1f}": figure(every[:, index], engine.best, seed) for index, iou in enumerate(IOUS.tolist())},
        "over_center_box": figure(
            torch.cat([hits, center_hits], dim=1), lambda means: _gain(means, hits.shape[1]), seed
        ),
        "gt_known": figure(hits_at_threshold, engine.best, seed),
        "top1_loc": figure(engine.hits_where(hits_at_threshold, ranks < 1), engine.second_at_best, seed),
        "top5_loc": figure(engine.hits_where(hits_at_threshold, ranks < 5), engine.second_at_best, seed),
        "pointing": figure(rows["pointing_15px"], seed=seed),
        "energy": figure(rows["energy"], seed=seed),
    }
    if "box_rule" in rows:
        figures["box_rule"] = figure(rows["box_rule"][:, 0] >= IOU_50, seed=seed)
    if hits.shape[1] == THRESHOLDS:
        figures["threshold"] = figure(hits, engine.best_threshold, seed)
    return figures


def best_cut(values: Rows, kept: Tensor) -> int:
    """The threshold, or size of a fixed box, at which V1 is best on the images kept: its number."""
    return int((values["largest"][kept] >= IOU_50).double().mean(0).argmax())


def class_figures(
    rows: Mapping[str, Rows], answers: Answers, classes: Sequence[int]
) -> dict[int, dict[str, dict[str, float | int]]]:
    """By class what each row of values gives, without intervals; boxes at the cut that is best for all images."""
    cuts = {name: best_cut(values, answers.with_boxes) for name, values in rows.items() if "largest" in values}
    figures: dict[int, dict[str, dict[str, float | int]]] = {}
    for number in classes:
        of_class = answers.labels == number
        boxed = of_class & answers.with_boxes
        network = {
            "count": int(of_class.sum()),
            "with_boxes": int(boxed.sum()),
            "hard_share": _mean(answers.hard[boxed, IOU_50 - 1]),
            "top1": _mean(answers.ranks[of_class] < 1),
            "top5": _mean(answers.ranks[of_class] < 5),
        }
        figures[number] = {"network": network}
        for name, values in rows.items():
            parts: dict[str, float | int] = {
                name: _mean(values[key][of_class]) for key, name in MEAN_ROWS.items() if key in values
            }
            if name in cuts:
                parts["max_box_acc_v1"] = _mean(values["largest"][boxed, cuts[name]] >= IOU_50)
            figures[number][name] = parts
    return figures


def _mean(values: Tensor) -> float:
    return float(values.double().nanmean())


def _gain(means: Tensor, split: int) -> Tensor:
    return means[..., :split].amax(-1) - means[..., split:].amax(-1)
