"""Which class is taken for which, and whether probabilities can be believed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["calibration_bins", "confused_pairs", "expected_calibration_error", "label_ranks"]

_BINS = 15  # Guo et al. 2017


def confused_pairs(labels: Tensor, predicted: Tensor) -> Tensor:
    """Rows (P, 3) of true class, predicted class and number of images: the confusion matrix without its zeros.

    Args:
        labels: (N,) classes.
        predicted: (N,) classes.

    Example:
        >>> confused_pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2])).tolist()
        [[0, 0, 2], [1, 2, 1]]
    """
    pairs, counts = torch.unique(torch.stack([labels, predicted], dim=1).long(), dim=0, return_counts=True)
    return torch.cat([pairs.reshape(-1, 2), counts[:, None]], dim=1)


def calibration_bins(confidences: Tensor, right: Tensor, count: int = _BINS) -> Tensor:
    """Rows (count, 3) float64 of equal parts of [0, 1]: images, the sum of their confidences, and how many are right.

    A confidence at a border belongs to the part above it, as torchmetrics has it. Rows of several batches add up.
    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    Args:
        confidences: (N,) probabilities of the predicted class, or of labels.
        right: (N,) bool: whether the prediction was right, or the label is there.
        count: of parts.

    Example:
        >>> calibration_bins(torch.tensor([0.25, 0.75, 0.875]), torch.tensor([True, True, False]), count=2).tolist()
        [[1.0, 0.25, 1.0], [2.0, 1.625, 1.0]]
    """
    known = ~confidences.isnan()
    confidences, right = confidences[known], right[known]
    borders = torch.linspace(0, 1, count + 1, dtype=confidences.dtype, device=confidences.device)
    places = (torch.bucketize(confidences, borders, right=True) - 1).clamp(0, count - 1)
    rows = torch.stack([torch.ones_like(confidences), confidences, right.to(confidences)], dim=1).double()
    return torch.zeros(count, 3, dtype=torch.float64, device=rows.device).index_add_(0, places, rows)


def expected_calibration_error(bins: Tensor) -> float:
    """By how much confidence and share of right images differ, mean over the images; NaN of none.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        bins: rows of ``calibration_bins``.

    Example:
        >>> expected_calibration_error(torch.tensor([[2.0, 1.5, 1.0]]))
        0.25
    """
    return float((bins[:, 1] - bins[:, 2]).abs().sum() / bins[:, 0].sum())


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """The place (N,) of the label among the scores (N, K), from 0; of equals the lower class comes first.

    Example:
        >>> label_ranks(torch.tensor([[0.2, 0.7, 0.1], [0.4, 0.4, 0.2]]), torch.tensor([0, 1]))
        tensor([1, 1])
    """
    label_scores = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > label_scores) | ((scores == label_scores) & earlier)).sum(dim=1)
