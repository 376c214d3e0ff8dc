"""Metrics whose figures are shares in 0..1, and means of such numbers that no order or number of processes changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MeanOfUnitInterval", "RowMeans", "RowMetric", "UnitIntervalMetric"]

_ONE = 1 << 32  # a share as a whole number: exact sums, 2 ** 31 images of them


class UnitIntervalMetric(Metric):
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
        return self._plot([_figures(computed) for computed in val] if several else _figures(val), ax)


def _figures(computed: Any) -> Any:
    if not isinstance(computed, Mapping):
        return computed
    return {name: value for name, value in computed.items() if value.dim() == 0 and value.is_floating_point()}


class RowMetric(UnitIntervalMetric):
    """Rows of shares in 0..1, one per image and name, added up; an image whose row holds NaN does not count in it.

    Args:
        shapes: of one image's row, by name.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shapes = dict(shapes)
        self.sizes = [prod(shape) for shape in shapes.values()]
        self.add_state("sums", torch.zeros(sum(self.sizes), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(shapes), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, rows: Mapping[str, Tensor]) -> None:
        for place, (name, sums) in enumerate(zip(self.shapes, torch.split(self.sums, self.sizes), strict=True)):
            if name in rows:
                row = rows[name].reshape(-1, len(sums))
                complete = row[~row.isnan().any(1)]
                sums += (complete.double() * _ONE).round().long().sum(0).to(sums)
                self.counts[place] += len(complete)

    def _means(self) -> dict[str, Tensor]:
        """The mean rows (*shape), float32; NaN of no image."""
        rows = zip(torch.split(self.sums.cpu(), self.sizes), self.counts.tolist(), self.shapes.items(), strict=True)
        means = {name: (sums.double() / _ONE / count).reshape(shape) for sums, count, (name, shape) in rows}
        return {name: mean.float().to(self.sums.device) for name, mean in means.items()}


class RowMeans(RowMetric):
    """The mean rows by name: ``update`` takes rows (N, *shape) of all names or of some."""

    update, compute = RowMetric._add, RowMetric._means


class MeanOfUnitInterval(RowMetric):
    """Mean of one number in 0..1 per image, the row ``""``; NaN without images. A metric says in ``update`` which."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"": ()}, **kwargs)

    def compute(self) -> Tensor:
        """The mean over all images so far."""
        return self._means()[""]
