"""The one measuring engine: maps of a forward in, a row of figures per image out, from ``metrics.functional`` alone.

Training logs the means of these rows, ``camify.evaluate`` adds intervals and baselines, ``compare`` sets them side by
side. The names of rows carry their definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import ForwardPass
from ..metrics import functional
from ..task import Classes

__all__ = [
    "BASELINES", "CENTER_BOX", "CENTER_GAUSSIAN", "IOUS", "IOU_50", "PIXELS", "PIXEL_BINS", "RANDOM_MAP", "STEPS",
    "THRESHOLDS", "WHOLE_IMAGE", "ClassLogits", "Rows", "Statistic", "answer_rows", "baseline_maps", "baseline_rows",
    "best", "best_threshold", "box_hits", "center_box_hits", "curve_rows",
    "energy_row", "faithfulness_rows", "hard_images", "hits_where", "map_rows", "mean_of_best", "pixel_row",
    "pointing_row", "second_at_best", "stability_rows",
]  # fmt: skip

IOUS = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64, device="cpu")
IOU_50 = 2
"""Level from which on a box has the IoU 0.5: how many of ``IOUS`` it reaches then."""
THRESHOLDS = 100
"""From 0 in steps of 0.01."""
STEPS = 32
"""Of the insertion and deletion curves."""
PIXEL_BINS, PIXELS = 1000, 2.0**24
"""Of ``pixel_row``: thresholds, and how many pixels make up 1."""
CENTER_BOX, CENTER_GAUSSIAN, WHOLE_IMAGE, RANDOM_MAP = "center box", "center Gaussian", "whole image", "random map"
BASELINES = (CENTER_BOX, CENTER_GAUSSIAN, WHOLE_IMAGE, RANDOM_MAP)

Rows = dict[str, Tensor]
"""By name one row per image: (N,), or (N, T) at each of T thresholds."""
Statistic = Callable[[Tensor], Tensor]
"""From mean rows (B, ...) to figures (B,)."""


def map_rows(
    heat: Tensor,
    evidence: Tensor,
    *,
    boxes: Sequence[Tensor] | None = None,
    masks: Tensor | None = None,
    threshold: float | None = None,
    predicted: Sequence[Tensor] | None = None,
) -> Rows:
    """What maps of one class per image give.

    ``entropy`` and ``area`` of every image. With boxes or masks ``pointing_15px`` (see ``pointing_hits``) and
    ``energy`` (see ``energy_share``); NaN for an image without an object. With boxes ``all`` and ``largest`` (N, T)
    uint8: how many of ``IOUS`` the best box, or that of the largest component, reaches at each of ``THRESHOLDS`` (0
    without a box); ``iou`` (N, T) float16, of the largest; ``given`` (N, 1) uint8, of the largest at ``threshold``;
    ``box_rule`` (N, 1) uint8, of the predicted boxes.

    Args:
        heat: (N, H, W) in [0, 1].
        evidence: (N, H, W), the same before it was normalized; what is negative is none.
        boxes: N tensors (n, 4), xyxy pixels of the heat, exclusive, n may be 0; None where the data have no boxes.
        masks: (N, H, W) bool of the objects; None takes the boxes.
        threshold: cut the heat here too.
        predicted: N tensors (n, 4), the boxes that a rule cut.
    """
    heat, evidence = heat.detach().cpu(), evidence.detach().cpu()
    rows = {"entropy": functional.entropy(evidence), "area": functional.area(heat)}
    if boxes is not None:
        every, largest = functional.best_ious_by_threshold(heat, boxes, THRESHOLDS)
        rows |= {"all": _levels(every), "largest": _levels(largest), "iou": largest.half()}
        if threshold is not None:
            cut = partial(functional.best_iou_at_threshold, threshold=threshold, largest=True)
            rows["given"] = _levels(_ious(heat, boxes, cut, 1))
        if predicted is not None:
            rows["box_rule"] = _levels(_ious(predicted, boxes, _best_iou, 1))
        masks = functional.box_masks(boxes, *heat.shape[1:]) if masks is None else masks
    if masks is not None:
        rows |= {"pointing_15px": pointing_row(heat, masks), "energy": energy_row(evidence, masks)}
    return rows


def pointing_row(maps: Tensor | None, masks: Tensor) -> Tensor:
    """``functional.pointing_hits`` (N,) on masks (N, H, W) of the peaks of maps (N, H, W), None: of the middle."""
    middle = (masks.shape[1] // 2, masks.shape[2] // 2)
    points = [middle] * len(masks) if maps is None else [functional.peak(map_HW) for map_HW in maps.detach().cpu()]
    return functional.pointing_hits(points, masks.cpu())


def energy_row(evidence: Tensor | None, masks: Tensor) -> Tensor:
    """``functional.energy_share`` (N,) of maps (N, H, W), None: constant ones, in masks (N, H, W); NaN in empty."""
    evidence = torch.ones(masks.shape, dtype=torch.float32) if evidence is None else evidence
    masks = masks.to(evidence.device)
    return torch.where(masks.flatten(1).any(1), functional.energy_share(evidence, masks), torch.nan)


def pixel_row(heat: Tensor | None, masks: Tensor) -> Tensor:
    """``functional.pixel_histograms`` (N, 2, PIXEL_BINS + 1) of each heat, None: of a blob in the middle, float64.

    In units of ``PIXELS`` pixels; the mean has the average precision of all pixels of all images.
    """
    blob = functional.center_gaussian_bins(*masks.shape[1:], PIXEL_BINS)
    pairs = zip([blob] * len(masks) if heat is None else functional.pixel_bins(heat, PIXEL_BINS), masks, strict=True)
    return torch.stack([functional.count_pixels(bins, mask, None, PIXEL_BINS) for bins, mask in pairs]) / PIXELS


def answer_rows(logits: Tensor, labels: Tensor, classes: Classes) -> Rows:
    """What the network says: ``labels``, ``predicted``, ``ranks`` of the labels from 0, their ``probabilities``.

    Also ``confidences``, the probabilities of the predicted classes.

    Args:
        logits: (N, K) of the classes; of a network of one logit (N, 2).
        labels: (N,).
        classes: what the logits mean.
    """
    return {
        "labels": labels,
        "predicted": logits.argmax(1),
        "ranks": functional.label_ranks(logits, labels),
        "probabilities": classes.scores(logits, labels),
        "confidences": classes.probabilities(classes.two_sided(logits)).amax(1),
    }


def stability_rows(heat: Tensor, heat_of_mirrored: Tensor | None = None, heat_of_shifted: Tensor | None = None) -> Rows:
    """``flip`` and ``shift`` (N,): Pearson's correlation with the map of the changed image, moved back.

    Args:
        heat: (N, H, W) of images x; raw maps may be given as well.
        heat_of_mirrored: of ``x.flip(-1)``; None leaves ``flip`` out.
        heat_of_shifted: of ``metrics.functional.shifted(x)``; None leaves ``shift`` out.
    """
    rows: Rows = {}
    if heat_of_mirrored is not None:
        rows["flip"] = functional.flip_equivariance(heat, heat_of_mirrored)
    if heat_of_shifted is not None:
        rows["shift"] = functional.shift_equivariance(heat, heat_of_shifted, functional.step_of(*heat.shape[1:]))
    return rows


def faithfulness_rows(
    scores: Tensor, masked_scores: Tensor, heat: Tensor | None = None, heat_of_masked: Tensor | None = None
) -> Rows:
    """``drop``, ``increase`` (N,); with the heat ``complexity``; with that of the masked ``coherency``, ``adcc``.

    Args:
        scores: (N,) probabilities of one class per image.
        masked_scores: (N,) the same where only what the heat shows is left (``metrics.functional.masked_images``).
        heat: (N, H, W) in [0, 1].
        heat_of_masked: (N, H, W) of the masked images; None of a map that knows nothing of the image.
    """
    drop = functional.average_drop(scores, masked_scores)
    rows = {"drop": drop, "increase": (masked_scores > scores).double()}
    if heat is not None:
        rows["complexity"] = functional.complexity(heat)
        if heat_of_masked is not None:
            same = functional.coherency(heat, heat_of_masked)
            rows |= {"coherency": same, "adcc": functional.adcc(drop, same, rows["complexity"])}
    return rows


class ClassLogits(nn.Module):
    """A forward's network as a module: logits (N, K) of the classes, without the activation that it may end in.

    To be used in the forward's context.
    """

    def __init__(self, forward: ForwardPass) -> None:
        super().__init__()
        self.network, self.classes = forward.network, forward.classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        return self.network(images)


def curve_rows(
    network: nn.Module, images: Tensor, heat: Tensor, targets: Tensor, *, batch_size: int, steps: int = STEPS,
    curves: Sequence[str] = ("insertion", "deletion"),
) -> Rows:  # fmt: skip
    """``insertion`` and ``deletion`` (N,): areas under the curves.

    Args:
        network: gives logits of the classes and knows what they mean: a CAMNet, or ``ClassLogits``.
        images: (N, C, H, W), as the network takes them.
        heat: (N, H, W).
        targets: (N,) classes.
        batch_size: images in one forward.
        steps: of the curves, at most one a pixel.
        curves: which of the two.
    """
    options: dict[str, Any] = {"steps": min(steps, heat[0].numel()), "batch_size": batch_size}
    makers = {"insertion": functional.insertion_curves, "deletion": functional.deletion_curves}
    area = functional.area_under_curve
    return {name: area(makers[name](network, images, heat, targets, **options)) for name in curves}


# ---------------------------------------------------------------- what knows nothing of the image


def baseline_maps(size: tuple[int, int], numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
    """By name the maps (N, H, W) that know nothing of the images; the random ones depend on an image's number alone."""
    random_maps = [functional.random_maps(1, *size, seed=hash((seed, number)) % 2**63) for number in numbers]
    return {
        CENTER_GAUSSIAN: functional.center_gaussian(*size).expand(len(numbers), *size),
        RANDOM_MAP: torch.cat(random_maps),
    }


def baseline_rows(
    boxes: Sequence[Tensor] | None, size: tuple[int, int], numbers: Sequence[int], seed: int, threshold: float | None
) -> dict[str, Rows]:
    """By name the rows of ``map_rows`` of what knows nothing of the images; of fixed boxes T is the number of sizes."""
    maps = baseline_maps(size, numbers, seed)
    rows = {name: map_rows(heat, heat, boxes=boxes, threshold=threshold) for name, heat in maps.items()}
    if boxes is None:
        return rows
    masks = functional.box_masks(boxes, *size)
    nothing = torch.full((len(boxes),), torch.nan, dtype=torch.float64)
    levels = _levels(_center_ious(boxes, size))
    whole_image = levels[:, -1:]  # the largest
    middle, uniform = pointing_row(None, masks), energy_row(None, masks)
    rows[CENTER_BOX] = {"all": levels, "largest": levels, "pointing_15px": middle, "energy": nothing}
    rows[WHOLE_IMAGE] = {"all": whole_image, "largest": whole_image, "pointing_15px": nothing, "energy": uniform}
    return {name: rows[name] for name in BASELINES}


def hard_images(center: Rows) -> Tensor:
    """Which images no centered box solves at each IoU, (N, 3) bool; also those without boxes."""
    return center["all"].amax(1, keepdim=True) <= torch.arange(len(IOUS))


# ---------------------------------------------------------------- boxes at every threshold


def box_hits(
    heat: Tensor, boxes: Sequence[Tensor], *, largest: bool, ious: Tensor = IOUS, cells: tuple[int, int] | None = None
) -> Tensor:
    """Whether the best box, or that of the largest component, hits: (N, J, T) at each of J IoUs and ``THRESHOLDS``.

    float64, 1 a hit, 0 a miss, NaN where there is no box. Arguments as in ``map_rows``, and as in
    ``functional.box_hits_by_threshold``.
    """
    return functional.box_hits_by_threshold(heat, boxes, ious.tolist(), THRESHOLDS, largest=largest, cells=cells)


def center_box_hits(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The same of the fixed boxes around the center, (N, 3, S) for S sizes."""
    return _hits(_center_ious(boxes, size))


def _center_ious(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    return functional.center_box_ious(boxes, *size)


def _best_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    return (
        functional.iou_with_best_box(predicted, truth).amax(0, keepdim=True)
        if len(predicted)
        else torch.zeros(1, dtype=torch.float32)
    )


def _ious(
    measured: Iterable[Tensor], boxes: Sequence[Tensor], measure: Callable[[Tensor, Tensor], Tensor | float], count: int
) -> Tensor:
    """The measure of each image's item and its boxes, (N, count) float64; NaN where there are none."""
    rows = torch.full((len(boxes), count), torch.nan, dtype=torch.float64)
    for row, item, truth in zip(rows, measured, boxes, strict=True):
        if len(truth):
            row[:] = torch.as_tensor(measure(item, truth))
    return rows


def _levels(ious_NT: Tensor) -> Tensor:
    return (ious_NT[..., None] >= IOUS).sum(-1).to(torch.uint8)


def _hits(ious_NT: Tensor) -> Tensor:
    reached = (ious_NT[:, None] >= IOUS[:, None]).double()
    return torch.where(ious_NT.isnan()[:, None], torch.nan, reached)


# ---------------------------------------------------------------- from mean rows to figures


def best(means: Tensor) -> Tensor:
    """The best of hits (B, T)."""
    return means.amax(-1)


def best_threshold(means: Tensor) -> Tensor:
    """Where hits (B, T) are best: the first of equal thresholds; NaN where they are."""
    at_best = functional.thresholds(means.shape[-1])[means.argmax(-1)]
    return torch.where(means.isnan().any(-1), torch.nan, at_best)


def mean_of_best(means: Tensor) -> Tensor:
    """The mean over the IoUs of hits (B, 3, T), each at its own best threshold."""
    return means.amax(-1).mean(-1)


def hits_where(hits: Tensor, also: Tensor) -> Tensor:
    """Hits (N, 2, T) for ``second_at_best``: as they are (N, T), and where something else (N,) bool holds too."""
    return torch.stack([hits, hits * also[:, None]], dim=1)


def second_at_best(means: Tensor) -> Tensor:
    """The second row of hits (B, 2, T) where the first is best."""
    place = means[:, 0].argmax(-1, keepdim=True)
    return means[:, 1].gather(-1, place)[:, 0]
