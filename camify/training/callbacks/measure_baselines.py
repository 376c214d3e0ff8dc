"""What a network reaches on the validation split, measured outside the trainer's own loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ...batch import Batch
from ...eval_mode import eval_mode
from ...evaluation.class_figures import ClassAnswers, calibration
from ...former_names import with_current_keys
from ...logits import logits_of
from ...metrics.functional import calibration_bins
from ...ranks import current
from ..cam_metrics import CAMMetrics, ValidationBatch, logits_and_maps
from ..loaders import count_batches, count_samples, indexed, is_dry_run, told, whole_split
from ..scores import class_score, score_inputs, score_thresholds

__all__ = ["MeasureBaselines", "measure", "validation_batches"]


class MeasureBaselines(pl.Callback):
    """Measures on the validation split what a run begins with; all processes take part.

    Args:
        quiet: say nothing of how far it is.

    Attributes:
        legacy: figures of the legacy network, where it has as many classes as the data; measured when training starts,
            before ``TrainingStages``, which belongs to the module and so comes after every other callback, lets it go.
        start: figures of the converted network before its first step; they are logged at step 0.
        calibrations: of both, as ``class_figures.calibration`` gives them.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.legacy: dict[str, float] = {}
        self.start: dict[str, float] = {}
        self.calibrations: dict[str, dict[str, Any]] = {}

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """What every later figure is compared with."""
        return {"legacy": self.legacy, "start": self.start}

    def state_dict(self) -> dict[str, Any]:
        """The figures, plain values."""
        return {**self.figures, "calibrations": self.calibrations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the figures of an interrupted run."""
        self.legacy, self.start = (with_current_keys(state_dict[key]) for key in ("legacy", "start"))
        self.calibrations = dict(state_dict.get("calibrations", {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the legacy network, believed or not: as its classes are counted."""
        if not self.legacy and pl_module.legacy is not None and not is_dry_run(trainer):
            label = "" if self.quiet else "measuring the legacy network, batch"
            self.legacy, bins = measure(pl_module.legacy, trainer, pl_module, label)
            self.calibrations["legacy"] = calibration(bins)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the converted network before its first step."""
        if pl_module.cam_net is None or trainer.global_step > 0 or is_dry_run(trainer):
            return
        label = "" if self.quiet else "measuring the converted network, batch"
        self.start, bins = measure(pl_module.cam_net, trainer, pl_module, label)
        self.calibrations["start"] = calibration(bins)
        before = {f"{who}/{key}": value for who, row in self.figures.items() for key, value in row.items()}
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(before, step=0)


def validation_batches(
    trainer: pl.Trainer, module: Any, rank: int = 0, world_size: int = 1, *, every: int = 1
) -> Iterator[tuple[Batch, Tensor]]:
    """The validation batches and their targets on the module's device; see ``whole_split``."""
    for given in whole_split(trainer.val_dataloaders, rank, world_size, every=every):
        batch = Batch.of(given).to(module.device)
        yield batch, module.targets(batch)


@torch.no_grad()
def measure(network: nn.Module, trainer: pl.Trainer, module: Any, label: str = "") -> tuple[dict[str, float], Tensor]:
    """``val/acc`` (multi-label ``val/map``) and, of a CAMNet, the CAM metrics of the run, as an epoch logs them.

    The second are the rows of ``calibration_bins``. With a label it is said how far a long pass is.

    The network is left as and where it was. All processes call it: each measures its part, none waits for long.
    """
    rank, count = trainer.global_rank, trainer.world_size
    home = next(network.parameters()).device
    task = module.task
    thresholds = score_thresholds(task, module.num_classes, count_samples(trainer.val_dataloaders))
    name, score = class_score(task, module.num_classes, sync_on_compute=count > 1, thresholds=thresholds)
    score, figures = score.to(module.device), dict[str, float]()
    options = module.options.metrics
    clamp = options.clamp_weights
    quality = CAMMetrics(options.cam_metrics, options.grid_mosaics, alone=count == 1)
    quality.to(module.device)
    bins = calibration_bins(torch.zeros(0, dtype=torch.float32), torch.zeros(0, dtype=torch.bool))
    mapped: Any = network if network is module.cam_net and task.exclusive else None
    with eval_mode(network.to(module.device)), trainer.precision_plugin.forward_context():
        precision = next(network.parameters()).dtype  # of the legacy network its own, whatever the trainer's
        total = count_batches(trainer.val_dataloaders) if label else None
        batches = validation_batches(trainer, module, rank, count)
        for given, targets in told(batches, label, total, current()):
            batch = given.to(module.device, images=precision)
            if mapped is not None:
                logits, maps = logits_and_maps(mapped, batch.images, clamp_weights=clamp)
                quality.update(ValidationBatch.of(mapped, batch, targets, logits, maps, module.normalizer, clamp))
            else:
                logits = logits_of(network, batch.images, finite=False)
            score.update(*score_inputs(task, logits, targets))
            bins += _bins_of(module, logits, targets)
        if mapped is not None:
            figures = quality.compute()
            if quality.chosen or "max_box_acc" not in figures:
                loader = indexed(whole_split(trainer.val_dataloaders))
                labels, read = module.labeled_images(loader)
                figures |= quality.grid_pointing(mapped, labels, read, rank=rank, world_size=count)
    network.to(home)
    current().add(bins)
    return {f"val/{key}": value for key, value in {name: float(score.compute()), **figures}.items()}, bins


def _bins_of(module: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """A batch's rows of ``calibration_bins``: of first choices, or of all labels that do not exclude each other."""
    if not module.task.exclusive:
        probabilities, labels = score_inputs(module.task, logits, targets)
        known = labels >= 0
        return calibration_bins(probabilities[known].cpu(), labels[known].cpu() == 1)
    return ClassAnswers.of(logits, module.classes.of_targets(targets), module.classes).bins
