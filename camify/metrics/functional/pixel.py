"""Maps against masks: precision and recall of pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["average_precision", "pixel_histograms", "precision_recall"]


def pixel_histograms(maps: Tensor, masks: Tensor, ignore: Tensor | None = None, count: int = 1000) -> Tensor:
    """Pixels by map value, (2, count + 1) int64: beside the object, on the object.

    Bins are [0, 1/count), [1/count, 2/count), ..., [1 - 1/count, 1), [1].

    Args:
        maps: (..., H, W) in [0, 1].
        masks: (..., H, W) bool, the object.
        ignore: (..., H, W) bool, pixels not to count; the object's own count all the same.
        count: number of thresholds.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[0.0, 0.5, 1.0, 0.5]])
        >>> pixel_histograms(maps, torch.tensor([[False, False, True, True]]), count=2).tolist()
        [[1, 1, 0], [0, 1, 1]]
    """
    values = maps.detach().cpu().double().numpy().ravel()
    on = masks.cpu().numpy().astype(bool).ravel()
    # The product finds the bin, but for its rounding: a value at an edge belongs to the bin that begins there.
    edges = np.append(np.arange(count) * (1 / count), (1.0, np.inf))
    place = (values * count).astype(np.intp)
    place += edges.take(place + 1) <= values
    place -= edges.take(place) > values
    place += on * (count + 1)
    if ignore is not None:
        place = place[on | ~ignore.cpu().numpy().astype(bool).ravel()]
    return torch.from_numpy(np.bincount(place, minlength=2 * (count + 1)).reshape(2, count + 1))


def precision_recall(histograms: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall at every threshold, from the highest to 0, (count + 1,) float64 each.

    Precision is NaN where no pixel reaches the threshold, recall is NaN where there is no object.
    """
    beside, on = histograms.cpu().flip(-1).cumsum(-1).double()
    return on / (on + beside), on / on[-1]


def average_precision(histograms: Tensor) -> Tensor:
    """Area under the curve of precision over recall, sum of precision times step of recall, float64 in 0..1.

    Choe et al. 2020, section 4.2 (PxAP). NaN where there is no object's pixel.
    """
    precision, recall = precision_recall(histograms)
    steps = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
    return (precision.nan_to_num() * steps).sum()
