"""The object map of a run's end: fitted to the training images, with the boxes that they have."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng

from ..console import shown
from ..conversion import ObjectMapReport, fit_object_map
from ..errors import DataError
from ..model import CAMNet
from ..ranks import Ranks, current
from .loaders import CHUNK, count_samples, single_loader, some_batches, told
from .stages import TrainingStages

__all__ = ["fit_objects"]

_MOST = 2048  # training images of the last fit, evenly spread


def fit_objects(network: CAMNet, trainer: pl.Trainer, module: Any) -> ObjectMapReport | None:
    """Fit the object map of a trained network to the training images, with their boxes or masks where they have some.

    None, and a warning, where it cannot be fitted: it never stops what a run leaves.

    Kept features are taken where the run has them, else at most 2,048 images are run, evenly over a split whose length
    is known. All processes call it, with the same network, and each runs its part.
    """
    ranks = current()
    loader = single_loader(trainer.train_dataloader)
    has_boxes = bool(getattr(getattr(loader, "dataset", None), "has_boxes", False)) or None
    home = network.classifier.weight.device
    data: Any = getattr(trainer, "datamodule", None)
    plainly = data.without_augmentation() if hasattr(data, "without_augmentation") else nullcontext()
    with plainly, isolate_rng():
        try:
            return fit_object_map(
                network.to(module.device), _images(trainer, network, loader, ranks), boxes=has_boxes, ranks=ranks
            )
        except DataError as error:
            rank_zero_warn(shown(f"The export has no object map: {error}"))
            return None
        finally:
            network.to(home)


def _images(trainer: pl.Trainer, network: CAMNet, loader: Any, ranks: Ranks) -> Iterable[Any]:
    stages = next(one for one in trainer.callbacks if isinstance(one, TrainingStages))  # type: ignore[attr-defined]
    kept: Iterable[Any] | None = stages.kept_batches(network, ranks)
    if kept is not None:
        return kept
    images = count_samples(loader)
    total = None if images is None else -(-min(images, _MOST) // (CHUNK * ranks.world_size))
    return told(some_batches(loader, _MOST, ranks), "fitting the object map, batch", total, ranks)
