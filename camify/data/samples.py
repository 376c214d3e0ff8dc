"""Samples and batches: how an image becomes an input, with its boxes and mask moving along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from ..errors import CheckpointError, ConfigError, DataError

__all__ = ["AUGMENTATIONS", "Preprocessing", "collate", "finish", "read_image"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATIONS = ("crop_flip", "flip", "none")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: resized to a square without keeping the aspect, scaled, normalised.

    The whole picture stays in view, as in the protocol of Choe et al. 2020 ("Evaluating Weakly Supervised Object
    Localization Methods Right"), so that boxes anywhere in it can be found.

    Attributes:
        size: side of the input, pixels.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size < 8 or len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ConfigError(
                f"preprocessing: size={self.size}, mean={self.mean}, std={self.std}: size must be at least 8, mean"
                " and std of one length, std positive."
            )

    def evaluation(self) -> v2.Transform:
        """Transform of a sample for validation: no chance in it."""
        return v2.Compose([v2.Resize((self.size, self.size), antialias=True), *self._to_input()])

    def training(self, augment: str) -> v2.Transform:
        """Transform of a sample for training: ``crop_flip`` (resize to 8/7, random crop, mirror), ``flip``, ``none``."""
        if augment not in AUGMENTATIONS:
            raise ConfigError(f"augment={augment!r} is unknown. Choose one of {', '.join(AUGMENTATIONS)}.")
        if augment == "none":
            return self.evaluation()
        flip = v2.RandomHorizontalFlip()
        if augment == "flip":
            return v2.Compose([v2.Resize((self.size, self.size), antialias=True), flip, *self._to_input()])
        large = round(self.size * 8 / 7)  # 256 for 224, as in the protocol
        crop = [v2.Resize((large, large), antialias=True), v2.RandomCrop(self.size), flip]
        return v2.Compose([*crop, *self._to_input()])

    def _to_input(self) -> list[v2.Transform]:
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]

    def read(self, path: str | Path) -> Tensor:
        """One image file as input (3, S, S).

        Raises:
            DataError: the file is missing or not a readable image.
        """
        image: Tensor = self.evaluation()(read_image(path))
        return image.as_subclass(Tensor)

    def restore(self, images: Tensor) -> Tensor:
        """Inputs (..., C, H, W) as pictures in [0, 1] again."""
        shape = (len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).reshape(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).reshape(shape)
        return (images * std + mean).clamp(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; they travel in the checkpoint."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "aspect": "not kept", "range": "0..1"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of a checkpoint.

        Raises:
            CheckpointError: a field is missing.
        """
        try:
            return cls(int(data["size"]), tuple(data["mean"]), tuple(data["std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"preprocessing: a field is missing or wrong ({error}).") from error


def read_image(path: str | Path) -> tv_tensors.Image:
    """An image file as RGB (3, H, W) uint8, turned upright as its EXIF tag says.

    Raises:
        DataError: the file is missing, damaged or not an image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            rgb = upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}).") from error
    return tv_tensors.Image(TF.pil_to_tensor(rgb))


def finish(sample: dict[str, Any]) -> dict[str, Any]:
    """A transformed sample with plain tensors: boxes (n, 4) of at least a pixel, mask (H, W) bool."""
    finished = dict(sample)
    finished["image"] = sample["image"].as_subclass(Tensor)
    if "boxes" in sample:
        boxes = sample["boxes"].as_subclass(Tensor).to(torch.float32).reshape(-1, 4)
        finished["boxes"] = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)]
    if "mask" in sample:
        finished["mask"] = sample["mask"].as_subclass(Tensor).bool()
    return finished


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: images (N, C, H, W), labels (N,), boxes as a list of (n, 4), masks (N, H, W), paths as a list."""
    batch: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
    }
    if any("boxes" in sample for sample in samples):
        batch["boxes"] = [sample.get("boxes", torch.zeros(0, 4)) for sample in samples]
    if all("mask" in sample for sample in samples):
        batch["mask"] = torch.stack([sample["mask"] for sample in samples])
    if all("path" in sample for sample in samples):
        batch["path"] = [sample["path"] for sample in samples]
    return batch
