"""Baselines, the hard subset and bootstrap intervals."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from camify.errors import ConfigError
from camify.metrics import MaxBoxAccuracy, functional
from camify.metrics.functional import bootstrap_interval, center_gaussian, hard_subset, random_maps


def test_functions_still_answer_to_their_former_names():
    with pytest.warns(DeprecationWarning, match="called center_boxes now"):
        assert functional.centre_boxes is functional.center_boxes
    with pytest.raises(AttributeError, match="centre_of_nothing"):
        functional.centre_of_nothing  # noqa: B018


def test_the_blob_falls_with_the_distance_from_the_middle():
    blob = center_gaussian(9, 13)
    assert blob.shape == (9, 13)
    assert (float(blob.max()), float(blob.min())) == (1, 0)
    y, x = np.mgrid[:9, :13]
    distance = ((y - 4) / 4.5) ** 2 + ((x - 6) / 6.5) ** 2
    order = np.argsort(distance.ravel(), kind="stable")
    assert (np.diff(blob.numpy().ravel()[order]) <= 1e-6).all()
    expected = np.exp(-distance / (2 * 0.5**2))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(blob.numpy(), expected, atol=1e-6)


def test_the_width_of_the_blob_hardly_matters_for_boxes():
    truth = [torch.tensor([[10, 12, 50, 40]])] * 3
    accuracies = []
    for std in (0.3, 0.5, 1.0):
        metric = MaxBoxAccuracy(iou_thresholds=[0.5])
        metric.update(center_gaussian(56, 64, std).expand(3, -1, -1), truth)
        accuracies.append(float(metric.compute()["max_box_acc"]))
    assert accuracies == [1, 1, 1]


def test_random_maps_know_nothing_and_repeat():
    maps = random_maps(5, 20, 30, seed=4)
    assert maps.shape == (5, 20, 30)
    assert maps.amin((1, 2)).tolist() == [0] * 5
    assert maps.amax((1, 2)).tolist() == pytest.approx([1] * 5)
    assert torch.equal(maps, random_maps(5, 20, 30, seed=4))
    assert not torch.equal(maps, random_maps(5, 20, 30, seed=5))


def test_hard_images_are_those_off_the_center():
    boxes = [torch.tensor([[10, 10, 30, 30]]), torch.tensor([[0, 0, 8, 8]]), torch.zeros(0, 4)]
    boxes.append(torch.tensor([[0, 0, 8, 8], [5, 5, 35, 35]]))
    assert hard_subset(boxes, [(40, 40)] * 4).tolist() == [False, True, False, False]
    assert hard_subset(boxes, [(40, 40)] * 4, iou=0.01).tolist() == [False] * 4


@pytest.mark.data
def test_hard_photographs_are_on_the_list(photos):
    """The list was made with centered boxes of the image's own proportions only, so that it is longer."""
    listed = set((photos / "hard.txt").read_text(encoding="utf-8").split())
    boxes, sizes = {}, {}
    with (photos / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = row["image"]
            boxes.setdefault(name, []).append([float(row[key]) for key in ("x0", "y0", "x1", "y1")])
            if name not in sizes:
                with Image.open(photos / name) as image:
                    sizes[name] = (image.height, image.width)
    names = sorted(boxes)
    found = hard_subset([torch.tensor(boxes[name]) for name in names], [sizes[name] for name in names])
    ours = {name for name, hard in zip(names, found.tolist(), strict=True) if hard}
    assert ours <= listed
    assert len(ours) > 0.7 * len(listed)


def test_interval_of_a_mean_is_the_normal_one():
    values = torch.randn(400).double()
    low, high = bootstrap_interval(values, resamples=4000)
    error = float(values.std()) / 20
    expected = scipy.stats.norm.interval(0.95, float(values.mean()), error)
    assert (low, high) == pytest.approx(expected, abs=0.15 * error)
    assert (low, high) == bootstrap_interval(values, resamples=4000)
    assert bootstrap_interval(values, resamples=500, confidence=0.5)[0] > low


def test_interval_of_a_figure_over_thresholds():
    """A row of hits per image; the figure is the best column of the mean."""
    hits = torch.rand(200, 5) < torch.tensor([0.1, 0.2, 0.6, 0.3, 0.2])
    low, high = bootstrap_interval(hits, torch.max)
    assert low < float(hits.double().mean(dim=0).max()) < high
    assert high - low < 0.2


def test_interval_of_little():
    assert np.isnan(bootstrap_interval(torch.zeros(0))).all()
    assert np.isnan(bootstrap_interval(torch.full((3,), float("nan")))).all()
    assert bootstrap_interval(torch.tensor([0.3])) == pytest.approx((0.3, 0.3))
    values = torch.tensor([1.0, float("nan"), 1.0])
    assert bootstrap_interval(values) == (1, 1)
    assert bootstrap_interval(torch.stack([values, values], dim=1)[:2], torch.max) == (1, 1)
    for options in ({"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            bootstrap_interval(values, **options)
