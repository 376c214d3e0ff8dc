"""PixelAveragePrecision against a ranking of the pixels, and the golden values of wsolevaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camify.errors import ConfigError, DataError
from camify.metrics import PixelAveragePrecision
from camify.metrics.functional import average_precision, center_gaussian, pixel_histograms, precision_recall


def histograms_by_numpy(heat, mask, ignore, count):
    """As wsolevaluation counts: np.histogram over 0, 1/count, ... 1, 2."""
    edges = np.append(np.arange(0, 1, 1 / count)[:count], (1.0, 2.0))
    beside = ~mask & ~ignore
    return np.stack([np.histogram(heat[beside], bins=edges)[0], np.histogram(heat[mask], bins=edges)[0]])


def average_precision_by_ranking(values, on):
    """Sum of precision times step of recall over every value that occurs, from the highest."""
    area, before = 0.0, 0.0
    for value in np.unique(values)[::-1]:
        reached = values >= value
        recall = on[reached].sum() / on.sum()
        area += on[reached].mean() * (recall - before)
        before = recall
    return area


def sample(seed, shape=(5, 17, 23), levels=None):
    rng = np.random.default_rng(seed)
    heat = rng.random(shape).astype(np.float32)
    if levels:
        heat = (heat * levels).round() / np.float32(levels)
    return heat, rng.random(shape) < 0.3, rng.random(shape) < 0.2


def updated(metric, *parts):
    metric.update(*(torch.from_numpy(part) for part in parts))
    return metric.compute()


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_histograms_are_numpys(count, dtype):
    for seed in range(5):
        heat, mask, ignore = sample(seed, levels=[None, 10, 100, 1000, 7][seed])
        heat = heat.astype(dtype)
        found = pixel_histograms(*(torch.from_numpy(part) for part in (heat, mask, ignore)), count=count)
        np.testing.assert_array_equal(found.numpy(), histograms_by_numpy(heat.astype(float), mask, ignore, count))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_at_an_edge_belongs_to_the_bin_that_begins_there(dtype):
    for count in (3, 49, 100, 364, 984, 1000):  # 364 and 984 have edges beside the whole parts of the product
        edges = np.append(np.arange(count) * (1 / count), 1.0)
        near = np.concatenate([edges, np.nextafter(edges[1:], 0), np.nextafter(edges[:-1], 1)]).astype(dtype)
        found = pixel_histograms(torch.from_numpy(near), torch.ones(len(near), dtype=torch.bool), count=count)
        expected = np.bincount(np.searchsorted(edges, near.astype(float), side="right") - 1, minlength=count + 1)
        np.testing.assert_array_equal(found[1].numpy(), expected)


def test_metric_is_the_ranking():
    heat, mask, ignore = sample(3)
    heat = (heat.astype(float) * 50).round() * (1 / 50)  # at the edges themselves, so that bins lose nothing
    found = updated(PixelAveragePrecision(count=50), heat, mask, ignore)
    kept = mask | ~ignore
    expected = average_precision_by_ranking(heat[kept], mask[kept])
    assert float(found["px_ap"]) == pytest.approx(expected, abs=1e-6)
    assert float(found["constant_ap"]) == pytest.approx(mask[kept].mean(), abs=1e-6)
    blob = np.broadcast_to(np.floor(center_gaussian(17, 23).numpy() * 50), heat.shape)
    assert float(found["center_gaussian_ap"]) == pytest.approx(
        average_precision_by_ranking(blob[kept], mask[kept]), abs=1e-6
    )
    assert found["precision"].shape == found["recall"].shape == (51,)
    assert int(found["count"]) == 5


def test_pixels_are_pooled_over_images():
    """Not the mean of the images' own figures."""
    heat, mask, _ = sample(4)
    heat = (heat.astype(float) * 1000).round() * (1 / 1000)
    whole = updated(PixelAveragePrecision(), heat, mask)["px_ap"]
    single = [updated(PixelAveragePrecision(), heat[[i]], mask[[i]])["px_ap"] for i in range(5)]
    assert float(whole) == pytest.approx(average_precision_by_ranking(heat.ravel(), mask.ravel()), abs=1e-6)
    assert float(whole) != pytest.approx(float(torch.stack(single).mean()), abs=1e-6)


@pytest.mark.parametrize("ignored", [0.0, 1.0])
def test_golden_perfect_map(ignored):
    """100.0 whatever the map says where it is not counted."""
    _, mask, ignore = sample(1)
    heat = np.where(ignore & ~mask, ignored, mask).astype(np.float32)
    assert updated(PixelAveragePrecision(), heat, mask, ignore)["px_ap"] == 1


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_golden_constant_map(value):
    """The object's share of the pixels."""
    _, mask, ignore = sample(2)
    heat = np.full(mask.shape, value, np.float32)
    found = updated(PixelAveragePrecision(), heat, mask, ignore)
    assert float(found["px_ap"]) == pytest.approx(mask.sum() / (mask | ~ignore).sum(), abs=1e-6)


def test_without_an_object_there_is_no_figure():
    for parts in ([np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool)], [np.zeros((0, 4, 4), np.float32)] * 2):
        found = updated(PixelAveragePrecision(), *parts)
        for key in ("px_ap", "center_gaussian_ap", "constant_ap"):
            assert torch.isnan(found[key])
    assert torch.isnan(PixelAveragePrecision().histograms.double().sum() / 0)


def test_masks_of_zeros_and_ones():
    heat, mask, ignore = sample(6)
    whole = updated(PixelAveragePrecision(), heat, mask, ignore)
    numbers = updated(PixelAveragePrecision(), heat, mask.astype(np.uint8), ignore.astype(np.float32))
    assert whole["px_ap"] == numbers["px_ap"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([torch.full((1, 2, 2), float("nan")), torch.ones(1, 2, 2)], r"\[0, 1\]"),
        ([torch.full((1, 2, 2), 1.5), torch.ones(1, 2, 2)], r"\[0, 1\]"),
        ([torch.ones(1, 2, 2), torch.ones(1, 2, 3)], "masks"),
        ([torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.ones(2, 2)], "ignore"),
        ([torch.ones(1, 2, 2), torch.full((1, 2, 2), 255)], "0 and 1"),
        ([torch.ones(2, 2), torch.ones(2, 2)], "must be"),
    ],
)
def test_what_cannot_be_used(parts, message):
    metric = PixelAveragePrecision()
    with pytest.raises(DataError, match=message):
        metric.update(*parts)
    assert metric.total == 0
    with pytest.raises(ConfigError, match="count"):
        PixelAveragePrecision(count=0)


def test_precision_and_recall_by_hand():
    histograms = torch.tensor([[1, 1, 0], [0, 1, 1]])
    precision, recall = precision_recall(histograms)
    assert precision.tolist() == [1, 2 / 3, 0.5]
    assert recall.tolist() == [0.5, 1, 1]
    assert float(average_precision(histograms)) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
