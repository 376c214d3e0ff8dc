"""What a network reaches on the validation split, measured outside the trainer's own loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ..maps import select, upsample
from ..metrics import MaxBoxAccuracy
from ..model import CAMNet
from ..modes import evaluating
from ..normalizers import normalize_maps
from .asking import whole_split
from .scores import class_score

__all__ = ["measure", "validation_batches"]


def validation_batches(
    trainer: pl.Trainer, module: pl.LightningModule
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Images, labels and all else of every validation batch, on the module's device; whole in every process."""
    for batch in whole_split(trainer.val_dataloaders):
        known = dict(batch) if isinstance(batch, dict) else {"image": batch[0], "label": batch[1]}
        moved = module.transfer_batch_to_device(known, module.device, 0)
        yield moved.pop("image"), moved.pop("label"), moved


@torch.no_grad()
def measure(network: nn.Module, trainer: pl.Trainer, module: Any) -> dict[str, float]:
    """``val/acc`` (multi-label ``val/map``) and, of a CAMNet where boxes are known, ``val/max_box_acc``.

    The network is left as and where it was.
    """
    home = next(network.parameters()).device
    alone: dict[str, Any] = {"sync_on_compute": False}  # one process may measure: it would wait for the others
    name, score = class_score("multilabel" if module.multilabel else "multiclass", module.num_classes, **alone)
    score, boxes = score.to(module.device), MaxBoxAccuracy(version=1, **alone)
    with evaluating(network.to(module.device)), trainer.precision_plugin.forward_context():
        for images, labels, known in validation_batches(trainer, module):
            logits, maps = network.forward_with_maps(images) if isinstance(network, CAMNet) else (network(images), None)
            score.update(logits, labels)
            if maps is not None and "boxes" in known and not module.multilabel:
                heat = upsample(select(maps, labels).float(), (images.shape[-2], images.shape[-1]))
                boxes.update(normalize_maps(heat, *module.normalizer), known["boxes"])
    network.to(home)
    found = {f"val/{name}": float(score.compute())}
    if boxes.update_called and bool((figures := boxes.compute())["count"] > 0):
        found["val/max_box_acc"] = float(figures["max_box_acc"])
    return found
