"""Maps against masks: precision and recall of pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .baselines import center_gaussian
from .bins import Places, Steps, least_kind

__all__ = [
    "average_precision", "center_gaussian_bins", "count_pixels", "pixel_bins", "pixel_histograms", "precision_recall",
]  # fmt: skip


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
    return count_pixels(pixel_bins(maps, count), masks, ignore, count)


def pixel_bins(maps: Tensor, count: int) -> Places:
    """The bin of every pixel, as in `pixel_histograms`.

    Example:
        >>> pixel_bins(torch.tensor([[0.0, 0.5, 1.0]]), count=2).tolist()
        [[0, 1, 2]]
    """
    heat = maps.detach().cpu()
    values = heat.numpy() if heat.dtype in (torch.float32, torch.float64) else heat.float().numpy()
    return _steps(count).last_reached(values)


@lru_cache(maxsize=8)
def _steps(count: int) -> Steps:
    return Steps(np.append(np.arange(count) * (1 / count), 1.0))


@lru_cache(maxsize=4)
def center_gaussian_bins(height: int, width: int, count: int) -> Places:
    """`pixel_bins` (height, width) of `center_gaussian`.

    Example:
        >>> center_gaussian_bins(1, 3, 2).tolist()
        [[0, 2, 0]]
    """
    return pixel_bins(center_gaussian(height, width), count)


def count_pixels(bins: Places, masks: Tensor, ignore: Tensor | None, count: int) -> Tensor:
    """Histograms of the bins of `pixel_bins`, as in `pixel_histograms`.

    Example:
        >>> count_pixels(np.array([[0, 1, 2]]), torch.tensor([[False, True, True]]), None, 2)
        tensor([[1, 0, 0],
                [0, 1, 1]])
    """
    if bins.ndim > 2:  # one by one: what an image takes stays in the cache
        ignored = [None] * len(bins) if ignore is None else ignore
        histograms = torch.zeros(2, count + 1, dtype=torch.int64)
        for image in zip(bins, masks, ignored, strict=True):
            histograms += count_pixels(*image, count)
        return histograms
    sections, last = _bytes(masks), 1
    if ignore is not None:  # 0 beside the object, 1 ignored, 2 on the object, whether ignored or not
        sections, last = sections + sections, 2
        np.maximum(sections, _bytes(ignore), out=sections)
    length = count + 1
    numbers: Places = sections.astype(least_kind((last + 1) * length))
    numbers *= length
    numbers += bins
    counts = torch.bincount(torch.from_numpy(numbers.ravel()), minlength=(last + 1) * length)  # faster than NumPy's
    return torch.from_numpy(counts.numpy().reshape(-1, length)[::last])


def _bytes(masks: Tensor) -> NDArray[np.uint8]:
    return masks.cpu().bool().numpy().view(np.uint8)


def precision_recall(histograms: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall at every threshold, from the highest to 0, (count + 1,) float64 each.

    Precision is NaN where no pixel reaches the threshold, recall is NaN where there is no object.

    Example:
        >>> precision_recall(torch.tensor([[1, 1, 0], [0, 1, 1]]))
        (tensor([1.0000, 0.6667, 0.5000], dtype=torch.float64), tensor([0.5000, 1.0000, 1.0000], dtype=torch.float64))
    """
    beside, on = histograms.cpu().flip(-1).cumsum(-1).double()
    return on / (on + beside), on / on[-1]


def average_precision(histograms: Tensor) -> Tensor:
    """Area under the curve of precision over recall, sum of precision times step of recall, float64 in 0..1.

    Choe et al. 2020, section 4.2 (PxAP). NaN where there is no object's pixel.

    Example:
        >>> average_precision(torch.tensor([[1, 1, 0], [0, 1, 1]]))  # 1 * 0.5 + 2 / 3 * 0.5
        tensor(0.8333, dtype=torch.float64)
    """
    precision, recall = precision_recall(histograms)
    steps = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
    return (precision.nan_to_num() * steps).sum()
