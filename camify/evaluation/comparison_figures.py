"""What is measured when methods are compared: the same pictures on all networks and methods, column beside column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..drawing.primitives import PANEL
from ..errors import ConversionError
from ..maps import upsample
from ..methods import ForwardPass, check_targets
from ..metrics import functional
from .engine import CENTER_BOX, IOU_50, THRESHOLDS, Rows, baseline_rows, faithfulness_rows, map_rows, stability_rows
from .images import EvaluationImage
from .network import ExplainedNetwork
from .scenarios import ABSENT, MIRRORED, SCENARIOS, SHIFTED, UNCHANGED, VIEWS, mirrored, scenario_of

__all__ = [
    "MEASURES", "TOP_SHARE", "Choose", "Column", "ComparedBatch", "Comparison", "ImageFigures", "LocalizationRow",
    "Mean", "compare_batch", "compared_pairs", "groups", "image_figures", "localization_rows", "mean_agreement",
    "mean_value", "nan_mean",
]  # fmt: skip

TOP_SHARE = 0.2
"""Share of the area that a thresholded map takes."""
MEASURES = ("pearson", "spearman", "top_iou", "box_iou")
"""How alike two heats are."""

Choose = Callable[[ForwardPass, Sequence[EvaluationImage]], tuple[Tensor, Tensor]]
"""The compared and the absent class (N,) of images, from the first network's forward."""


class Column(NamedTuple):
    """A method on a network."""

    model: str
    method: str

    def __str__(self) -> str:
        return f"{self.model}: {self.method}"


@dataclass(frozen=True)
class ComparedBatch:
    """What N pictures gave on M columns of P networks; heats all at the input size of the first network.

    Attributes:
        columns: the M columns.
        size: (H, W), the input size of the first network.
        pictures: N, each in its own shape (3, h, w), uint8.
        targets: (N,) the compared class.
        absent: (N,) a class that is not there.
        logits: (P, N, 2) of both classes.
        probabilities: (P, N, 2).
        heats: by view (M, N, H, W) in [0, 1]; those of the mirrored input as it was seen.
        raw: (M, N, H, W) of the compared class: signed, without ReLU, upsampled.
        evidence: (M, N, H, W) the same after the ReLU where the method has one.
        boxes: by view (M, N, 4) of the maps, cut by the columns' rules, xyxy pixels, exclusive; NaN without one.
        ranges: by view (M, N, 2), the least and largest value of the raw maps.
        masked: (M, N) probability of the compared class where only what the heat shows is left of the picture.
        centered: (P, N) the same with a blob in the middle.
    """

    columns: list[Column]
    size: tuple[int, int]
    pictures: list[Tensor]
    targets: Tensor
    absent: Tensor
    logits: Tensor
    probabilities: Tensor
    heats: dict[str, Tensor]
    raw: Tensor
    evidence: Tensor
    boxes: dict[str, Tensor]
    ranges: dict[str, Tensor]
    masked: Tensor
    centered: Tensor


class _Part(NamedTuple):
    """The maps of one method in one view: raw (N, h, w), heat (N, H, W), boxes (N, 4)."""

    raw: Tensor
    heat: Tensor
    boxes: Tensor


def compare_batch(
    networks: Sequence[ExplainedNetwork], images: Sequence[EvaluationImage], choose: Choose
) -> ComparedBatch:
    """All networks and methods on some pictures: a forward for all methods, and one for every changed input.

    The classes are chosen by the first network. A method that a network cannot serve is noted in its ``unserved`` and
    has no column.

    Raises:
        ConversionError: a network cannot be run, or no method can be served by any.
        DataError: a picture cannot be read, or a map is not finite.
    """
    first = networks[0].preprocessing
    size = (first.height, first.width)
    classes: tuple[Tensor, Tensor] | None = None
    logits, probabilities, centered, masked, columns = [], [], [], list[Tensor](), list[Column]()
    parts: dict[str, list[_Part]] = {view: [] for view in VIEWS}
    for network in networks:
        inputs = torch.stack([image.input(network.preprocessing) for image in images])
        with network.observe(inputs) as forward:
            classes = classes or choose(forward, images)
            targets, absent = (check_targets(chosen, forward.logits) for chosen in classes)
            unchanged = _parts(network, forward, targets, size)
            views = {UNCHANGED: unchanged, ABSENT: _parts(network, forward, absent, size)}
            both_targets = torch.stack([targets, absent], 1)
            logits.append(forward.logits.gather(1, both_targets))
            probabilities.append(forward.probabilities.gather(1, both_targets))
            input_size = (inputs.shape[-2], inputs.shape[-1])
            heats = network.heats({name: part.raw for name, part in unchanged.items()}, input_size)
            masked += [_masked_scores(forward, heat, targets) for heat in heats.values()]
            blob = functional.center_gaussian(*input_size).expand(len(inputs), -1, -1)
            centered.append(_masked_scores(forward, blob, targets))
        for view, change in ((MIRRORED, mirrored), (SHIFTED, functional.shifted)):
            with network.observe(change(inputs)) as forward:
                views[view] = _parts(network, forward, targets, size)
        columns += [Column(network.name, method) for method in unchanged]
        for view, by_method in views.items():
            parts[view] += by_method.values()
    if not columns or classes is None:
        reasons = {reason for network in networks for reason in network.unserved.values()}
        raise ConversionError(f"--method: no network supports one. {' '.join(sorted(reasons))}")
    by_name = {network.name: network for network in networks}
    raw = [part.raw for part in parts[UNCHANGED]]
    return ComparedBatch(
        columns,
        size,
        [image.picture(PANEL, first.bits) for image in images],
        *classes,
        torch.stack(logits),
        torch.stack(probabilities),
        {view: torch.stack([part.heat for part in own]) for view, own in parts.items()},
        torch.stack([upsample(maps, size) for maps in raw]),
        torch.stack([by_name[c.model].evidence(c.method, maps, size) for c, maps in zip(columns, raw, strict=True)]),
        {view: torch.stack([part.boxes for part in own]) for view, own in parts.items()},
        {view: torch.stack([_range(part.raw) for part in own]) for view, own in parts.items()},
        torch.stack(masked),
        torch.stack(centered),
    )


def _parts(network: ExplainedNetwork, forward: ForwardPass, targets: Tensor, size: tuple[int, int]) -> dict[str, _Part]:
    raw = network.raw_maps(forward, targets)
    cut, parts, nothing = (
        network.boxes(forward, raw, targets, size),
        {},
        torch.full((1, 4), torch.nan, dtype=torch.float32),
    )
    for name, heat in network.heats(raw, size).items():
        boxes = torch.cat([own[:1] if len(own) else nothing for own in cut[name]]).double()
        parts[name] = _Part(raw[name].cpu(), heat.cpu(), boxes)
    return parts


def _masked_scores(forward: ForwardPass, heat: Tensor, targets: Tensor) -> Tensor:
    images = functional.masked_images(forward.images, heat)
    return forward.classes.scores(forward.network(images), targets)


def _range(raw: Tensor) -> Tensor:
    """(N, 2): the least and the largest value of maps (N, h, w)."""
    return torch.stack([raw.amin((1, 2)), raw.amax((1, 2))], dim=1)


# ---------------------------------------------------------------- the figures of a picture


@dataclass(frozen=True)
class ImageFigures:
    """The figures of one picture on M columns of P networks.

    Attributes:
        name: of the picture.
        scenario: what is in it.
        target: index of the compared class.
        absent: index of the class that is not there.
        boxes: ground truth (n, 4) xyxy at the size of the heats, or None.
        agreement: by view and measure (M, M); also ``raw``, Pearson's correlation of the raw maps, unchanged view.
        values: by name (M,), of the engine's rows ``pointing_15px``, ``energy``, ``entropy``, ``area``, ``flip``,
            ``shift``, ``drop``, ``increase``, ``complexity``; and ``low``, ``high``, ``absent_low``, ``absent_high``
            (raw range), ``absent_correlation`` (Pearson's, with the heat of the compared class), ``absent_empty``. NaN
            where a map has no heat, or there is no box.
        largest: (M, T), the engine's row of that name; None without boxes.
        logits: (P, 2) of both classes.
        probabilities: (P, 2).
        center: ``drop`` and ``increase`` (P,) of a blob in the middle; ``pointing_15px`` (1,) of the middle; with boxes
            ``largest`` (T,) of the centered boxes.
    """

    name: str
    scenario: str
    target: int
    absent: int
    boxes: Tensor | None
    agreement: dict[str, dict[str, Tensor]]
    values: dict[str, Tensor]
    largest: Tensor | None
    logits: Tensor
    probabilities: Tensor
    center: dict[str, Tensor]


def image_figures(batch: ComparedBatch, images: Sequence[EvaluationImage]) -> list[ImageFigures]:
    """The figures of every picture; an image's boxes are those that count for the compared class."""
    return [_figures(batch, index, image) for index, image in enumerate(images)]


def _figures(batch: ComparedBatch, index: int, image: EvaluationImage) -> ImageFigures:
    heats = {view: maps[:, index] for view, maps in batch.heats.items()}
    height, width = batch.size
    boxes = image.boxes_at(height, width)
    turned = {**heats, MIRRORED: mirrored(heats[MIRRORED])}
    agreement = {view: _agreement(maps, batch.boxes[view][:, index]) for view, maps in turned.items()}
    agreement[UNCHANGED]["raw"] = functional.correlations(batch.raw[:, index])
    heat, absent = heats[UNCHANGED], heats[ABSENT]
    truth = None if boxes is None else [boxes]
    rows = map_rows(heat, batch.evidence[:, index], boxes=None if truth is None else truth * len(heat))
    names = [column.model for column in batch.columns]
    models = list(dict.fromkeys(names))
    scores = batch.probabilities[:, index, 0]
    column_scores = torch.stack([scores[models.index(name)] for name in names])
    rows |= stability_rows(heat, heats[MIRRORED], heats[SHIFTED])
    rows |= faithfulness_rows(column_scores, batch.masked[:, index], heat)
    rows["absent_correlation"] = functional.correlation(heat, absent)
    rows["absent_empty"] = (absent.amax((1, 2)) == 0).double()
    for view, prefix in ((UNCHANGED, ""), (ABSENT, "absent_")):
        for place, name in enumerate(("low", "high")):
            rows[f"{prefix}{name}"] = batch.ranges[view][:, index, place]
    blob = functional.center_gaussian(height, width).expand(len(scores), -1, -1)
    center = faithfulness_rows(scores, batch.centered[:, index], blob)
    nothing = torch.full((len(heat),), torch.nan, dtype=torch.float64)
    fixed: Rows = {} if truth is None else baseline_rows(truth, (height, width), [0], 0, None)[CENTER_BOX]
    return ImageFigures(
        image.name,
        scenario_of(boxes, height, width),
        int(batch.targets[index]),
        int(batch.absent[index]),
        boxes,
        agreement,
        {"pointing_15px": nothing, "energy": nothing} | {name: row for name, row in rows.items() if row.dim() == 1},
        rows.get("largest"),
        batch.logits[:, index],
        batch.probabilities[:, index],
        {
            "drop": center["drop"],
            "increase": center["increase"],
            "pointing_15px": fixed.get("pointing_15px", nothing[:1]),
            **({"largest": fixed["largest"][0]} if fixed else {}),
        },
    )


def _agreement(heats: Tensor, boxes_M4: Tensor) -> dict[str, Tensor]:
    """By measure (M, M)."""
    return {
        "pearson": functional.correlations(heats),
        "spearman": functional.rank_correlations(heats),
        "top_iou": functional.mask_agreement(functional.top_area(heats, TOP_SHARE)),
        "box_iou": functional.box_agreement(boxes_M4),
    }


# ---------------------------------------------------------------- all pictures together


@dataclass(frozen=True)
class LocalizationRow:
    """MaxBoxAcc on a group of pictures.

    Attributes:
        group: all pictures, or a scenario.
        accuracies: by column, 0 to 1.
        thresholds: by column.
        center_accuracy: of the center box.
        count: number of pictures.
    """

    group: str
    accuracies: list[float]
    thresholds: list[float]
    center_accuracy: float
    count: int


def localization_rows(images: Sequence[ImageFigures]) -> list[LocalizationRow]:
    """MaxBoxAcc of every column, over all pictures, then by scenario; empty where no picture has boxes.

    Choe et al. 2020, version 1: the largest component's box, IoU 0.5. The threshold of a column is the one that is best
    over all pictures, in every scenario; so is the size of the center box.
    """
    with_boxes = [
        image for image in images if image.largest is not None and image.boxes is not None and len(image.boxes)
    ]
    if not with_boxes:
        return []
    hits = torch.stack([image.largest for image in with_boxes if image.largest is not None]) >= IOU_50  # (N, M, T)
    center = torch.stack([image.center["largest"] for image in with_boxes]) >= IOU_50  # (N, sizes)
    best, middle = hits.sum(0).argmax(1), int(center.sum(0).argmax())
    at_best = hits.gather(2, best.expand(len(with_boxes), -1)[:, :, None])[:, :, 0].double()
    rows, chosen = [], functional.thresholds(THRESHOLDS)[best].tolist()
    for name in (UNCHANGED, *SCENARIOS):
        in_scenario = torch.tensor([name in (UNCHANGED, image.scenario) for image in with_boxes])
        if bool(in_scenario.any()):
            accuracies = at_best[in_scenario].mean(0).tolist()
            fixed = float(center[in_scenario, middle].double().mean())
            rows.append(LocalizationRow(name, accuracies, chosen, fixed, int(in_scenario.sum())))
    return rows


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        networks: those that were compared.
        columns: methods on networks, in the order of every (M,) and (M, M).
        class_names: in order.
        images: the figures of every picture.
        localization: MaxBoxAcc, over all pictures and by scenario.
        costs: by network, as ``method_costs`` gives them.
    """

    networks: Sequence[ExplainedNetwork]
    columns: Sequence[Column]
    class_names: Sequence[str]
    images: Sequence[ImageFigures]
    localization: Sequence[LocalizationRow]
    costs: dict[str, dict[str, Any]]


def groups(images: Sequence[ImageFigures]) -> dict[str, tuple[str, list[ImageFigures]]]:
    """What the tables are split by: all pictures, own of each scenario, and each change of all; with its view."""
    split = {UNCHANGED: (UNCHANGED, list(images))}
    for scenario in SCENARIOS:
        scenario_images = [image for image in images if image.scenario == scenario]
        if scenario_images:
            split[scenario] = (UNCHANGED, scenario_images)
    return split | {view: (view, list(images)) for view in VIEWS if view != UNCHANGED}


@dataclass(frozen=True)
class Mean:
    """A mean over pictures, place by place, without own where the value is NaN; and how many it is of."""

    mean: Tensor
    count: Tensor


def nan_mean(values: Sequence[Tensor]) -> Mean:
    """Mean of tensors of one shape without their NaN, place by place."""
    stacked = torch.stack([value.double() for value in values])
    return Mean(stacked.nanmean(0), (~stacked.isnan()).sum(0))


def mean_agreement(images: Sequence[ImageFigures], view: str) -> dict[str, Mean]:
    """By measure the mean (M, M) over the pictures in which both maps have heat."""
    names = [*MEASURES, "raw"] if view == UNCHANGED else MEASURES
    return {name: nan_mean([image.agreement[view][name] for image in images]) for name in names}


def mean_value(images: Sequence[ImageFigures], name: str) -> Mean:
    """Mean (M,) of a value over pictures."""
    return nan_mean([image.values[name] for image in images])


def compared_pairs(columns: Sequence[Column]) -> list[tuple[int, int]]:
    """Indices of the columns that tables set side by side: two methods of one network, one method of two."""
    return [
        (i, j)
        for i, first in enumerate(columns)
        for j, second in enumerate(columns)
        if i < j and (first.model == second.model or first.method == second.method)
    ]
