"""What is run over the images: every image once, mosaics of them, and a sample looked at closely."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data import collate
from ..data.folder import LabelledImages
from ..errors import ConversionError
from ..maps import upsample
from ..methods import observe
from ..metrics.functional import (
    adcc,
    area_under_curve,
    average_drop,
    cell_masks,
    coherency,
    complexity,
    deletion_curves,
    energy_share,
    flip_equivariance,
    insertion_curves,
    masked_images,
    shift_equivariance,
    shifted,
    step_of,
    tiled,
)
from ..metrics.localization import label_ranks
from .engine import CENTRE_BOX, Values, baseline_maps, baseline_values, hard_images, map_values
from .intervals import Answers
from .network import Contender
from .scenarios import mirrored
from .timing import method_costs
from .views import raw_maps

__all__ = ["GRID", "STEPS", "Run", "close_look", "cost_look", "grid_look", "main_look"]

GRID = 2
STEPS = 32
"""Of the insertion and deletion curves."""
_TIMED = 4  # images


@dataclass(frozen=True)
class Run:
    """How the passes go.

    Attributes:
        images: all that are measured on.
        batch_size: images in one forward.
        workers: processes that decode.
        seed: of all draws.
        threshold: of the maps' boxes; None finds the best.
    """

    images: LabelledImages
    batch_size: int
    workers: int
    seed: int
    threshold: float | None

    def batches(self, numbers: Sequence[int], size: int, label: str) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of images and what ``collate`` makes of them, ``size`` together, under a progress bar."""
        loader: DataLoader[Any] = DataLoader(
            Subset(self.images, numbers),
            batch_size=size,
            num_workers=min(self.workers, len(numbers) // size),
            collate_fn=collate,
        )
        first = 0
        for batch in track(loader, label, total=len(loader), disable=not sys.stderr.isatty()):
            yield list(numbers[first : first + size]), batch
            first += size


# ---------------------------------------------------------------- every image


def main_look(contender: Contender, run: Run) -> tuple[Answers, dict[str, Values]]:
    """One forward of every image: the network's answers, and values by method and baseline for its true class.

    Raises:
        ConversionError: the network cannot be run, or serves none of the methods.
        DataError: a map is not finite.
    """
    answers: dict[str, list[Tensor]] = {}
    rows: dict[str, dict[str, list[Tensor]]] = {}
    for numbers, batch in run.batches(range(len(run.images)), run.batch_size, "looking, batch"):
        images, labels = _on_device(contender, batch["image"]), batch["label"]
        boxes = batch.get("boxes")
        size = (images.shape[-2], images.shape[-1])
        with observe(contender.model, images, gradients=contender.uses_gradients) as forward:
            raw = raw_maps(contender, forward, labels.to(images.device))
            logits = forward.logits.cpu()
        if not raw:
            raise ConversionError(f"--method: {' '.join(contender.unserved.values())}")
        found = baseline_values(boxes, size, numbers, run.seed, run.threshold)
        for name, maps in raw.items():
            heat = contender.methods[name].heat(maps, size).cpu()
            found[name] = map_values(heat, _evidence(contender, name, maps, size), boxes, run.threshold)
        for name, values in found.items():
            _add(rows.setdefault(name, {}), values)
        _add(answers, _answers(logits, labels, boxes, found))
    return Answers(**_joined(answers)), {name: _joined(parts) for name, parts in rows.items()}


def _answers(logits: Tensor, labels: Tensor, boxes: list[Tensor] | None, found: Mapping[str, Values]) -> Values:
    nothing = torch.zeros(len(labels), 3, dtype=torch.bool)
    return {
        "labels": labels,
        "predicted": logits.argmax(1),
        "ranks": label_ranks(logits, labels),
        "probabilities": logits.softmax(1).gather(1, labels[:, None])[:, 0],
        "with_boxes": nothing[:, 0] if boxes is None else torch.tensor([len(truth) > 0 for truth in boxes]),
        "hard": nothing if boxes is None else hard_images(found[CENTRE_BOX]),
    }


def cost_look(contender: Contender, run: Run) -> dict[str, Any]:
    """What the methods that are served cost on the first images, as ``method_costs`` gives it."""
    batch = collate([run.images[number] for number in range(min(_TIMED, len(run.images)))])
    images = _on_device(contender, batch["image"])
    return method_costs(contender, images, batch["label"].to(images.device))


def _evidence(contender: Contender, name: str, raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Raw maps at image size, on the CPU; after the ReLU where the method has one."""
    return upsample(raw.relu() if contender.methods[name].relu else raw, size).cpu()


# ---------------------------------------------------------------- mosaics


def grid_look(contender: Contender, run: Run, plan_MC: Tensor) -> dict[str, Values]:
    """By method ``grid`` (M, 4): of every mosaic and cell the share of the evidence for its class that lies in it.

    Also ``classes`` (M, 4).

    Args:
        contender: the network with its methods.
        run: how the pass goes.
        plan_MC: the images of every mosaic, as ``mosaic_plan`` gives them.

    Raises:
        ConversionError: the network does not take images of twice the size.
    """
    cells = GRID * GRID
    rows: dict[str, dict[str, list[Tensor]]] = {}
    at_once = max(1, run.batch_size // cells)
    for _, batch in run.batches(plan_MC.flatten().tolist(), at_once * cells, "mosaics, batch"):
        images, classes = tiled(_on_device(contender, batch["image"]), GRID), batch["label"].reshape(-1, cells)
        size = (images.shape[-2], images.shape[-1])
        masks = cell_masks(torch.arange(cells).repeat(len(images)), GRID, *size)
        with observe(contender.model, images, gradients=contender.uses_gradients) as forward:
            raw = raw_maps(contender, forward, classes.to(images.device))
        for name, maps in raw.items():
            share = energy_share(_evidence(contender, name, maps, size).flatten(0, 1), masks).reshape(-1, cells)
            _add(rows.setdefault(name, {}), {"grid": share, "classes": classes})
    return {name: _joined(parts) for name, parts in rows.items()}


# ---------------------------------------------------------------- a closer look


def close_look(contender: Contender, run: Run, numbers: Sequence[int]) -> dict[str, Values]:
    """By method, and for maps that know nothing, what needs further forwards; of the network's first choice.

    ``drop``, ``increase``, ``coherency``, ``complexity``, ``adcc``, ``insertion``, ``deletion``; of methods also
    ``flip`` and ``shift``; (N,) each. Masked and emptied images fade into the mean colour, insertion begins blurred.
    """
    rows: dict[str, dict[str, list[Tensor]]] = {}
    for those, batch in run.batches(numbers, run.batch_size, "looking closely, batch"):
        images = _on_device(contender, batch["image"])
        size = (images.shape[-2], images.shape[-1])
        with observe(contender.model, images, gradients=contender.uses_gradients) as forward:
            targets = forward.logits.argmax(1)
            scores = _score(forward.logits, targets)
            raw = raw_maps(contender, forward, targets)
        heats = {name: contender.methods[name].heat(maps, size) for name, maps in raw.items()}
        flipped, moved = (_heats(contender, change(images), targets) for change in (mirrored, shifted))
        heats |= {name: maps.to(images) for name, maps in baseline_maps(size, those, run.seed).items()}
        for name, heat in heats.items():
            found = _faithfulness(contender, name, images, heat, targets, scores, run.batch_size)
            if name in raw:
                found["flip"] = flip_equivariance(heat, flipped[name])
                found["shift"] = shift_equivariance(heat, moved[name], step_of(*size))
            _add(rows.setdefault(name, {}), found)
    return {name: _joined(parts) for name, parts in rows.items()}


def _faithfulness(
    contender: Contender, name: str, images: Tensor, heat: Tensor, targets: Tensor, scores: Tensor, batch_size: int
) -> Values:
    size = (images.shape[-2], images.shape[-1])
    method = contender.methods.get(name)
    with observe(
        contender.model, masked_images(images, heat), gradients=method is not None and method.uses_gradients
    ) as forward:
        masked = _score(forward.logits, targets)
        again = None if method is None else method.heat(method.look(forward, targets), size)
    drop, covered = average_drop(scores, masked), complexity(heat)
    found = {"drop": drop, "increase": (masked > scores).double(), "complexity": covered}
    if again is not None:  # a map that knows nothing of the image does not change with it
        same = coherency(heat, again)
        found |= {"coherency": same, "adcc": adcc(drop, same, covered)}
    options: dict[str, Any] = {"steps": min(STEPS, heat[0].numel()), "batch_size": batch_size}
    found["insertion"] = area_under_curve(insertion_curves(contender.model, images, heat, targets, **options))
    found["deletion"] = area_under_curve(deletion_curves(contender.model, images, heat, targets, **options))
    return found


def _heats(contender: Contender, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    size = (images.shape[-2], images.shape[-1])
    with observe(contender.model, images, gradients=contender.uses_gradients) as forward:
        raw = raw_maps(contender, forward, targets)
    return {name: contender.methods[name].heat(maps, size) for name, maps in raw.items()}


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


def _on_device(contender: Contender, images: Tensor) -> Tensor:
    return images.to(next(contender.model.parameters()))


def _add(columns: dict[str, list[Tensor]], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        columns.setdefault(name, []).append(value.detach().cpu())


def _joined(columns: Mapping[str, list[Tensor]]) -> Values:
    return {name: torch.cat(parts) for name, parts in columns.items()}
