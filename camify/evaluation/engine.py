"""The one measuring engine: maps of a forward in, a row of figures per image out, from ``metrics.functional`` alone.

Training logs the means of these rows, ``camify.evaluate`` adds intervals and baselines, ``compare`` sets them side by
side. The names of rows carry their definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import ForwardPass
from ..metrics import functional
from ..task import Classes

__all__ = [
    "BASELINES", "CENTRE_BOX", "CENTRE_GAUSSIAN", "IOUS", "IOU_50", "RANDOM_MAP", "STEPS", "THRESHOLDS",
    "WHOLE_IMAGE", "ClassLogits", "Rows", "answer_rows", "baseline_maps", "baseline_rows", "curve_rows",
    "faithfulness_rows", "hard_images", "map_rows", "stability_rows",
]  # fmt: skip

IOUS = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
IOU_50 = 2
"""Level from which on a box has the IoU 0.5: how many of ``IOUS`` it reaches then."""
THRESHOLDS = 100
"""From 0 in steps of 0.01."""
STEPS = 32
"""Of the insertion and deletion curves."""
CENTRE_BOX, CENTRE_GAUSSIAN, WHOLE_IMAGE, RANDOM_MAP = "centre box", "centre Gaussian", "whole image", "random map"
BASELINES = (CENTRE_BOX, CENTRE_GAUSSIAN, WHOLE_IMAGE, RANDOM_MAP)

Rows = dict[str, Tensor]
"""By name one row per image: (N,), or (N, T) at each of T thresholds."""


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
        boxes = [own.cpu() for own in boxes]
        both = _ious(boxes, [partial(_every_and_largest, one) for one in heat], 2 * THRESHOLDS)
        largest = both[:, THRESHOLDS:]
        rows |= {"all": _levels(both[:, :THRESHOLDS]), "largest": _levels(largest), "iou": largest.half()}
        if threshold is not None:
            rows["given"] = _levels(_ious(boxes, [partial(_iou_at, one, threshold) for one in heat], 1))
        if predicted is not None:
            rows["box_rule"] = _levels(_ious(boxes, [partial(_best_iou, own) for own in predicted], 1))
        masks = functional.box_masks(boxes, *heat.shape[1:]) if masks is None else masks
    if masks is not None:
        objects = masks.cpu()
        rows["pointing_15px"] = functional.pointing_hits([functional.peak(one) for one in heat], objects)
        rows["energy"] = torch.where(objects.flatten(1).any(1), functional.energy_share(evidence, objects), torch.nan)
    return rows


def answer_rows(logits: Tensor, labels: Tensor, classes: Classes) -> Rows:
    """What the network says: ``labels``, ``predicted``, ``ranks`` of the labels from 0, their ``probabilities``.

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
    }


def stability_rows(heat: Tensor, heat_of_mirrored: Tensor, heat_of_shifted: Tensor) -> Rows:
    """``flip`` and ``shift`` (N,): Pearson's correlation with the map of the changed image, moved back.

    Args:
        heat: (N, H, W) of images x; raw maps may be given as well.
        heat_of_mirrored: of ``x.flip(-1)``.
        heat_of_shifted: of ``metrics.functional.shifted(x)``.
    """
    return {
        "flip": functional.flip_equivariance(heat, heat_of_mirrored),
        "shift": functional.shift_equivariance(heat, heat_of_shifted, functional.step_of(*heat.shape[1:])),
    }


def faithfulness_rows(
    scores: Tensor, masked_scores: Tensor, heat: Tensor, heat_of_masked: Tensor | None = None
) -> Rows:
    """``drop``, ``increase`` and ``complexity`` (N,); with the masked images' own heat ``coherency`` and ``adcc``.

    Args:
        scores: (N,) probabilities of one class per image.
        masked_scores: (N,) the same where only what the heat shows is left (``metrics.functional.masked_images``).
        heat: (N, H, W) in [0, 1].
        heat_of_masked: (N, H, W) of the masked images; None of a map that knows nothing of the image.
    """
    drop, covered = functional.average_drop(scores, masked_scores), functional.complexity(heat)
    rows = {"drop": drop, "increase": (masked_scores > scores).double(), "complexity": covered}
    if heat_of_masked is not None:
        same = functional.coherency(heat, heat_of_masked)
        rows |= {"coherency": same, "adcc": functional.adcc(drop, same, covered)}
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
    network: nn.Module, images: Tensor, heat: Tensor, targets: Tensor, *, batch_size: int, steps: int = STEPS
) -> Rows:
    """``insertion`` and ``deletion`` (N,): areas under the curves.

    Args:
        network: gives logits of the classes and knows what they mean: a CAMNet, or ``ClassLogits``.
        images: (N, C, H, W), as the network takes them.
        heat: (N, H, W).
        targets: (N,) classes.
        batch_size: images in one forward.
        steps: of the curves, at most one a pixel.
    """
    options: dict[str, Any] = {"steps": min(steps, heat[0].numel()), "batch_size": batch_size}
    area = functional.area_under_curve
    return {
        "insertion": area(functional.insertion_curves(network, images, heat, targets, **options)),
        "deletion": area(functional.deletion_curves(network, images, heat, targets, **options)),
    }


# ---------------------------------------------------------------- what knows nothing of the image


def baseline_maps(size: tuple[int, int], numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
    """By name the maps (N, H, W) that know nothing of the images; the random ones depend on an image's number alone."""
    drawn = [functional.random_maps(1, *size, seed=hash((seed, number)) % 2**63) for number in numbers]
    return {
        CENTRE_GAUSSIAN: functional.centre_gaussian(*size).expand(len(numbers), *size),
        RANDOM_MAP: torch.cat(drawn),
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
    candidates = functional.centre_boxes(*size)
    rows[CENTRE_BOX] = {
        **_fixed(candidates, boxes),
        "pointing_15px": functional.pointing_hits([(size[0] // 2, size[1] // 2)] * len(boxes), masks),
        "energy": nothing,
    }
    rows[WHOLE_IMAGE] = {
        **_fixed(candidates[-1:], boxes),  # the largest
        "pointing_15px": nothing,
        "energy": torch.where(masks.flatten(1).any(1), masks.double().mean((1, 2)), torch.nan),
    }
    return {name: rows[name] for name in BASELINES}


def hard_images(centre: Rows) -> Tensor:
    """Which images no centred box solves at each IoU, (N, 3) bool; also those without boxes."""
    return centre["all"].amax(1, keepdim=True) <= torch.arange(len(IOUS))


# ---------------------------------------------------------------- boxes at every threshold


def _fixed(candidates: Tensor, boxes: Sequence[Tensor]) -> Rows:
    ious = _ious(boxes, [partial(functional.iou_with_best_box, candidates)] * len(boxes), len(candidates))
    return {"all": _levels(ious), "largest": _levels(ious)}


def _every_and_largest(heat: Tensor, truth: Tensor) -> Tensor:
    return torch.cat(functional.best_ious_by_threshold(heat, truth, THRESHOLDS))


def _iou_at(heat: Tensor, threshold: float, truth: Tensor) -> Tensor:
    return torch.tensor([functional.best_iou_at_threshold(heat, truth, threshold, largest=True)], dtype=torch.float64)


def _best_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    return functional.iou_with_best_box(predicted, truth).amax(0, keepdim=True) if len(predicted) else torch.zeros(1)


def _ious(boxes: Sequence[Tensor], measures: Sequence[Callable[[Tensor], Tensor]], count: int) -> Tensor:
    """What each measure gives for the boxes of its image, (N, count) float64; NaN where there are none."""
    rows = torch.full((len(boxes), count), torch.nan, dtype=torch.float64)
    for row, truth, measure in zip(rows, boxes, measures, strict=True):
        if len(truth):
            row[:] = measure(truth)
    return rows


def _levels(ious_NT: Tensor) -> Tensor:
    return (ious_NT[..., None] >= IOUS).sum(-1).to(torch.uint8)
