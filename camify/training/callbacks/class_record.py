"""Which class a run's network takes for which: figures of every validation, and the images behind those of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
    MultilabelStatScores,
)

from ...batch import Batch
from ...console import shown
from ...drawing.encoding import encoded
from ...eval_mode import eval_mode
from ...evaluation.class_figures import (
    PER_CELL,
    ClassAnswers,
    ExplainedAnswer,
    calibration,
    choose_examples,
    class_figures_of,
    example_picture,
)
from ...files import write_whole
from ...metrics.functional import calibration_bins, resize_boxes
from ...model import CAMNet
from ...ranks import current
from ...reports.class_page import MISSED, WRONG, class_view
from ...reports.class_pictures import calibration_picture, confusion_picture
from ...task import Classes
from ..labels import has_random_access
from ..loaders import single_loader
from ..scores import score_inputs
from .image_loggers import ImageLog, Offer, offer_confusions
from .watched_images import pictures_of

__all__ = ["ClassRecord", "draw_examples", "log_classes", "sample_numbers"]

PICTURES = 48
"""Images at most that are drawn when a run ends."""
_FOLDER = "classes"  # below ``overlays/``
_TOGETHER = 16  # images in one forward
_KINDS = {MISSED: "missed", WRONG: "wrong"}


class ClassRecord:
    """Collects a run's answers, validation by validation; what is kept does not grow with the images.

    Attributes:
        latest: of the last validation, plain values: ``epoch``, ``figures`` as ``class_figures_of`` makes them, and
            ``examples``, [number of the sample, true class, predicted class] of images to show; None before.
        best: of the best epoch, where that is an earlier one.
    """

    def __init__(self) -> None:
        self.latest: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self._parts: list[ClassAnswers] = []
        self._labels: MetricCollection | None = None
        self._bins = calibration_bins(*_NOTHING)
        self._mistakes = _LabelMistakes()

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"latest": self.latest, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Those of an interrupted run."""
        self.latest, self.best = state.get("latest"), state.get("best")

    def of_epoch(self, epoch: float) -> dict[str, Any] | None:
        """What was kept of an epoch."""
        return next((kept for kept in (self.best, self.latest) if kept is not None and kept["epoch"] == epoch), None)

    def begin(self, module: Any) -> None:
        """A new validation."""
        self._parts, self._bins, self._mistakes = [], calibration_bins(*_NOTHING), _LabelMistakes()
        self._labels = None if module.task.exclusive else _label_scores(module.num_classes).to(module.device)

    def update(self, module: Any, logits: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        if self._labels is not None:
            probabilities, labels = score_inputs(module.task, logits, targets)
            self._labels.update(probabilities, labels)
            known = labels >= 0
            self._bins += calibration_bins(probabilities[known].cpu(), labels[known].cpu() == 1)
            self._mistakes.add(probabilities.detach().float().cpu(), labels.cpu())
        else:
            self._parts.append(ClassAnswers.of(logits.detach(), module.classes.of_targets(targets), module.classes))

    def end(self, trainer: pl.Trainer, module: Any) -> None:
        """All processes together: the figures of the validation, in the first one."""
        names, epoch = module.classes.titles(module.num_classes), trainer.current_epoch
        if self._labels is not None:
            current().add(self._bins)
            figures = _label_figures(self._labels, module.val_accuracy, self._bins, names)
            numbers = sample_numbers(trainer.val_dataloaders, self._mistakes.seen, trainer.global_rank)
            examples = []
            if numbers is not None:
                examples = [[int(numbers[place]), k, kind] for place, k, kind in self._mistakes.chosen(PICTURES)]
            self.latest = {"epoch": epoch, "figures": figures, "examples": examples}
            return
        own = ClassAnswers.joined(self._parts)
        numbers = sample_numbers(trainer.val_dataloaders, len(own), trainer.global_rank)
        parts = current().gather((own, numbers))
        self._parts = []
        if not parts:
            return
        answers, places = _together(parts)
        chosen = choose_examples(answers, PICTURES) if places is not None else []
        rows = zip(chosen, answers.labels[chosen].tolist(), answers.predicted[chosen].tolist(), strict=True)
        self.latest = {
            "epoch": epoch,
            "figures": class_figures_of(answers, names),
            "examples": [] if places is None else [[int(places[row]), true, guess] for row, true, guess in rows],
        }


_NOTHING = (torch.zeros(0, dtype=torch.float32, device="cpu"), torch.zeros(0, dtype=torch.bool, device="cpu"))


def _together(parts: Sequence[tuple[ClassAnswers, Tensor | None]]) -> tuple[ClassAnswers, Tensor | None]:
    """The answers of all processes, each image once: those that were added to make parts equal are left out."""
    answers = ClassAnswers.joined([own for own, _ in parts])
    known = [numbers for _, numbers in parts if numbers is not None]
    if len(known) < len(parts):
        return answers, None
    numbers, order = torch.cat(known).sort(stable=True)
    first = torch.ones(len(numbers), dtype=torch.bool)
    first[1:] = numbers[1:] != numbers[:-1]
    return answers.taken(order[first]), numbers[first]


def sample_numbers(loaders: Any, count: int, rank: int) -> Tensor | None:
    """Which samples of the data set a loader's first ``count`` are; None where that cannot be known.

    Args:
        loaders: of validation.
        count: how many samples this process has seen.
        rank: of this process.
    """
    loader = single_loader(loaders)
    if not has_random_access(loader):
        return None
    sampler = getattr(loader, "sampler", None)
    if type(sampler) is SequentialSampler:
        return torch.arange(count)
    if isinstance(sampler, DistributedSampler) and not sampler.shuffle:
        return torch.arange(rank, rank + count * sampler.num_replicas, sampler.num_replicas) % len(loader.dataset)
    return None


# ---------------------------------------------------------------- labels that do not exclude each other


class _LabelMistakes:
    """The most certain mistakes of every label, as far as this process saw them: some are kept of each."""

    def __init__(self) -> None:
        self.seen = 0
        self._kept: dict[tuple[int, int], list[tuple[float, int]]] = {}  # (certainty, place), by label and kind

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Take the mistakes of a batch (N, K); labels are 1, 0 or -1 (not known)."""
        predicted = probabilities >= _PRESENT
        for kind, wrong in ((MISSED, ~predicted & (labels == 1)), (WRONG, predicted & (labels == 0))):
            certainty = 1 - probabilities if kind == MISSED else probabilities
            for row, k in wrong.nonzero().tolist():
                kept = self._kept.setdefault((k, kind), [])
                kept.append((float(certainty[row, k]), self.seen + row))
                kept.sort(reverse=True)
                del kept[PER_CELL:]
        self.seen += len(labels)

    def chosen(self, most: int) -> list[tuple[int, int, int]]:
        """(place, label, kind) of at most so many, of all labels as evenly as can be."""
        turns = zip_longest(
            *([(place, k, kind) for _, place in kept] for (k, kind), kept in sorted(self._kept.items()))
        )
        return [row for turn in turns for row in turn if row is not None][:most]


_PRESENT = 0.5


def _label_scores(count: int) -> MetricCollection:
    options: dict[str, Any] = {"num_labels": count, "average": None, "ignore_index": -1}
    return MetricCollection(
        {
            "precision": MultilabelPrecision(**options),
            "recall": MultilabelRecall(**options),
            "f1": MultilabelF1Score(**options),
            "counts": MultilabelStatScores(**options),
        }
    )


def _label_figures(scores: MetricCollection, mean: Any, bins: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Figures by label, as plain values; ``mean`` is the metric of the mean average precision, which stays as it is."""
    values = {name: value.cpu() for name, value in scores.compute().items()}
    counts = values["counts"].long().tolist()  # right, wrongly found, not there, missed, there
    average: list[float] = [float("nan")] * len(names)
    if isinstance(mean, MultilabelAveragePrecision):
        single = mean.clone()
        single.average, single._computed = None, None
        average = single.compute().reshape(-1).tolist()
    rows = []
    for k, (right, wrong, _, missed, there) in enumerate(counts):
        rows.append(
            {
                "class": k,
                "images": there,
                "missed": missed,
                "wrong": wrong,
                "precision": float(values["precision"][k]) if right + wrong else None,
                "recall": float(values["recall"][k]) if there else None,
                "f1": float(values["f1"][k]),
                "average_precision": average[k] if there else None,
            }
        )
    return {"names": list(names), "classes": rows, "calibration": calibration(bins)}


# ---------------------------------------------------------------- pictures


def log_classes(trainer: pl.Trainer, kept: Mapping[str, Any], calibrations: Mapping[str, Mapping[str, Any]]) -> None:
    """Offer confusion matrix and calibration curve to the loggers, as pictures and, where they show one, as numbers."""
    view = class_view(kept["figures"], [], "", calibrations)
    log, title = ImageLog(), f"Rows: true class; columns: taken for; epoch {kept['epoch']:g}"
    if view["matrix"] is not None:
        picture = confusion_picture(view["matrix"], title)
        log.offer(trainer.loggers, Offer("classes/confusion_matrix", encoded(picture, "png")), trainer.global_step)
        offer_confusions(trainer.loggers, kept["figures"]["names"], kept["figures"]["pairs"], trainer.global_step)
    if view["calibration"] is not None:
        picture = calibration_picture(view["calibration"])
        log.offer(trainer.loggers, Offer("classes/calibration", encoded(picture, "png")), trainer.global_step)


@torch.no_grad()
def draw_examples(network: CAMNet, kept: Mapping[str, Any], trainer: pl.Trainer, folder: Path) -> list[dict[str, Any]]:
    """Draw the images behind the cells of the confusion matrix, below ``folder``; what the page needs of them.

    Drawing never stops what a run leaves: a failure is said, and what was drawn until then is kept.
    """
    entries: list[dict[str, Any]] = []
    try:
        loader, classes = single_loader(trainer.val_dataloaders), network.classes
        titles, rows = classes.titles(network.num_classes), kept["examples"]
        for first in range(0, len(rows), _TOGETHER):
            part = rows[first : first + _TOGETHER]
            batch = Batch.of(loader.collate_fn([loader.dataset[number] for number, _, _ in part]))
            for answer, (_, true, predicted) in zip(_explained(network, batch, part, classes), part, strict=True):
                pair = (true, predicted)
                number = sum((entry["true"], entry["predicted"]) == pair for entry in entries)
                file = f"{_FOLDER}/{true}_{_KINDS.get(predicted, predicted)}_{number}.png"
                write_whole(
                    folder / file, example_picture(answer, titles, partial(encoded, kind="png"), known=predicted >= 0)
                )
                caption = f"{answer.title}: {titles[answer.classes[0]]}, p {float(answer.probabilities[0]):.2f}"
                entries.append({"true": true, "predicted": predicted, "file": file, "caption": caption})
    except Exception as error:  # noqa: BLE001 - pictures never stop what a run leaves
        rank_zero_warn(shown(f"Images of the confusion matrix are not drawn: {type(error).__name__}: {error}."))
    return entries


def _explained(network: CAMNet, batch: Batch, rows: Sequence[Sequence[int]], classes: Classes) -> list[ExplainedAnswer]:
    # Of a label that was missed or wrongly found its own map is shown.
    pairs = torch.tensor([[true if predicted in (MISSED, WRONG) else predicted, true] for _, true, predicted in rows])
    with eval_mode(network):
        logits, maps = network.forward_with_maps(batch.images.to(next(network.parameters())))
    logits, maps = classes.two_sided(logits).float().cpu(), classes.two_sided(maps).float().cpu()
    probabilities = classes.probabilities(logits)
    pictures, answers = pictures_of(batch, network), []
    for row, ((number, _, _), pair, picture) in enumerate(zip(rows, pairs, pictures, strict=True)):
        boxes = None
        if batch.boxes is not None:
            boxes = resize_boxes(batch.boxes[row], batch.image_size, (picture.shape[-2], picture.shape[-1]))
        title = str(number) if batch.paths is None else Path(batch.paths[row]).name
        chosen = (int(pair[0]), int(pair[1]))
        answers.append(
            ExplainedAnswer(picture, title, chosen, maps[row, pair], logits[row, pair], probabilities[row, pair], boxes)
        )
    return answers
