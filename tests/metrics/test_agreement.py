"""Agreement of maps against scipy, brute force and hand-worked figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from camify.metrics.functional import correlations
from camify.metrics.functional.agreement import (
    average_ranks,
    box_agreement,
    mask_agreement,
    rank_correlations,
    top_area,
)


def heats(count=5, height=17, width=23):
    """Maps of which many pixels are zero, as behind a ReLU."""
    return (torch.rand(count, height, width) - 0.4).relu()


def test_correlations_are_scipys():
    maps = heats()
    pearson, spearman = correlations(maps), rank_correlations(maps)
    for i in range(len(maps)):
        for j in range(len(maps)):
            a, b = maps[i].flatten().double().numpy(), maps[j].flatten().double().numpy()
            assert float(pearson[i, j]) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
            assert float(spearman[i, j]) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_ranks_are_scipys_with_ties():
    maps = torch.randint(0, 5, (3, 4, 6)).float()
    expected = stats.rankdata(maps.flatten(1).numpy(), axis=1, method="average")
    np.testing.assert_allclose(average_ranks(maps).flatten(1).numpy(), expected)


def test_a_constant_map_correlates_with_nothing():
    maps = torch.stack([torch.zeros(4, 4), torch.rand(4, 4), torch.full((4, 4), 0.3)])
    found = correlations(maps)
    assert found[1, 1] == pytest.approx(1)
    assert found.isnan().sum() == 8


def test_correlation_knows_neither_scale_nor_offset():
    maps = torch.rand(2, 8, 8)
    maps[1] = 100 - 7 * maps[0]
    assert float(correlations(maps)[0, 1]) == pytest.approx(-1, abs=1e-6)


def test_the_top_area_is_that_share_of_the_pixels():
    heat = torch.randperm(100).reshape(1, 10, 10).float() / 99
    mask = top_area(heat, 0.2)
    assert int(mask.sum()) == 20
    assert float(heat[mask].min()) > float(heat[~mask].max())


def test_pixels_without_heat_are_never_at_the_top_and_equals_belong_together():
    heat = torch.zeros(1, 10, 10)
    heat[0, 0, :5] = 1
    assert int(top_area(heat, 0.2).sum()) == 5
    assert int(top_area(heat, 0.02).sum()) == 5
    assert not top_area(torch.zeros(1, 10, 10), 0.2).any()


def test_mask_agreement_by_hand():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2] = True  # 8 pixels
    masks[1, 1:3] = True  # 8 pixels, 4 of them shared
    found = mask_agreement(masks)
    assert float(found[0, 1]) == pytest.approx(4 / 12)
    assert float(found[0, 0]) == 1
    assert found[2].isnan().all()
    assert found[:, 2].isnan().all()


def test_box_agreement_by_hand():
    boxes = torch.tensor([[2.0, 2, 6, 6], [4, 4, 8, 8], [torch.nan] * 4])  # 16 pixels each, 4 of them shared
    agreement = box_agreement(boxes)
    assert float(agreement[0, 1]) == pytest.approx(4 / 28)
    assert float(agreement[1, 1]) == 1
    assert agreement[2].isnan().all()
