"""What a figure must beat, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import ConfigError
from ...maps import normalize, upsample
from .box import center_boxes, iou_with_best_box

__all__ = ["bootstrap_interval", "bootstrap_means", "center_gaussian", "hard_subset", "percentiles", "random_maps"]

_MOST_WEIGHTS = 2**22  # drawn at a time
_MOST_VALUES = 2**22  # multiplied at a time


def center_gaussian(height: int, width: int, std: float = 0.5) -> Tensor:
    """A blob in the middle, (height, width) float32 in [0, 1]: the map that knows only that objects are centered.

    ``std`` is in halves of the image's sides. It sets how the values fall, not which pixel is higher than which, so
    that figures over all thresholds hardly depend on it.

    Example:
        >>> center_gaussian(1, 3)
        tensor([[0., 1., 0.]])
    """
    y, x = (torch.linspace(-1, 1, 2 * size + 1, dtype=torch.float64)[1::2] for size in (height, width))
    return normalize(torch.exp(-(y[:, None] ** 2 + x**2) / (2 * std**2))).float()


def random_maps(count: int, height: int, width: int, *, cells: int = 7, seed: int = 0) -> Tensor:
    """Maps (count, height, width) in [0, 1] that know nothing: noise of cells x cells, upsampled as a map is.

    Example:
        >>> maps = random_maps(2, 14, 14)
        >>> maps.shape, float(maps.min()), float(maps.max())
        (torch.Size([2, 14, 14]), 0.0, 1.0)
        >>> torch.equal(maps, random_maps(2, 14, 14))  # the same seed
        True
    """
    noise = torch.rand(count, cells, cells, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return normalize(upsample(noise, (height, width)))


def hard_subset(boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]], iou: float = 0.5) -> Tensor:
    """Which images no box around the center can solve, (N,) bool; False for images without boxes.

    Args:
        boxes: N tensors (n, 4), xyxy pixels, exclusive.
        sizes: (height, width) of each image.
        iou: what a centered box must not reach with any ground-truth box.

    Example:
        >>> corner, middle = torch.tensor([[0, 0, 2, 2]]), torch.tensor([[2, 2, 8, 8]])
        >>> hard_subset([corner, middle, torch.empty(0, 4)], [(10, 10)] * 3)
        tensor([ True, False, False])
    """
    return torch.tensor(
        [
            len(truth) > 0 and not bool((iou_with_best_box(center_boxes(height, width), truth) >= iou).any())
            for truth, (height, width) in zip(boxes, sizes, strict=True)
        ],
        dtype=torch.bool,
    )


def bootstrap_interval(
    values: Tensor, statistic: Callable[[Tensor], Tensor] | None = None, *, confidence: float = 0.95,
    resamples: int = 1000, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Bounds within which a figure over images would fall again, by resampling the images (percentile bootstrap).

    Efron 1979, "Bootstrap methods: another look at the jackknife".

    Args:
        values: one row per image, (N, ...); images whose value is NaN are left out first.
        statistic: from the mean row to the figure, such as ``torch.max`` for hits at all thresholds; None for a mean.
        confidence: share of resamples between the bounds, in (0, 1).
        resamples: how many.
        seed: of the draw.

    Returns:
        The lower and the upper bound; NaN without images.

    Raises:
        ConfigError: the confidence or the number of resamples cannot be.

    Example:
        >>> import torch
        >>> low, high = bootstrap_interval(torch.tensor([0.0, 1.0] * 50))
        >>> 0.35 < low < 0.5 < high < 0.65
        True
    """
    means = bootstrap_means(values, resamples=resamples, seed=seed)
    figures = (
        means if statistic is None else torch.tensor([float(statistic(row)) for row in means], dtype=torch.float32)
    )
    return percentiles(figures, confidence)


def bootstrap_means(values: Tensor, *, resamples: int = 1000, seed: int = 0) -> Tensor:
    """Mean rows (resamples, ...) float64 of images drawn anew, as many as there are; the same draw for equal counts.

    Args:
        values: one row per image, (N, ...), also bool; images whose value is NaN are left out first.
        resamples: how many.
        seed: of the draw.

    Returns:
        NaN without images.

    Raises:
        ConfigError: the number of resamples cannot be.

    Example:
        >>> bootstrap_means(torch.tensor([1.0, 1.0, torch.nan]), resamples=2)
        tensor([1., 1.], dtype=torch.float64)
    """
    if resamples < 1:
        raise ConfigError(f"resamples={resamples} must be above 0.")
    rows = values.detach().cpu()
    flat = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
    if flat.is_floating_point():
        flat = flat[~flat.isnan().any(dim=1)]
    count, generator = len(flat), torch.Generator().manual_seed(seed)
    if count == 0:
        return torch.full((resamples, *rows.shape[1:]), torch.nan, dtype=torch.float64)
    parts, at_once = [], max(1, _MOST_WEIGHTS // count)
    for first in range(0, resamples, at_once):
        drawn = torch.randint(count, (min(at_once, resamples - first), count), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(drawn.shape)
        )
        step = max(1, _MOST_VALUES // flat.shape[1])
        sums = torch.zeros(len(drawn), flat.shape[1], dtype=torch.float64)
        for start in range(0, count, step):
            sums += times[:, start : start + step] @ flat[start : start + step].double()
        parts.append(sums / count)
    return torch.cat(parts).reshape(resamples, *rows.shape[1:])


def percentiles(figures: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """The bounds between which a share of the figures (resamples,) lies; NaN where one of them is NaN.

    Raises:
        ConfigError: the confidence cannot be.

    Example:
        >>> percentiles(torch.arange(101.0), confidence=0.5)  # the middle half
        (25.0, 75.0)
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie in (0, 1).")
    edges = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = figures.double().quantile(edges).tolist()
    return low, high
