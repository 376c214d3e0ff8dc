"""Pointing, energy and grid pointing against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camify.errors import ConfigError, DataError
from camify.metrics import EnergyPointingGame, GridPointingGame, PointingGame
from camify.metrics.functional import box_masks, cell_masks, energy_share, mosaics, peak, pointing_distance


def covered(boxes, height, width):
    mask = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            mask[y, x] = any(x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x0, y0, x1, y1 in boxes.tolist())
    return mask


def random_boxes(rng, height, width, most=3):
    count = int(rng.integers(0, most + 1))
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width - 3, height - 3)
    return torch.from_numpy(np.concatenate([corners[:, 0], corners[:, 1] + 2.5], axis=1))


# --- pointing -------------------------------------------------------------------------------------------------


def hit_by_loops(heat, mask, tolerance):
    """TorchRay's rule: any pixel of the object nearer than the tolerance."""
    best = max((heat[y, x], -y, -x) for y in range(heat.shape[0]) for x in range(heat.shape[1]))
    py, px = -best[1], -best[2]
    return any(
        (y - py) ** 2 + (x - px) ** 2 < tolerance**2 or (y, x) == (py, px)
        for y, x in zip(*np.nonzero(mask), strict=True)
    )


@pytest.mark.parametrize("tolerance", [0, 3, 15])
def test_pointing_is_a_search_of_all_pixels(tolerance):
    rng = np.random.default_rng(tolerance)
    heats = (rng.random((30, 33, 41)) * 40).round()
    boxes = [random_boxes(rng, 33, 41) for _ in heats]
    labels = torch.arange(30) % 3
    metric = PointingGame(tolerance, num_classes=4)
    metric.update(torch.from_numpy(heats), boxes, labels)
    found = metric.compute()
    masks = [covered(one, 33, 41) for one in boxes]
    hits = [
        (hit_by_loops(heat, mask, tolerance), label)
        for heat, mask, label in zip(heats, masks, labels.tolist(), strict=True)
        if mask.any()
    ]
    assert int(found["count"]) == len(hits) < 30
    assert float(found["accuracy"]) == pytest.approx(np.mean([hit for hit, _ in hits]))
    per_class = [np.mean([hit for hit, label in hits if label == number]) for number in range(3)]
    assert found["per_class"][:3].tolist() == pytest.approx(per_class)
    assert torch.isnan(found["per_class"][3])
    assert float(found["class_mean"]) == pytest.approx(np.mean(per_class))
    masked = PointingGame(tolerance)
    masked.update(torch.from_numpy(heats), torch.from_numpy(np.stack(masks)))
    assert masked.compute()["accuracy"] == found["accuracy"]
    assert masked.compute()["center_accuracy"] == found["center_accuracy"]


def test_the_tolerance_itself_is_too_far():
    heat = torch.zeros(1, 60, 60)
    heat[0, 30, 20] = 1
    for left, hit in ((34, 1.0), (35, 0.0)):  # 14 and 15 pixels away
        metric = PointingGame()
        metric.update(heat, [torch.tensor([[left, 0, 60, 60]])])
        assert float(metric.compute()["accuracy"]) == hit


def test_the_first_of_equal_peaks_points_and_a_constant_map_nowhere():
    assert peak(torch.tensor([[0, 2, 1], [2, 0, 0]])) == (0, 1)
    assert peak(torch.full((3, 3), 0.7)) is None
    metric = PointingGame()
    metric.update(torch.ones(1, 8, 8), [torch.tensor([[0, 0, 8, 8]])])
    assert metric.compute()["accuracy"] == 0
    assert metric.compute()["center_accuracy"] == 1


def test_distance_to_nothing_is_infinite():
    assert pointing_distance((0, 0), torch.zeros(2, 2, dtype=torch.bool)) == float("inf")
    assert pointing_distance((0, 0), torch.tensor([[False, False], [False, True]])) == pytest.approx(2**0.5)


# --- energy ---------------------------------------------------------------------------------------------------


def test_energy_is_a_sum_over_pixels():
    rng = np.random.default_rng(0)
    heats = rng.standard_normal((20, 13, 19)).astype(np.float32)
    boxes = [random_boxes(rng, 13, 19) for _ in heats]
    metric = EnergyPointingGame()
    metric.update(torch.from_numpy(heats), boxes)
    found = metric.compute()
    shares, areas = [], []
    for heat, one in zip(heats.astype(float), boxes, strict=True):
        mask = covered(one, 13, 19)
        if mask.any():
            shares.append(heat[mask & (heat > 0)].sum() / heat[heat > 0].sum())
            areas.append(mask.mean())
    assert int(found["count"]) == len(shares) < 20
    assert float(found["energy"]) == pytest.approx(np.mean(shares), abs=1e-6)
    assert float(found["uniform_energy"]) == pytest.approx(np.mean(areas), abs=1e-6)


def test_a_map_without_positive_evidence_counts_as_zero():
    maps, masks = -torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    assert energy_share(maps, masks).tolist() == [0]


def test_rows_are_rows():
    """The authors' file indexes [x, y]: a wide box on a tall map tells."""
    heat = torch.zeros(1, 10, 4)
    heat[0, 8, 1] = 1
    metric = EnergyPointingGame()
    metric.update(heat, [torch.tensor([[0, 7, 4, 10]])])
    assert metric.compute()["energy"] == 1


def test_pixels_of_boxes():
    rng = np.random.default_rng(2)
    boxes = [random_boxes(rng, 11, 9) + torch.tensor([-1.5, -1, 2, 1.2]) for _ in range(20)]
    for mask, one in zip(box_masks(boxes, 11, 9), boxes, strict=True):
        np.testing.assert_array_equal(mask.numpy(), covered(one, 11, 9))
    thin = box_masks([torch.tensor([[2.6, 1.0, 3.1, 3.0]])], 5, 5)[0]
    assert torch.nonzero(thin).tolist() == [[1, 2], [2, 2]]


# --- grid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [2, 3])
def test_grid_pointing_is_a_sum_over_pixels(grid):
    rng = np.random.default_rng(grid)
    heats = rng.standard_normal((10, 6 * grid, 4 * grid))
    cells = rng.integers(0, grid**2, 10)
    metric = GridPointingGame(grid)
    metric.update(torch.from_numpy(heats), torch.from_numpy(cells))
    shares = []
    for heat, cell in zip(heats, cells, strict=True):
        row, column = divmod(int(cell), grid)
        inside = np.clip(heat[6 * row : 6 * row + 6, 4 * column : 4 * column + 4], 0, None).sum()
        shares.append(inside / np.clip(heat, 0, None).sum())
    found = metric.compute()
    assert float(found["grid_pointing"]) == pytest.approx(np.mean(shares), abs=1e-6)
    assert float(found["chance"]) == pytest.approx(1 / grid**2)
    assert int(found["count"]) == 10


def test_a_constant_map_gets_chance_and_a_negative_one_nothing():
    metric = GridPointingGame(3)
    metric.update(torch.ones(9, 6, 6), torch.arange(9))
    assert float(metric.compute()["grid_pointing"]) == pytest.approx(1 / 9)
    metric.update(-torch.ones(9, 6, 6), torch.arange(9))
    assert float(metric.compute()["grid_pointing"]) == pytest.approx(1 / 18)


@pytest.mark.parametrize("grid", [2, 3])
def test_mosaics_show_different_classes_and_every_image_once(grid):
    labels = torch.arange(100) % (grid**2 + 2)
    images = (torch.arange(100)[:, None, None, None] * 100 + torch.arange(12).view(1, 1, 4, 3)).float()
    built, classes = mosaics(images, labels, grid, seed=1)
    assert built.shape == (len(classes), 1, 4 * grid, 3 * grid)
    used = []
    for mosaic, cells in zip(built, classes.tolist(), strict=True):
        assert len(set(cells)) == grid**2
        for cell, label in enumerate(cells):
            row, column = divmod(cell, grid)
            tile = mosaic[0, 4 * row : 4 * row + 4, 3 * column : 3 * column + 3]
            number = int(tile[0, 0]) // 100
            assert torch.equal(tile, images[number, 0])
            assert int(labels[number]) == label
            used.append(number)
    assert len(set(used)) == len(used)
    assert len(built) == 100 // grid**2  # equal classes: all that is possible
    again, _ = mosaics(images, labels, grid, seed=1)
    other, _ = mosaics(images, labels, grid, seed=2)
    assert torch.equal(built, again)
    assert not torch.equal(built, other)
    assert len({tuple(sorted(cells)) for cells in classes.tolist()}) > 1
    assert cell_masks(torch.tensor([0]), grid, 4 * grid, 3 * grid).sum() == 12


def test_as_many_mosaics_as_the_rarest_classes_allow():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 4 + [3] * 3 + [4] * 2)
    built, _ = mosaics(torch.zeros(24, 3, 2, 2), labels)
    assert len(built) == 4  # 5 would need 20 images, no more than 5 of each class: 5 + 5 + 4 + 3 + 2 = 19


# --- what cannot be used ----------------------------------------------------------------------------------------


NAN = torch.full((1, 4, 4), float("nan"))
BOX = [torch.tensor([[0, 0, 2, 2]])]


@pytest.mark.parametrize(
    ("metric", "parts", "message"),
    [
        (PointingGame(), (NAN, BOX), "NaN"),
        (PointingGame(), (torch.ones(2, 4, 4), BOX), "must be"),
        (PointingGame(), (torch.ones(1, 4, 4), [torch.tensor([[0, 0, 0, 2]])]), "image 0"),
        (PointingGame(), (torch.ones(1, 4, 4), [torch.tensor([[5, 0, 9, 2]])]), "outside"),
        (PointingGame(), (torch.ones(1, 4, 4), torch.ones(1, 4, 4)), "bool"),
        (PointingGame(), (torch.ones(1, 4, 4), BOX, torch.tensor([0])), "num_classes"),
        (PointingGame(num_classes=2), (torch.ones(1, 4, 4), BOX), "num_classes"),
        (PointingGame(num_classes=2), (torch.ones(1, 4, 4), BOX, torch.tensor([2])), "labels"),
        (PointingGame(num_classes=2), (torch.ones(1, 4, 4), BOX, torch.tensor([0.0])), "labels"),
        (EnergyPointingGame(), (NAN, BOX), "NaN"),
        (GridPointingGame(), (NAN, torch.tensor([0])), "NaN"),
        (GridPointingGame(), (torch.ones(1, 5, 4), torch.tensor([0])), "Upsample"),
        (GridPointingGame(), (torch.ones(1, 4, 4), torch.tensor([4])), "cells"),
        (GridPointingGame(), (torch.ones(1, 4, 4), torch.tensor([0, 1])), "cells"),
    ],
)
def test_what_cannot_be_used(metric, parts, message):
    with pytest.raises(DataError, match=message):
        metric.update(*parts)


def test_options_and_mosaics_that_cannot_be():
    for make in (lambda: PointingGame(-1), lambda: PointingGame(num_classes=0), lambda: GridPointingGame(1)):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(DataError, match="needs 4 classes"):
        mosaics(torch.zeros(6, 3, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(DataError, match="labels"):
        mosaics(torch.zeros(6, 3, 2, 2), torch.zeros(5))
