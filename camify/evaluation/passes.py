"""What is run over the images: every image once, mosaics of them, and a sample with changed images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data import collate
from ..data.labeled_images import LabeledImages
from ..drawing.own_shape import reduced
from ..drawing.primitives import PANEL
from ..errors import ConversionError
from ..eval_mode import eval_mode
from ..image_files import read_image
from ..logits import logits_of
from ..metrics.functional import cell_masks, energy_share, masked_images, resize_boxes, shifted, tiled
from ..progress import tracked
from ..ranks import ONE, Ranks
from . import engine
from .class_figures import ClassAnswers, ExplainedAnswer
from .engine import CENTER_BOX, ClassLogits, Rows
from .network import ExplainedNetwork
from .scenarios import mirrored
from .timing import method_costs

__all__ = [
    "GRID", "Run", "explain_answers", "measure_all", "measure_answers", "measure_cost", "measure_mosaics",
    "measure_sample",
]  # fmt: skip

GRID = 2
_TIMED = 4  # images
_ANSWERS = "answers of the network"  # among the rows of methods


@dataclass(frozen=True)
class Run:
    """How the passes go.

    Attributes:
        images: all that are measured on.
        batch_size: images in one forward.
        workers: processes that decode.
        seed: of all draws.
        threshold: of the maps' boxes; None finds the best.
        ranks: the processes that share the passes; all call them, and the first one gets the rows.
    """

    images: LabeledImages
    batch_size: int
    workers: int
    seed: int
    threshold: float | None
    ranks: Ranks = ONE

    def batches(self, numbers: Sequence[int], size: int, label: str) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of images and what ``collate`` makes of them, ``size`` together, with progress on stderr.

        Of several processes each gets its own batches, which are those of one process.
        """
        numbers = self.ranks.share(numbers, size)
        loader: DataLoader[Any] = DataLoader(
            Subset(self.images, numbers),
            batch_size=size,
            num_workers=min(self.workers, len(numbers) // size),
            collate_fn=collate,
        )
        first = 0
        for batch in tracked(loader, label, len(loader)) if self.ranks.is_first else loader:
            yield numbers[first : first + size], batch
            first += size

    def whole(self, network: ExplainedNetwork, own: dict[str, Rows], count: int, size: int) -> dict[str, Rows]:
        """The rows of all processes by name, in the order of one; in the others than the first there are none.

        Args:
            network: learns which methods other processes found that it cannot serve.
            own: of this process.
            count: of rows.
            size: how many rows a batch has.
        """
        parts = self.ranks.gather((own, network.unserved))
        for _, unserved in parts:
            network.unserved |= {name: reason for name, reason in unserved.items() if name not in network.unserved}
        if len(parts) < 2:
            return own if parts else {}
        numbers = [Ranks(rank, len(parts)).share(range(count), size) for rank in range(len(parts))]
        order = torch.tensor([number for part in numbers for number in part]).argsort()
        filled = [rows for (rows, _), part in zip(parts, numbers, strict=True) if part]
        return {
            name: {key: torch.cat([rows[name][key] for rows in filled])[order] for key in filled[0][name]}
            for name in own
            if all(name in rows for rows in filled)
        }


# ---------------------------------------------------------------- every image


def measure_all(network: ExplainedNetwork, run: Run) -> tuple[Rows, dict[str, Rows]]:
    """One forward of every image: the fields of ``Answers``, and rows by method and baseline for its true class.

    Raises:
        ConversionError: the network cannot be run, or serves none of the methods.
        DataError: a map is not finite.
    """
    columns: dict[str, dict[str, list[Tensor]]] = {}
    batches = run.batches(range(len(run.images)), run.batch_size, "measuring, batch")
    for parts in run.ranks.begin_together(_image_rows(network, run, *batch) for batch in batches):
        _add_all(columns, parts)
    rows = run.whole(network, _joined(columns), len(run.images), run.batch_size)
    return rows.pop(_ANSWERS, {}), rows


def _image_rows(
    network: ExplainedNetwork, run: Run, numbers: Sequence[int], batch: dict[str, Any]
) -> dict[str, Mapping[str, Tensor]]:
    """Of a batch the network's answers, and the rows by method and baseline."""
    labels, boxes = batch["label"], batch.get("boxes")
    with network.observe(batch["image"]) as forward:
        size = (forward.images.shape[-2], forward.images.shape[-1])
        targets = labels.to(forward.images.device)
        raw = network.raw_maps(forward, targets)
        calibrated = {name: raw[name] for name in network.calibrated if name in raw and boxes is not None}
        predicted = network.boxes(forward, calibrated, targets, size)
        logits = forward.logits.cpu()
    if not raw:
        raise ConversionError(f"--method: {' '.join(network.unserved.values())}")
    parts = engine.baseline_rows(boxes, size, numbers, run.seed, run.threshold)
    for name, heat in network.heats(raw, size).items():
        evidence = network.evidence(name, raw[name], size)
        parts[name] = engine.map_rows(
            heat, evidence, boxes=boxes, threshold=run.threshold, predicted=predicted.get(name)
        )
    nothing = torch.zeros(len(labels), 3, dtype=torch.bool)
    box_rows = {
        "with_boxes": nothing[:, 0] if boxes is None else torch.tensor([len(truth) > 0 for truth in boxes]),
        "hard": nothing if boxes is None else engine.hard_images(parts[CENTER_BOX]),
    }
    return {**parts, _ANSWERS: engine.answer_rows(logits, labels, network.classes) | box_rows}


def measure_cost(network: ExplainedNetwork, run: Run) -> dict[str, Any]:
    """What the methods that are served cost on the first images, as ``method_costs`` gives it."""
    batch = collate([run.images[number] for number in range(min(_TIMED, len(run.images)))])
    images = batch["image"].to(next(network.model.parameters()))
    return method_costs(network, images, batch["label"].to(images.device))


def measure_answers(network: ExplainedNetwork, run: Run) -> ClassAnswers | None:
    """What a network says of every image, without maps; None in the processes that are not the first."""
    parts = []
    for _, batch in run.batches(range(len(run.images)), run.batch_size, "measuring the legacy network, batch"):
        images = batch["image"].to(next(network.model.parameters()))
        with torch.no_grad(), eval_mode(network.model):
            logits = logits_of(network.model, images)
        parts.append(ClassAnswers.of(logits, batch["label"], network.classes))
    gathered = run.ranks.gather(ClassAnswers.joined(parts))
    return ClassAnswers.joined(gathered) if gathered else None


def explain_answers(
    network: ExplainedNetwork, run: Run, numbers: Sequence[int], predicted: Tensor
) -> Iterator[ExplainedAnswer]:
    """Some images with the first method's maps of the predicted (N,) and the true class; in one process."""
    images, method = run.images, next(iter(network.served))
    for own, batch in replace(run, ranks=ONE).batches(numbers, run.batch_size, "drawing, batch"):
        pairs = torch.stack([predicted[own], batch["label"]], dim=1)
        with network.observe(batch["image"]) as forward:
            targets = pairs.to(forward.logits.device)
            maps = network.methods[method].raw_maps(forward, targets).float().cpu()
            logits, probabilities = (
                values.gather(1, targets).float().cpu() for values in (forward.logits, forward.probabilities)
            )
        for row, number in enumerate(own):
            file = images.files[number]
            picture = read_image(file, images.bits)
            small = reduced(picture, PANEL)
            shapes = [(one.shape[-2], one.shape[-1]) for one in (picture, small)]
            boxes = None if images.boxes is None else torch.from_numpy(images.boxes[number].copy())
            yield ExplainedAnswer(
                small, Path(str(file)).name, (int(pairs[row, 0]), int(pairs[row, 1])), maps[row], logits[row],
                probabilities[row], None if boxes is None else resize_boxes(boxes, shapes[0], shapes[1]),
            )  # fmt: skip


# ---------------------------------------------------------------- mosaics


def measure_mosaics(network: ExplainedNetwork, run: Run, plan_MC: Tensor) -> dict[str, Rows]:
    """By method ``grid`` (M, 4): of every mosaic and cell the share of the evidence for its class that lies in it.

    Also ``classes`` (M, 4).

    Args:
        network: with its methods.
        run: how the pass goes.
        plan_MC: the images of every mosaic, as ``mosaic_plan`` gives them.

    Raises:
        ConversionError: the network does not take images of twice the size.
    """
    cells = GRID * GRID
    columns: dict[str, dict[str, list[Tensor]]] = {}
    at_once = max(1, run.batch_size // cells)
    refusal = ""
    try:
        for _, batch in run.batches(plan_MC.flatten().tolist(), at_once * cells, "mosaics, batch"):
            images, classes = tiled(batch["image"], GRID), batch["label"].reshape(-1, cells)
            size = (images.shape[-2], images.shape[-1])
            masks = cell_masks(torch.arange(cells).repeat(len(images)), GRID, *size)
            with network.observe(images) as forward:
                raw = network.raw_maps(forward, classes.to(forward.images.device))
            for name, maps in raw.items():
                evidence = network.evidence(name, maps, size).cpu().flatten(0, 1)
                share = energy_share(evidence, masks).reshape(-1, cells)
                _add_all(columns, {name: {"grid": share, "classes": classes}})
    except ConversionError as error:  # in all processes that have a mosaic; the others must not wait for them
        refusal = str(error)
    if any(run.ranks.gather(bool(refusal))):
        raise ConversionError(refusal)
    return run.whole(network, {} if refusal else _joined(columns), len(plan_MC), at_once)


# ---------------------------------------------------------------- a sample, changed


def measure_sample(network: ExplainedNetwork, run: Run, numbers: Sequence[int]) -> dict[str, Rows]:
    """By method, and for maps that know nothing, what needs further forwards; of the network's first choice.

    The rows of ``faithfulness_rows`` and ``curve_rows``; of methods also those of ``stability_rows``. Masked and
    emptied images fade into the mean color, insertion begins blurred.
    """
    columns: dict[str, dict[str, list[Tensor]]] = {}
    batches = run.batches(numbers, run.batch_size, "measuring closely, batch")
    for parts in run.ranks.begin_together(_sample_rows(network, run, *batch) for batch in batches):
        _add_all(columns, parts)
    return run.whole(network, _joined(columns), len(numbers), run.batch_size)


def _sample_rows(
    network: ExplainedNetwork, run: Run, numbers: Sequence[int], batch: dict[str, Any]
) -> dict[str, Mapping[str, Tensor]]:
    with network.observe(batch["image"]) as forward:
        images, targets = forward.images, forward.logits.argmax(1)
        size = (images.shape[-2], images.shape[-1])
        scores = network.classes.scores(forward.logits, targets)
        heats = network.heats(network.raw_maps(forward, targets), size)
        methods = list(heats)
        heats |= {name: maps.to(images) for name, maps in engine.baseline_maps(size, numbers, run.seed).items()}
        logits = ClassLogits(forward)
        curves = {
            name: engine.curve_rows(logits, images, heat, targets, batch_size=run.batch_size)
            for name, heat in heats.items()
        }
    changed = [_heats(network, change(images), targets) for change in (mirrored, shifted)]
    rows: dict[str, Mapping[str, Tensor]] = {}
    for name, heat in heats.items():
        method = name if name in methods else None
        parts = _faithfulness(network, method, images, heat, targets, scores) | curves[name]
        if method is not None:
            parts |= engine.stability_rows(heat, *(maps[name] for maps in changed))
        rows[name] = parts
    return rows


def _faithfulness(
    network: ExplainedNetwork, method: str | None, images: Tensor, heat: Tensor, targets: Tensor, scores: Tensor
) -> Rows:
    """The rows of a heat, with the masked images' own heat where a method made it."""
    with network.observe(masked_images(images, heat)) as forward:
        masked = network.classes.scores(forward.logits, targets)
        if method is None:
            return engine.faithfulness_rows(scores, masked, heat)
        raw = network.methods[method].raw_maps(forward, targets)
    again = network.methods[method].heat(raw, (images.shape[-2], images.shape[-1]))
    return engine.faithfulness_rows(scores, masked, heat, again)


def _heats(network: ExplainedNetwork, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    with network.observe(images) as forward:
        raw = network.raw_maps(forward, targets)
    return network.heats(raw, (images.shape[-2], images.shape[-1]))


def _add_all(columns: dict[str, dict[str, list[Tensor]]], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, values in parts.items():
        for key, value in values.items():
            columns.setdefault(name, {}).setdefault(key, []).append(value.detach().cpu())


def _joined(columns: Mapping[str, Mapping[str, list[Tensor]]]) -> dict[str, Rows]:
    return {name: {key: torch.cat(parts) for key, parts in of_name.items()} for name, of_name in columns.items()}
