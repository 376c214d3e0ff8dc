"""Samples and batches: how an image becomes an input, with its boxes and mask moving along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from ..errors import CheckpointError, ConfigError, DataError

__all__ = ["AUGMENTATIONS", "Preprocessing", "collate", "finish", "read_image", "upright_rgb"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATIONS = ("crop_flip", "flip", "none")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: resized to a square without keeping the aspect, scaled, normalised.

    The whole picture stays in view, as in the protocol of Choe et al. 2020 ("Evaluating Weakly Supervised
    Object Localization Methods Right"), so that boxes anywhere in it can be found.

    Attributes:
        size: side of the input, pixels.
        mean: per channel, of values in [0, 1]; of one channel where the network takes grayscale.
        std: likewise.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if self.size < 8 or len(self.mean) != len(self.std) or not finite or min(self.std, default=0) <= 0:
            raise ConfigError(
                f"preprocessing: size={self.size}, mean={self.mean}, std={self.std}: size must be at least 8,"
                " mean and std finite and of one length, std positive."
            )

    def evaluation(self) -> v2.Transform:
        """Transform of a sample for validation: no chance in it."""
        return v2.Compose([v2.Resize((self.size, self.size), antialias=True), *self._to_input()])

    def training(self, augment: str) -> v2.Transform:
        """Transform of a sample for training.

        Args:
            augment: ``"crop_flip"`` (resize to 8/7, random crop, mirror), ``"flip"`` or ``"none"``.
        """
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
        gray = [v2.Grayscale()] if len(self.mean) == 1 else []
        return [*gray, v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]

    def read(self, path: str | Path) -> Tensor:
        """One image file as input (3, S, S), or (1, S, S) of a network for grayscale.

        Raises:
            DataError: the file is missing or not a readable image.
        """
        image: Tensor = self.evaluation()(read_image(path))
        return image.as_subclass(Tensor)

    def restore(self, images: Tensor) -> Tensor:
        """Inputs (..., C, H, W) as pictures (..., 3, H, W) in [0, 1] again."""
        shape = (len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).reshape(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).reshape(shape)
        pictures = (images * std + mean).clamp(0, 1)
        return pictures.expand(*images.shape[:-3], 3, -1, -1) if len(self.mean) == 1 else pictures

    def to_dict(self) -> dict[str, Any]:
        """JSON values; they travel in the checkpoint."""
        lists = {"mean": list(self.mean), "std": list(self.std)}
        return {**asdict(self), **lists, "aspect": "not kept", "range": "0..1"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of a checkpoint.

        Raises:
            CheckpointError: a field is missing or has a value that cannot work.
        """
        try:
            mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
            return cls(int(data["size"]), mean, std)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"preprocessing: a field is missing or wrong ({error}).") from error


def read_image(path: str | Path) -> tv_tensors.Image:
    """An image file as (3, H, W) uint8; see ``upright_rgb``.

    Raises:
        DataError: the file is missing, damaged or not an image.
    """
    try:
        with Image.open(path) as image:
            rgb = upright_rgb(image)
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise DataError(f"{path}: cannot be read as an image ({str(error) or type(error).__name__}).") from error
    return tv_tensors.Image(TF.pil_to_tensor(rgb))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB, turned upright as its EXIF tag says.

    Of 16-bit grey the upper eight bits are kept. Transparency is dropped: the colours below it show.

    Raises:
        ValueError: a float image; nothing says which of its values is white.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("float pixels have no defined white; save it with 8 or 16 bits")
    if upright.mode.startswith("I"):  # Pillow would cut these off at 255
        upper = np.asarray(upright).astype(np.int32) >> 8
        upright = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    elif upright.mode == "P":
        upright = upright.convert("RGBA")  # else Pillow warns of palettes with transparency
    return upright.convert("RGB")


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
    """A batch of samples.

    ``image`` (N, C, H, W) and ``label`` (N,); where the samples have them ``boxes`` as a list of (n, 4),
    ``mask`` (N, H, W) and ``path`` as a list.
    """
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
