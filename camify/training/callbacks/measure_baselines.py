"""What a network reaches on the validation split, measured outside the trainer's own loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ...batch import Batch
from ...eval_mode import eval_mode
from ...former_names import with_current_keys
from ...logits import logits_of
from ..cam_metrics import CAMMetrics, ValidationBatch, logits_and_maps
from ..loaders import count_samples, indexed, is_dry_run, whole_split
from ..scores import class_score, score_inputs, score_thresholds

__all__ = ["MeasureBaselines", "measure", "validation_batches"]


class MeasureBaselines(pl.Callback):
    """Measures on the validation split what a run begins with; all processes take part.

    Attributes:
        legacy: figures of the legacy network, where it has as many classes as the data; measured when training starts,
            before ``TrainingStages``, which belongs to the module and so comes after every other callback, lets it go.
        start: figures of the converted network before its first step; they are logged at step 0.
    """

    def __init__(self) -> None:
        self.legacy: dict[str, float] = {}
        self.start: dict[str, float] = {}

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """What every later figure is compared with."""
        return {"legacy": self.legacy, "start": self.start}

    def state_dict(self) -> dict[str, Any]:
        """The figures, plain values."""
        return self.figures

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the figures of an interrupted run."""
        self.legacy, self.start = (with_current_keys(state_dict[key]) for key in ("legacy", "start"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the legacy network, believed or not: as its classes are counted."""
        if not self.legacy and pl_module.legacy is not None and not is_dry_run(trainer):
            self.legacy = measure(pl_module.legacy, trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the converted network before its first step."""
        if pl_module.cam_net is None or trainer.global_step > 0 or is_dry_run(trainer):
            return
        self.start = measure(pl_module.cam_net, trainer, pl_module)
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
def measure(network: nn.Module, trainer: pl.Trainer, module: Any) -> dict[str, float]:
    """``val/acc`` (multi-label ``val/map``) and, of a CAMNet, the CAM metrics of the run, as an epoch logs them.

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
    mapped: Any = network if network is module.cam_net and task.exclusive else None
    with eval_mode(network.to(module.device)), trainer.precision_plugin.forward_context():
        precision = next(network.parameters()).dtype  # of the legacy network its own, whatever the trainer's
        for given, targets in validation_batches(trainer, module, rank, count):
            batch = given.to(module.device, images=precision)
            if mapped is not None:
                logits, maps = logits_and_maps(mapped, batch.images, clamp_weights=clamp)
                quality.update(ValidationBatch.of(mapped, batch, targets, logits, maps, module.normalizer, clamp))
            else:
                logits = logits_of(network, batch.images, finite=False)
            score.update(*score_inputs(task, logits, targets))
        if mapped is not None:
            figures = quality.compute()
            if quality.chosen or "max_box_acc" not in figures:
                loader = indexed(whole_split(trainer.val_dataloaders))
                labels, read = module.labeled_images(loader)
                figures |= quality.grid_pointing(mapped, labels, read, rank=rank, world_size=count)
    network.to(home)
    return {f"val/{key}": value for key, value in {name: float(score.compute()), **figures}.items()}
