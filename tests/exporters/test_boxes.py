"""Boxes by tensor steps alone, against SciPy's components and torch's quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F

from camify.boxes import largest_boxes, percentile
from camify.normalizers import NORMALIZERS, normalize_maps, scale_maps


def expected(mask):
    """The box of the component of most pixels; the first in reading order of equals."""
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return [0, 0, 0, 0]
    rows, columns = np.where(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def snake(side):
    """One path through the whole image: every second row, joined at alternating ends."""
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, ::2] = True
    mask[:, 1:-1:4, -1] = mask[:, 3:-1:4, 0] = True
    return mask


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.4, 1.0])
def test_maps_as_networks_give_them(threshold):
    maps = F.interpolate(torch.randn(12, 1, 14, 14), size=(96, 80), mode="bilinear")[:, 0]
    found = largest_boxes(maps >= threshold)
    assert found.tolist() == [expected(mask) for mask in (maps >= threshold).numpy()]


@pytest.mark.parametrize("density", [0.1, 0.41, 0.59])  # 0.41: where 8-connected components are most winding
def test_noise(density):
    masks = torch.rand(4, 96, 96) < density
    assert largest_boxes(masks).tolist() == [expected(mask) for mask in masks.numpy()]


@pytest.mark.parametrize("side", [16, 161])
def test_one_long_path(side):
    assert largest_boxes(snake(side)).tolist() == [[0, 0, side, side if side % 2 else side - 1]]


def test_nothing_and_everything():
    masks = torch.stack([torch.zeros(9, 7, dtype=torch.bool), torch.ones(9, 7, dtype=torch.bool)])
    assert largest_boxes(masks).tolist() == [[0, 0, 0, 0], [0, 0, 7, 9]]


@pytest.mark.parametrize("share", [0.0, 25.0, 33.3, 90.0, 100.0])
def test_percentiles_are_torchs(share):
    maps = torch.randn(5, 11, 13)
    wanted = torch.stack([one.flatten().quantile(share / 100) for one in maps])
    torch.testing.assert_close(percentile(maps, share)[:, 0, 0], wanted)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_every_normalizer_is_that_of_the_metrics(normalizer):
    maps = torch.randn(4, 20, 20)
    torch.testing.assert_close(scale_maps(maps, *normalizer, find=percentile), normalize_maps(maps, *normalizer))
