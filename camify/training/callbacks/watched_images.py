"""The images that are watched in every epoch, and how a network looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ...batch import Batch
from ...drawing.own_shape import in_shape
from ...errors import ConfigError, DataError
from ...files import slug
from ...methods import make_methods, observe
from ...metrics.functional import resize_boxes
from ...model import CAMNet
from ...preprocessing import as_three_channels
from ..labels import read_labels
from ..loaders import indexed

__all__ = [
    "Observation",
    "WatchedImages",
    "choose_watched",
    "observe_watched",
    "pictures_of",
    "read_watched",
    "restored_pictures",
    "watched_by_name",
]


_LABELS_READ = 512  # samples whose labels are read where the data set does not list them


class Observation(TypedDict):
    """What a network said of n images, on the CPU; of the predicted (0) and the true class (1).

    Attributes:
        classes: predicted, (n,).
        logits: (n, 2).
        probabilities: (n, 2).
        maps: by method, raw, (n, 2, h, w).
        threshold: of the normalized map, from which on it makes boxes, a number; NaN: ``camify.boxes.DEFAULT_RULE``.
    """

    classes: Tensor
    logits: Tensor
    probabilities: Tensor
    maps: dict[str, Tensor]
    threshold: Tensor


@dataclass
class WatchedImages:
    """The watched images, as pictures and as the network's input."""

    batch: Batch  # its labels are classes (n,)
    pictures: list[Tensor]  # n, each (3, h, w) in [0, 1], in its own shape
    boxes: list[Tensor] | None  # n, each (m, 4) xyxy in pixels of the picture
    names: list[str]
    present: Tensor | None = None  # (n, K) bool of several labels each, else None


def choose_watched(count: int, labels: Sequence[int] | None, total: int, seed: int) -> list[int]:
    """Indices of ``count`` samples, the same for the same seed, as evenly over the classes as can be.

    Without labels the samples are spread evenly over the data set, which in sorted folders comes to the same.
    """
    generator = np.random.default_rng(seed)
    count = min(count, total)
    if labels is None:
        offset = generator.random()
        return [int((index + offset) * total / count) for index in range(count)]
    order = generator.permutation(total)
    turns: dict[int, int] = {}
    keys = []
    for index in order.tolist():  # each class's first sample, then each class's second, ...
        turn = turns[labels[index]] = turns.get(labels[index], -1) + 1
        keys.append((turn, index))
    chosen = [index for _, index in sorted(keys, key=lambda key: key[0])[:count]]
    return sorted(chosen, key=lambda index: (labels[index], index))


def watched_by_name(dataset: Any, names: Sequence[str]) -> list[int]:
    """Indices of the samples whose path, or the end of it, or whose number is named.

    Raises:
        ConfigError: there is no such sample, or several.
    """
    paths = [str(path) for path in getattr(dataset, "paths", None) or map(str, range(len(dataset)))]
    chosen = []
    for name in names:
        places = [index for index, path in enumerate(paths) if path == name or path.endswith(f"/{name}")]
        if len(places) != 1:
            raise ConfigError(
                f"images: {name!r} names {len(places)} validation images. Give more of the path, as in {paths[0]!r}."
            )
        chosen += places
    return chosen


def read_watched(
    trainer: pl.Trainer, network: CAMNet, count: int, seed: int, images: Sequence[str] = ()
) -> WatchedImages:
    """The named validation images, or ``count`` of them by the seed.

    Raises:
        ConfigError: a name is that of no image, or of several.
    """
    loader = indexed(trainer.val_dataloaders)
    dataset = loader.dataset
    indices = watched_by_name(dataset, images) if images else []
    if not indices:
        known = read_labels(loader, _LABELS_READ)
        numbers, labels = known or (list(range(len(dataset))), None)
        single = labels.tolist() if labels is not None and labels.dim() == 1 else None
        indices = [numbers[place] for place in choose_watched(count, single, len(numbers), seed)]
    batch = Batch.of(loader.collate_fn([dataset[index] for index in indices]))
    if batch.labels is None:
        raise DataError("The validation data have no labels: the true class's map cannot be shown.")
    targets = network.task.targets(batch.labels, network.num_classes, allow_unknown=True)
    batch.labels = network.classes.of_targets(targets)
    pictures = pictures_of(batch, network)
    boxes = None
    if batch.boxes is not None:
        height, width = batch.image_size
        shapes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
        boxes = [resize_boxes(own, (height, width), shape) for own, shape in zip(batch.boxes, shapes, strict=True)]
    stems = [str(index) for index in indices] if batch.paths is None else [Path(path).stem for path in batch.paths]
    names = [f"{number:02d}_{slug(stem)}" for number, stem in enumerate(stems)]
    return WatchedImages(batch, pictures, boxes, names, None if network.task.exclusive else targets >= 0.5)


def pictures_of(batch: Batch, network: CAMNet) -> list[Tensor]:
    """The images of a batch as pictures (3, h, w) in [0, 1], each in the shape that it had before it was resized."""
    sizes: Sequence[tuple[int, int] | None] = batch.original_sizes or [None] * len(batch)
    return [
        in_shape(picture, size) for picture, size in zip(restored_pictures(batch.images, network), sizes, strict=True)
    ]


def restored_pictures(images: Tensor, network: CAMNet) -> Tensor:
    """Inputs (N, C, H, W) as pictures (N, 3, H, W) in [0, 1]; of unknown normalization, each by its own extremes."""
    images = images.float()
    if network.preprocessing is not None:
        pictures = network.preprocessing.restore(images)
    else:  # unknown normalization: each image between its own extremes
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        pictures = (images - low) / (high - low).clamp_min(1e-6)
    return as_three_channels(pictures)


def observe_watched(network: CAMNet, methods: Sequence[str], batch: Batch, device: torch.device) -> Observation:
    """What a network says of the watched images; all methods share one forward."""
    chosen = make_methods(network, methods)
    gradients = any(method.uses_gradients for method in chosen.values())
    with observe(network, batch.images.to(next(network.parameters())), gradients=gradients) as forward:
        classes = forward.classes.predicted(forward.logits)
        labels = classes if batch.labels is None else batch.labels.to(device)
        pair = torch.stack([classes, labels], dim=1)
        return {
            "classes": classes.cpu(),
            "logits": forward.logits.gather(1, pair).float().cpu(),
            "probabilities": forward.probabilities.gather(1, pair).float().cpu(),
            "maps": {name: method.raw_maps(forward, pair).float().cpu() for name, method in chosen.items()},
            "threshold": torch.tensor(torch.nan, dtype=torch.float32),
        }
