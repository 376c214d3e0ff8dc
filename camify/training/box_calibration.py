"""Normalizer and box threshold of a trained network, chosen on the validation split."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..boxes import BoxRule
from ..eval_mode import eval_mode
from ..maps import upsample
from ..metrics.functional import calibrate, mosaics
from ..model import CAMNet
from .callbacks.measure_baselines import validation_batches
from .loaders import count_samples

__all__ = ["calibrate_boxes"]

_MOST = 512  # images: beyond that the choice no longer moves


@torch.no_grad()
def calibrate_boxes(network: CAMNet, trainer: pl.Trainer, module: Any) -> BoxRule | None:
    """The rule with which most maps of the true classes give the object's box; see ``metrics.functional.calibrate``.

    Where no validation image has a box, cells of 2 x 2 mosaics of four classes stand for boxes (grid pointing, Boehle
    et al. 2021). None where there is neither: fewer than four classes, several labels per image.
    """
    if not module.task.exclusive:
        return None
    images, labels, boxes = _examples(trainer, module)
    source = "boxes"
    if not any(len(image_boxes) for image_boxes in boxes):
        if len(set(labels.tolist())) < 4:
            return None
        images, labels, boxes, source = *_mosaic_cells(images, labels), "mosaics"
    clamp = module.options.metrics.clamp_weights
    size = (images.shape[-2], images.shape[-1])
    plain, maps = BoxRule(clamp_weights=clamp), []
    home = network.classifier.weight.device
    with eval_mode(network.to(module.device)):
        for chunk, classes in zip(torch.split(images, 32), torch.split(labels, 32), strict=True):
            features = network.forward_features(chunk.to(network.classifier.weight))
            weight = network.classes.two_sided(network.classifier.weight, 0)
            image_boxes = plain.maps(features, weight, classes.to(features.device))
            maps.append(upsample(image_boxes.float(), size).cpu())
    network.to(home)
    chosen = calibrate(torch.cat(maps), boxes)
    return BoxRule(
        *chosen.normalizer,
        threshold=chosen.threshold,
        clamp_weights=clamp,
        source=source,
        count=sum(len(image_boxes) > 0 for image_boxes in boxes),
        accuracy=chosen.accuracy,
    )


def _examples(trainer: pl.Trainer, module: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Validation images, as many as are needed, evenly over the split: in folders one class follows the other."""
    step = max(1, math.ceil((count_samples(trainer.val_dataloaders) or 0) / _MOST))
    images: list[Tensor] = []
    labels: list[Tensor] = []
    boxes: list[Tensor] = []
    number = 0
    classes = module.cam_net.classes
    for batch, targets in validation_batches(trainer, module):
        batch_boxes = [torch.zeros(0, 4, dtype=torch.float32)] * len(batch) if batch.boxes is None else batch.boxes
        for image, label, image_boxes in zip(
            batch.images.cpu(), classes.of_targets(targets).cpu(), batch_boxes, strict=True
        ):
            if number % step == 0 and len(images) < _MOST:
                images.append(image)
                labels.append(label)
                boxes.append(image_boxes.cpu())
            number += 1
    return torch.stack(images), torch.stack(labels), boxes


def _mosaic_cells(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Mosaics, once for each of their cells, that cell's class and its box; of the size of one image."""
    tiled, classes = mosaics(images, labels)
    height, width = images.shape[-2:]
    shrunk = torch.nn.functional.interpolate(tiled, size=(height, width), mode="bilinear", antialias=True)
    half_y, half_x = height / 2, width / 2
    cells = torch.tensor(
        [[x, y, x + half_x, y + half_y] for y in (0.0, half_y) for x in (0.0, half_x)], dtype=torch.float32
    )
    return shrunk.repeat_interleave(4, 0), classes.flatten(), [cell[None] for _ in tiled for cell in cells]
