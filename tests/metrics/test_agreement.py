"""Agreement of maps against scipy, brute force and hand-worked figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from camify.metrics.functional.agreement import (
    average_ranks,
    box_agreement,
    correlations,
    heat_boxes,
    mask_agreement,
    peak_hits,
    top_area,
)


def heats(count=5, height=17, width=23):
    """Maps of which many pixels are zero, as behind a ReLU."""
    return (torch.rand(count, height, width) - 0.4).relu()


def test_correlations_are_scipys():
    maps = heats()
    pearson, spearman = correlations(maps), correlations(average_ranks(maps))
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


def test_the_box_of_a_heat_is_that_of_its_largest_component():
    heat = heats(6, 20, 30)
    for index, box in enumerate(heat_boxes(heat, 0.5)):
        labels, count = ndimage.label(heat[index].numpy() >= 0.5, structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        wanted = []
        for biggest in np.flatnonzero(sizes == sizes.max()) + 1:
            rows, columns = np.nonzero(labels == biggest)
            wanted.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert box.tolist() in wanted or count == 0


def test_box_agreement_by_hand():
    heat = torch.zeros(3, 10, 10)
    heat[0, 2:6, 2:6] = 1  # 16 pixels
    heat[1, 4:8, 4:8] = 0.6  # 16 pixels, 4 of them shared
    boxes = heat_boxes(heat, 0.5)
    assert boxes[:2].tolist() == [[2, 2, 6, 6], [4, 4, 8, 8]]
    found = box_agreement(boxes)
    assert float(found[0, 1]) == pytest.approx(4 / 28)
    assert float(found[1, 1]) == 1
    assert found[2].isnan().all()
    assert boxes[2].isnan().all()


def test_peaks_hit_boxes():
    heat = torch.zeros(4, 10, 10)
    heat[0, 3, 7] = 1  # row 3, column 7
    heat[1, 7, 3] = 1
    heat[2, 5, 8] = 1  # the column behind the box
    boxes = torch.tensor([[0.0, 0, 1, 1], [6, 2, 8, 6]])
    hits = peak_hits(heat, boxes)
    assert hits[:3].tolist() == [1, 0, 0]
    assert hits[3].isnan()
