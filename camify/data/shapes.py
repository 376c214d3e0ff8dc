"""The embedded default data: generated scenes, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..errors import ConfigError
from .counts import require_counts
from .module import PreparedDataModule
from .samples import finish
from .shape_renderer import CLASS_NAMES, SHAPES, render_scene

__all__ = ["ShapesDataModule", "ShapesDataset"]

_SPLITS = ("train", "val", "test")


class ShapesDataset(Dataset[dict[str, Any]]):
    """Scenes of one split with label, exact mask and box; classes take turns.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; the splits share no scene.
        count: number of scenes.
        size: side of the scenes, pixels.
        seed: another seed gives another data set.
        transform: applied to every sample.
    """

    def __init__(self, split: str, count: int, size: int, seed: int, transform: v2.Transform) -> None:
        if split not in _SPLITS or count < 1 or seed < 0:
            raise ConfigError(
                f"shapes: split={split!r}, count={count}, seed={seed}: split must be {', '.join(_SPLITS)};"
                " count at least 1, seed at least 0."
            )
        self.split, self.transform = split, transform
        self.labels = [index % len(CLASS_NAMES) for index in range(count)]
        self.paths = [f"{split}/{CLASS_NAMES[label]}/{index:05d}" for index, label in enumerate(self.labels)]
        number = _SPLITS.index(split)
        scenes = [render_scene(label, (seed, number, index), size) for index, label in enumerate(self.labels)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        self.images = images.permute(0, 3, 1, 2).contiguous()
        self.masks = torch.from_numpy(np.stack([scene.mask for scene in scenes]))
        self.boxes = torch.tensor([scene.box for scene in scenes], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        canvas = (self.images.shape[-2], self.images.shape[-1])
        box = self.boxes[index : index + 1]
        sample = {
            "image": tv_tensors.Image(self.images[index]),
            "label": self.labels[index],
            "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=canvas),
            "mask": tv_tensors.Mask(self.masks[index]),
            "path": self.paths[index],
        }
        return finish(self.transform(sample))


class ShapesDataModule(PreparedDataModule):
    """Generated pictures of six shapes: the embedded default, with exact masks and boxes.

    Objects vary in place, size, turn, color and texture before clutter; only the shape tells the class.

    Args:
        train_count: training scenes.
        val_count: validation scenes.
        test_count: test scenes.
        image_size: side of scenes and input, pixels; None: the network's, else 96.
        batch_size: images per step.
        augment: ``"flip"``, ``"crop_flip"`` or ``"none"``, for training.
        seed: another seed gives another data set.
        override_preprocessing: a size that is given goes before what the network expects; else a contradiction is an
            error.
    """

    def __init__(
        self,
        train_count: int = 2400,
        val_count: int = 480,
        test_count: int = 480,
        image_size: int | None = None,
        batch_size: int = 32,
        augment: str = "flip",
        seed: int = 0,
        override_preprocessing: bool = False,
    ) -> None:
        super().__init__(
            {"size": image_size},
            SHAPES,
            augment=augment,
            batch_size=batch_size,
            override_preprocessing=override_preprocessing,
        )
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        require_counts(least=1, train_count=train_count, val_count=val_count, test_count=test_count)
        require_counts(least=0, seed=seed)
        self.counts, self.seed = {"train": train_count, "val": val_count, "test": test_count}, seed
        self.class_names = list(CLASS_NAMES)
        self.splits: dict[str, ShapesDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Generate the scenes that a stage needs, at the size that the network takes."""
        if self.settle_preprocessing():
            self.splits.clear()
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        if self.preprocessing.height != self.preprocessing.width:
            raise ConfigError(f"shapes: size={self.preprocessing.size}: the scenes are square. Give one side.")
        for split in needed.get(stage or "", _SPLITS):
            if split not in self.splits:
                size, transform = self.preprocessing.height, self.transform_of(split)
                self.splits[split] = ShapesDataset(split, self.counts[split], size, self.seed, transform)
