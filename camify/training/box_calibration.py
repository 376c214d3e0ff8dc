"""The box rule of a trained network, chosen on the validation split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from ..batch import Batch
from ..boxes import BoxRule
from ..conversion import choose_box_rule
from ..conversion.box_rule_choice import MOST_IMAGES
from ..model import CAMNet
from ..ranks import ONE
from .callbacks.measure_baselines import validation_batches
from .loaders import count_samples, single_loader, told

__all__ = ["calibrate_boxes"]


@torch.no_grad()
def calibrate_boxes(network: CAMNet, trainer: pl.Trainer, module: Any) -> BoxRule:
    """The rule with which the maps of the true classes give the best boxes; see ``camify.choose_box_rule``.

    Of several processes the first one alone runs it: it reads at most 512 images, and nobody waits for it.
    """
    home = network.classifier.weight.device
    batches = _examples(trainer, module)
    try:
        clamp = module.options.metrics.clamp_weights
        return choose_box_rule(network.to(module.device), batches, clamp_weights=clamp)
    finally:
        network.to(home)


def _examples(trainer: pl.Trainer, module: Any) -> Iterator[Batch]:
    """Validation images, as many as are needed, evenly over the split: in folders one class follows the other."""
    images, size = count_samples(trainer.val_dataloaders), single_loader(trainer.val_dataloaders).batch_size
    step = max(1, math.ceil((images or 0) / MOST_IMAGES))
    total = math.ceil(math.ceil(images / step) / size) if images and size else None
    batches = validation_batches(trainer, module, every=step)
    for batch, targets in told(batches, "choosing the box rule, batch", total, ONE):
        yield Batch(batch.images, targets, batch.boxes)
