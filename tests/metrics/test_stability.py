"""Likeness of maps, entropy and area against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from camify.errors import DataError
from camify.metrics.functional import area, correlation, drift, entropy, flip_equivariance, shift_equivariance


def test_correlation_is_scipys():
    maps, others = torch.randn(2, 6, 5, 8)
    expected = [
        scipy.stats.pearsonr(a.ravel(), b.ravel())[0]
        for a, b in zip(maps.double().numpy(), others.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(correlation(maps, others).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(drift(maps, others).numpy(), 1 - np.array(expected), atol=1e-12)
    assert drift(maps, 3 * maps + 1).abs().max() < 1e-6


def test_a_constant_map_correlates_with_nothing():
    assert correlation(torch.full((1, 3, 3), 0.1), torch.rand(1, 3, 3)).isnan().all()
    assert correlation(torch.full((1, 3, 3), 0.1), torch.full((1, 3, 3), 0.1)).isnan().all()


def test_maps_that_turn_with_the_image_are_equivariant():
    images = torch.rand(4, 9, 12)
    assert flip_equivariance(images**2, images.flip(-1) ** 2).tolist() == pytest.approx([1] * 4)
    assert float(flip_equivariance(images, images).mean()) < 0.9


@pytest.mark.parametrize("shift", [(0, 0), (2, 3), (-2, 3), (2, -3), (-1, -1), (0, 4)])
def test_maps_that_move_with_the_image_are_equivariant(shift):
    images = torch.rand(4, 9, 12)
    moved = images.roll(shift, dims=(-2, -1))
    assert shift_equivariance(images, moved, shift).tolist() == pytest.approx([1] * 4)
    if shift != (0, 0):
        assert float(shift_equivariance(images, images, shift).mean()) < 0.9


def test_entropy_from_one_pixel_to_everywhere():
    maps = torch.zeros(3, 4, 5)
    maps[0, 1, 2] = 7
    maps[1] = 2
    maps[2, 0, :4] = 1
    maps[2, 3, 3] = -5
    found = entropy(maps).tolist()
    assert found[:2] == pytest.approx([0, 1])
    assert found[2] == pytest.approx(np.log(4) / np.log(20))
    random = torch.rand(5, 6, 7).double()
    expected = [scipy.stats.entropy(one.ravel()) / np.log(42) for one in random.numpy()]
    assert entropy(random).tolist() == pytest.approx(expected)
    assert entropy(torch.zeros(1, 3, 3)).isnan().all()
    assert entropy(torch.ones(1, 1, 1)).tolist() == [0]


def test_area_is_a_share_of_pixels():
    assert area(torch.tensor([[[0.5, 0.49], [1.0, 0.0]]])).tolist() == [0.5]


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="must both be"):
        correlation(torch.rand(2, 3, 3), torch.rand(1, 3, 3))
    with pytest.raises(DataError, match="nothing in common"):
        shift_equivariance(torch.rand(1, 3, 3), torch.rand(1, 3, 3), (3, 0))
