"""Does the map point at the object, and how much of its evidence lies on it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .base import RowMetric, UnitIntervalMetric
from .checks import check_labels, check_maps, check_objects
from .functional import cell_masks, energy_share, masks_of_objects, peak, pointing_hits
from .functional.pointing import POINTING_TOLERANCE

__all__ = ["EnergyPointingGame", "GridPointingGame", "PointingGame"]


class PointingGame(UnitIntervalMetric):
    """Share of images whose highest pixel lies on the object, or nearer to it than the tolerance.

    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", section 5.1; as in TorchRay the distance
    must be below the tolerance. Of several highest pixels the first in reading order points. A constant map points
    nowhere: a miss. Images without an object are left out.

    ``compute()`` gives ``accuracy`` (0..1, over images), ``center_accuracy`` (pointing at the middle: what a map must
    beat), ``count`` (images with an object), and with ``num_classes`` also ``class_mean`` (mean over the classes
    seen: the paper's figure) and ``per_class`` (num_classes,), NaN for a class not seen.

    Args:
        tolerance: pixels; 15 is the paper's. 0 asks for a pixel on the object.
        num_classes: needed for the mean over classes; ``update`` then takes labels.

    Example:
        >>> import torch
        >>> heat = torch.zeros(1, 64, 64)
        >>> heat[0, 40, 40] = 1
        >>> metric = PointingGame()
        >>> metric.update(heat, [torch.tensor([[50, 40, 60, 60]])])
        >>> metric.compute()["accuracy"]
        tensor(1.)
    """

    hits: Tensor
    center_hits: Tensor
    totals: Tensor

    def __init__(self, tolerance: float = POINTING_TOLERANCE, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not tolerance >= 0 or (num_classes is not None and num_classes < 1):
            raise ConfigError(f"PointingGame: tolerance={tolerance} must be 0 or more, num_classes={num_classes} too.")
        self.tolerance, self.num_classes = tolerance, num_classes
        self.add_state("hits", torch.zeros(num_classes or 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("center_hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(num_classes or 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, objects: Sequence[Tensor] | Tensor, labels: Tensor | None = None) -> None:
        """Add images.

        Args:
            maps: (N, H, W), finite, of any range, at the size in whose pixels the objects are given.
            objects: N tensors of boxes (n, 4), xyxy pixels, exclusive, n may be 0; or masks (N, H, W) bool.
            labels: (N,) classes, exactly where ``num_classes`` was given.

        Raises:
            DataError: numbers or shapes do not fit, maps hold NaN, a box is empty, NaN or wholly outside, or a label
                is out of range, missing or not expected.
        """
        check_objects("PointingGame", maps, objects)
        masks = masks_of_objects(objects, *maps.shape[1:])
        if (labels is None) != (self.num_classes is None):
            raise DataError("PointingGame: labels and num_classes go together; one of them is missing.")
        if labels is None:
            labels = torch.zeros(len(maps), dtype=torch.int64)
        check_labels("PointingGame", labels, len(maps), self.num_classes or 1)
        middle = (maps.shape[1] // 2, maps.shape[2] // 2)
        hits = pointing_hits([peak(heat) for heat in maps.detach().cpu()], masks, self.tolerance)
        centered = pointing_hits([middle] * len(masks), masks, self.tolerance)
        for hit, center_hit, label in zip(hits.tolist(), centered.tolist(), labels.tolist(), strict=True):
            if math.isnan(hit):
                continue  # no object
            self.hits[label] += int(hit)
            self.center_hits += int(center_hit)
            self.totals[label] += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        count = self.totals.sum()
        figures = {
            "accuracy": self.hits.sum().float() / count,
            "center_accuracy": self.center_hits.float() / count,
            "count": count,
        }
        if self.num_classes is not None:
            per_class = self.hits.float() / self.totals
            figures |= {"class_mean": per_class.nanmean(), "per_class": per_class}
        return figures


class EnergyPointingGame(RowMetric):
    """Share of a map's positive evidence that lies on the object, mean over the images.

    Wang et al. 2020, "Score-CAM", section 4.3. What is negative counts as 0, so raw maps and min-max normalized ones
    give different figures: raw ones are the evidence. A map without positive evidence counts as 0. Images without an
    object are left out.

    ``compute()`` gives ``energy`` (0..1), ``uniform_energy`` (a constant map: the object's share of the image, what a
    map must beat) and ``count`` (images with an object).

    Example:
        >>> import torch
        >>> metric = EnergyPointingGame()
        >>> metric.update(torch.ones(1, 8, 8), [torch.tensor([[0, 0, 4, 8]])])
        >>> metric.compute()["energy"]
        tensor(0.5000)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"energy": (), "uniform_energy": ()}, **kwargs)

    def update(self, maps: Tensor, objects: Sequence[Tensor] | Tensor) -> None:
        """Add images.

        Args:
            maps: (N, H, W), finite, of any range, at the size in whose pixels the objects are given.
            objects: N tensors of boxes (n, 4), xyxy pixels, exclusive, n may be 0; or masks (N, H, W) bool.

        Raises:
            DataError: numbers or shapes do not fit, maps hold NaN, or a box is empty, NaN or wholly outside.
        """
        check_objects("EnergyPointingGame", maps, objects)
        masks = masks_of_objects(objects, *maps.shape[1:])
        has_object = masks.flatten(1).any(dim=1)
        masks, heats = masks[has_object], maps.detach().cpu()[has_object]
        self._add({"energy": energy_share(heats, masks), "uniform_energy": masks.double().mean((-2, -1))})

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        return {**self._means(), "count": self.counts[0]}


class GridPointingGame(RowMetric):
    """Share of a class's positive evidence that lies in its own cell of a mosaic, mean over maps. Needs no boxes.

    Boehle et al. 2021, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", section 5.3.
    `functional.mosaics` makes the mosaics. A map without positive evidence counts as 0.

    ``compute()`` gives ``grid_pointing`` (0..1), ``chance`` (1 / grid**2, a constant map) and ``count`` (maps).

    Args:
        grid: cells in a row and in a column; 2 and 3 are usual.

    Example:
        >>> import torch
        >>> heat = torch.zeros(1, 4, 4)
        >>> heat[0, :2, 2:] = 3
        >>> heat[0, 3, 3] = 4
        >>> metric = GridPointingGame()
        >>> metric.update(heat, torch.tensor([1]))
        >>> metric.compute()["grid_pointing"]
        tensor(0.7500)
    """

    def __init__(self, grid: int = 2, **kwargs: Any) -> None:
        super().__init__({"grid_pointing": ()}, **kwargs)
        if grid < 2:
            raise ConfigError(f"GridPointingGame: grid={grid} must be 2 or more.")
        self.grid = grid

    def update(self, maps: Tensor, cells: Tensor) -> None:
        """Add maps of mosaics, one for each class and mosaic.

        Args:
            maps: (N, H, W), finite, raw: H and W multiples of the grid.
            cells: (N,) the cell, in reading order from 0, that shows the map's class.

        Raises:
            DataError: numbers do not match, maps hold NaN or cannot be cut into the cells, or there is no such cell.
        """
        check_maps("GridPointingGame", maps, unit=False)
        check_labels("GridPointingGame", cells, len(maps), self.grid**2, what="cells")
        masks = cell_masks(cells.to(maps.device), self.grid, *maps.shape[1:])
        self._add({"grid_pointing": energy_share(maps, masks)})

    def compute(self) -> dict[str, Tensor]:
        """The figures over all maps so far."""
        chance = torch.tensor(1 / self.grid**2, dtype=torch.float32, device=self.sums.device)
        return {**self._means(), "chance": chance, "count": self.counts[0]}
