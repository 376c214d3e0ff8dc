"""Boxes of bilinear maps of few cells against those that are searched among all pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camify.maps import upsample
from camify.metrics.functional import (
    NORMALIZERS,
    best_iou_by_threshold,
    bilinear_level_sets,
    box_curves,
    box_hits_by_threshold,
    level_set_boxes,
    level_sets,
    normalize_maps,
    thresholds,
)
from camify.metrics.functional.bilinear_level_sets import bilinear_level_boxes, has_few_cells
from camify.metrics.functional.bins import Steps

IOUS = ([0.5], [0.3, 0.5, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.fixture(autouse=True)
def any_cells(monkeypatch):
    """Small pictures, which take less time, are of few cells too."""
    monkeypatch.setattr(box_curves, "has_few_cells", lambda cells, size: True)


def made(seed, maps=3):
    """Heat (N, H, W), its cells, and how many thresholds: noise, rectified, or plateaus; whole or broken strides."""
    rng = np.random.default_rng(seed)
    cells = tuple(map(int, rng.integers(1, 9, 2)))
    size = tuple(int(rng.integers(max(2, side), 70)) for side in cells) if seed % 2 else tuple(16 * s for s in cells)
    values = rng.standard_normal((maps, *cells)).astype(np.float32)
    values = [values, np.maximum(values, 0), values.round(), values * (rng.random(values.shape) < 0.3)][seed % 4]
    normalizer = NORMALIZERS[seed % len(NORMALIZERS)]
    return normalize_maps(upsample(torch.from_numpy(values), size), *normalizer), cells, int(rng.integers(2, 120))


def truths_of(heat, seed):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.uniform(0, 1, (len(heat), 2, 2)), axis=1) * (heat.shape[2], heat.shape[1])
    return [torch.from_numpy(np.concatenate([own[0], own[1] + 1]))[None] for own in ends]


def rows(found, count_units):
    units = found.units if count_units else np.zeros_like(found.levels)
    return sorted(zip(found.levels.tolist(), *found.boxes.T.tolist(), units.tolist(), strict=True))


@pytest.mark.parametrize("way", ["by meeting", "by level"])
@pytest.mark.parametrize("seed", range(28))
def test_boxes_are_those_of_all_pixels(seed, way, monkeypatch):
    monkeypatch.setattr(level_sets, "_MANY", 1 << 30 if way == "by meeting" else 0)
    heat, cells, count = made(seed)
    heat, steps = heat.numpy(), Steps(thresholds(count).numpy())
    level = steps.last_reached(heat)
    searched = level_set_boxes(heat, level, count, units=[level])
    found = bilinear_level_boxes(heat, cells, steps)
    assert rows(found, False) == rows(searched, False)
    for ours, theirs in zip(rows(found, True), rows(searched, True), strict=True):
        assert ours[-1] <= theirs[-1], "units are pixels that are there for sure"


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("seed", range(28))
def test_a_hit_is_what_the_best_iou_reaches(seed, largest):
    heat, cells, count = made(seed)
    truths = truths_of(heat, seed)
    best = best_iou_by_threshold(heat, truths, count, largest=largest)
    for ious in IOUS:
        expected = torch.stack([best >= iou for iou in ious], dim=1)
        for known in (cells, None):
            found = box_hits_by_threshold(heat, truths, ious, count, largest=largest, cells=known)
            assert torch.equal(found, expected.double())


def test_the_largest_of_several_is_measured_only_where_it_matters(monkeypatch):
    """Two blobs: which is larger decides only where one of them has the box, and is not certain."""
    cells = torch.zeros(1, 7, 7)
    cells[0, 1, 1], cells[0, 4:6, 4:6] = 1.0, 0.95
    heat, measured = normalize_maps(upsample(cells, (224, 224))), []
    real = box_curves.component_boxes
    monkeypatch.setattr(box_curves, "component_boxes", lambda *a, **k: (measured.append(a), real(*a, **k))[1])

    def reached(truth):
        measured.clear()
        return box_hits_by_threshold(heat, [torch.tensor([truth])], [0.5], largest=True, cells=(7, 7))

    assert not reached([200, 0, 224, 20]).any()
    assert not measured, "neither blob has it"
    small = reached([20, 20, 75, 75])
    assert 0 < len(measured) < 100
    assert torch.equal(
        small[:, 0] > 0, best_iou_by_threshold(heat, [torch.tensor([[20, 20, 75, 75]])], largest=True) >= 0.5
    )


def test_images_without_boxes_and_several_stacks(monkeypatch):
    heat, cells, _ = made(0, maps=5)
    truths = truths_of(heat, 3)
    truths[1] = torch.zeros(0, 4)
    whole = box_hits_by_threshold(heat, truths, [0.5], cells=cells)
    assert whole.isnan().any((1, 2)).tolist() == [False, True, False, False, False]
    monkeypatch.setattr(box_curves, "_STACKED_CELLS", 1)
    apart = box_hits_by_threshold(heat, truths, [0.5], cells=cells)
    torch.testing.assert_close(whole, apart, rtol=0, atol=0, equal_nan=True)


def test_a_constant_map_is_one_box_at_the_lowest_threshold():
    truth = [torch.tensor([[0, 0, 64, 64]])]
    found = box_hits_by_threshold(torch.zeros(1, 64, 64), truth, [0.5], 4, largest=True, cells=(2, 2))
    assert found.tolist() == [[[1, 0, 0, 0]]]


def test_cells_are_few_where_most_pixels_lie_between_their_centers():
    sizes = {(7, 224): True, (1, 224): True, (14, 224): False, (7, 28): False}
    assert {key: has_few_cells((key[0],) * 2, (key[1],) * 2) for key in sizes} == sizes


def test_the_pixels_next_to_centers():
    """Of two cells of four pixels the one stretch goes from end to end; of three another begins after the pixel 5."""
    assert bilinear_level_sets._pixels_at_centers(2, 8).tolist() == [0, 7]
    assert bilinear_level_sets._pixels_at_centers(3, 12).tolist() == [0, 5, 6, 11]
    assert bilinear_level_sets._pixels_at_centers(1, 5).tolist() == [0, 4]
