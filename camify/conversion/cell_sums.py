"""What the fit of an object map needs of images that it sees once: sums over their cells, and a sample of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import Batch
from ..errors import DataError
from ..ranks import ONE, Ranks, sample_keys

__all__ = ["CellSums", "KeptImage"]

_KEPT = 128  # images with boxes that are left out in turn


@dataclass(eq=False)
class KeptImage:
    """An image with objects: its cells' features (P, C), the share of each that is covered (P,), map and boxes."""

    number: int
    key: float
    cells: Tensor
    covered: Tensor
    map: Tensor
    boxes: Tensor | None
    size: tuple[int, int]


def _key(kept: KeptImage) -> float:
    return kept.key


class CellSums:
    """Sums over cells: of all images for the mean and the spread within images, of those with objects for the fit."""

    def __init__(self, channels: int, ranks: Ranks = ONE) -> None:
        self.images = self.with_objects = self.cells = 0
        self.covered = self.class_variance = 0.0
        self.kept: list[KeptImage] = []
        self.ranks = ranks
        self.mean, self.total, self.product = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))
        self.within, self.gram = (torch.zeros(channels, channels, dtype=torch.float64) for _ in range(2))

    def add(self, features_NCHW: Tensor, maps_NHW: Tensor, masks_NHW: Tensor | None, batch: Batch) -> None:
        """Add a batch: its features, the maps of its predicted classes, and its objects (N, H, W) where it has some."""
        cells_NPC = features_NCHW.flatten(2).transpose(1, 2)
        if not bool(cells_NPC.isfinite().all()):
            raise DataError(f"Features are not finite in images {self.images} to {self.images + len(cells_NPC) - 1}.")
        numbers = self.ranks.rank + self.ranks.world_size * torch.arange(self.images, self.images + len(cells_NPC))
        keys = sample_keys(numbers)
        means_NC = cells_NPC.mean(1)
        self.mean += means_NC.double().sum(0)
        centered = (cells_NPC - means_NC[:, None]).flatten(0, 1) / math.sqrt(cells_NPC.shape[1])
        self.within += (centered.T @ centered).double()
        self.class_variance += float(maps_NHW.double().flatten(1).var(1, correction=0).sum())
        self.images += len(cells_NPC)
        if masks_NHW is None:
            return
        for place in masks_NHW.flatten(1).any(1).nonzero().flatten().tolist():
            mask = masks_NHW[place].float().cpu()
            covered = F.adaptive_avg_pool2d(mask[None, None], (maps_NHW.shape[1], maps_NHW.shape[2])).flatten()
            cells = cells_NPC[place]
            self.total += cells.double().sum(0)
            self.gram += (cells.T @ cells).double()
            self.product += (cells.T @ covered).double()
            self.covered += float(covered.double().sum())
            self.cells += len(cells)
            self.with_objects += 1
            boxes = None if batch.masks is not None or batch.boxes is None else batch.boxes[place].cpu()
            number, key = int(numbers[place]), float(keys[place])
            self.kept.append(KeptImage(number, key, cells.clone(), covered, maps_NHW[place], boxes, batch.image_size))
            if len(self.kept) > _KEPT:
                self.kept.remove(max(self.kept, key=_key))

    def join(self) -> None:
        """Add the sums of all processes; in the first one the kept images are those that one process would keep."""
        counts = torch.tensor(
            [self.images, self.with_objects, self.cells, self.covered, self.class_variance], dtype=torch.float64
        )
        self.ranks.add(self.mean, self.within, self.total, self.gram, self.product, counts)
        self.images, self.with_objects, self.cells = (int(count) for count in counts[:3])
        self.covered, self.class_variance = counts[3:].tolist()
        kept = [one for part in self.ranks.gather(self.kept) for one in part]
        self.kept = sorted(sorted(kept, key=_key)[:_KEPT], key=lambda one: one.number)

    def mean_feature(self) -> Tensor:
        """The mean feature's direction (C,), of unit length."""
        mean = self.mean / self.images
        length = float(mean.norm())
        if not length > 0:
            raise DataError("The mean feature of the images is 0: there is no shared direction to fit.")
        return mean / length

    def deviation(self, direction_C: Tensor) -> float:
        """How much the shared map of a vector varies within an image: standard deviation, root mean square."""
        return math.sqrt(max(float(direction_C @ self.within @ direction_C), 0.0) / self.images)

    def class_deviation(self) -> float:
        """The same of the predicted classes' contrast maps."""
        return math.sqrt(self.class_variance / self.images)
