"""What a figure must beat, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import ConfigError
from ...maps import normalize, upsample
from .box import centre_boxes, iou_with_best_box

__all__ = ["bootstrap_interval", "centre_gaussian", "hard_subset", "random_maps"]


def centre_gaussian(height: int, width: int, std: float = 0.5) -> Tensor:
    """A blob in the middle, (height, width) float32 in [0, 1]: the map that knows only that objects are centred.

    ``std`` is in halves of the image's sides. It sets how the values fall, not which pixel is higher than which, so
    that figures over all thresholds hardly depend on it.
    """
    y, x = (torch.linspace(-1, 1, 2 * size + 1, dtype=torch.float64)[1::2] for size in (height, width))
    return normalize(torch.exp(-(y[:, None] ** 2 + x**2) / (2 * std**2))).float()


def random_maps(count: int, height: int, width: int, *, cells: int = 7, seed: int = 0) -> Tensor:
    """Maps (count, height, width) in [0, 1] that know nothing: noise of cells x cells, upsampled as a map is."""
    noise = torch.rand(count, cells, cells, generator=torch.Generator().manual_seed(seed))
    return normalize(upsample(noise, (height, width)))


def hard_subset(boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]], iou: float = 0.5) -> Tensor:
    """Which images no box around the centre can solve, (N,) bool; False for images without boxes.

    Args:
        boxes: N tensors (n, 4), xyxy pixels, exclusive.
        sizes: (height, width) of each image.
        iou: what a centred box must not reach with any ground-truth box.
    """
    return torch.tensor(
        [
            len(truth) > 0 and not bool((iou_with_best_box(centre_boxes(height, width), truth) >= iou).any())
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
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(f"confidence={confidence} must lie in (0, 1), resamples={resamples} above 0.")
    rows = values.detach().cpu().double()
    rows = rows[~rows.flatten(1).isnan().any(dim=1)] if rows.dim() > 1 else rows[~rows.isnan()]
    count = len(rows)
    if count == 0:
        return float("nan"), float("nan")
    generator, figures = torch.Generator().manual_seed(seed), []
    for _ in range(resamples):
        drawn = torch.randint(count, (count,), generator=generator)
        mean = torch.bincount(drawn, minlength=count).double() @ rows.reshape(count, -1) / count
        row = mean.reshape(rows.shape[1:])
        figures.append(float(row if statistic is None else statistic(row)))
    edges = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.tensor(figures, dtype=torch.float64).quantile(edges).tolist()
    return low, high
