"""Does the map cover the object, pixel by pixel?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .base import UnitIntervalMetric
from .checks import check_maps, check_masks
from .functional import average_precision, center_gaussian_bins, count_pixels, pixel_histograms, precision_recall

__all__ = ["PixelAveragePrecision"]


class PixelAveragePrecision(UnitIntervalMetric):
    """Area under precision and recall of the pixels of all images together (PxAP), for masks instead of boxes.

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", section 4.2, equal to the
    authors' code with ``count=1000``. Large objects have more pixels and so weigh more.

    ``compute()`` gives ``px_ap`` (0..1), ``center_gaussian_ap`` (a blob in the middle of every image: what a map must
    beat), ``constant_ap`` (a constant map: the objects' share of the pixels), ``precision`` and ``recall`` (count +
    1,) from the highest threshold to 0, and ``count`` (images). Without a pixel of an object all figures are NaN.

    Args:
        count: number of thresholds.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[0.9, 0.8], [0.7, 0.1]]])
        >>> metric = PixelAveragePrecision()
        >>> metric.update(maps, torch.tensor([[[True, False], [True, False]]]))
        >>> metric.compute()["px_ap"]
        tensor(0.8333)
    """

    histograms: Tensor
    center_histograms: Tensor
    total: Tensor

    def __init__(self, count: int = 1000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if count < 1:
            raise ConfigError(f"PixelAveragePrecision: count={count} must be above 0.")
        self.count = count
        for name in ("histograms", "center_histograms"):
            self.add_state(name, torch.zeros(2, count + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor, ignore: Tensor | None = None) -> None:
        """Add images.

        Args:
            maps: (N, H, W) in [0, 1].
            masks: (N, H, W), bool or 0 and 1: the object.
            ignore: (N, H, W), bool or 0 and 1: pixels not to count. The object's own count all the same.

        Raises:
            DataError: shapes differ, maps hold NaN or values outside [0, 1], or a mask holds other numbers.
        """
        check_maps("PixelAveragePrecision", maps)
        check_masks("PixelAveragePrecision", maps, masks)
        if ignore is not None:
            check_masks("PixelAveragePrecision", maps, ignore, "ignore")
        self.histograms += pixel_histograms(maps, masks, ignore, self.count).to(self.histograms)
        blob = np.broadcast_to(center_gaussian_bins(*maps.shape[1:], self.count), maps.shape)
        self.center_histograms += count_pixels(blob, masks, ignore, self.count).to(self.histograms)
        self.total += len(maps)

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images so far."""
        precision, recall = precision_recall(self.histograms)
        figures = {
            "px_ap": average_precision(self.histograms),
            "center_gaussian_ap": average_precision(self.center_histograms),
            "constant_ap": torch.where(self.histograms[1].sum().cpu() > 0, precision[-1], torch.nan),
            "precision": precision,
            "recall": recall,
        }
        device = self.histograms.device
        return {**{name: value.float().to(device) for name, value in figures.items()}, "count": self.total}
