"""Metrics whose figures are shares in 0..1, and means of such numbers that no order or number of processes changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MeanShare", "ShareMetric", "mean_share", "share_sum"]

_ONE = 1 << 32  # a share as a whole number: exact sums, 2 ** 31 images of them


def share_sum(shares: Tensor) -> Tensor:
    """Sum (int64) of shares in 0..1, each rounded to 2**-32."""
    return (shares.double() * _ONE).round().long().sum()


def mean_share(total: Tensor, count: Tensor) -> Tensor:
    """Mean, float32, of ``count`` shares with the sum that `share_sum` gave; NaN of none."""
    return (total.cpu().double() / _ONE / count.cpu().double()).float().to(total.device)


class ShareMetric(Metric):
    """What all metrics here have in common: figures in 0..1, counts as states, a plot of the figures."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the figures, not the curves and counts: of now, of one ``compute()``, or of a list of them over time.

        Args:
            val: what ``compute()`` or ``forward()`` gave, or a list of such; None computes.
            ax: matplotlib axes to draw into; None makes a new figure.

        Returns:
            Figure and axes.
        """
        val = self.compute() if val is None else val
        several = isinstance(val, Sequence)
        return self._plot([_figures(one) for one in val] if several else _figures(val), ax)


def _figures(found: Any) -> Any:
    if not isinstance(found, Mapping):
        return found
    return {name: value for name, value in found.items() if value.dim() == 0 and value.is_floating_point()}


class MeanShare(ShareMetric):
    """Mean of one number in 0..1 per image; NaN without images. A metric says in ``update`` which number."""

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The mean over all images so far."""
        return mean_share(self.total, self.count)

    def _add(self, shares: Tensor) -> None:
        self.total += share_sum(shares).to(self.total)
        self.count += len(shares)
