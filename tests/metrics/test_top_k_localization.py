"""LocalizationAccuracy against its definition, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from camify.errors import ConfigError, DataError
from camify.metrics import LocalizationAccuracy, MaxBoxAccuracy
from camify.metrics.functional import best_iou_at_threshold, best_iou_by_threshold


def largest_box(mask):
    labels, _ = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    if not labels.any():
        return None
    sizes = [scipy.ndimage.binary_fill_holes(labels == number).sum() for number in range(1, labels.max() + 1)]
    rows, columns = scipy.ndimage.find_objects(labels)[int(np.argmax(sizes))]
    return columns.start, rows.start, columns.stop, rows.stop


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    heats = np.stack([scipy.ndimage.gaussian_filter(rng.random((30, 40)), 5) for _ in range(40)])
    heats -= heats.min((1, 2), keepdims=True)
    heats /= heats.max((1, 2), keepdims=True)
    boxes = []
    for index in range(40):
        corners = np.sort(rng.random((index % 3, 2, 2)), axis=1) * (37, 27)
        boxes.append(torch.from_numpy(np.concatenate([corners[:, 0] / 2, corners[:, 1] + 2.5], axis=1)))
    return torch.from_numpy(heats).float(), boxes, torch.randn(40, 9).round(decimals=1), torch.randint(9, (40,))


def by_definition(sample, threshold, bound):
    """GT-known; with the true class first; among the first five. Ties by class number."""
    hits = []
    for heat, truth, scores, label in zip(*sample, strict=True):
        if len(truth) == 0:
            continue
        box = largest_box(heat.numpy() >= np.float32(threshold))
        known = box is not None and max(iou(box, one) for one in truth.tolist()) >= bound
        ranking = sorted(range(9), key=lambda number: (-float(scores[number]), number))
        hits.append([known, known and ranking[0] == label, known and int(label) in ranking[:5]])
    return np.mean(hits, axis=0), len(hits)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.55, 1.0])
@pytest.mark.parametrize("bound", [0.3, 0.5])
def test_all_three_are_the_definition(sample, threshold, bound):
    metric = LocalizationAccuracy(threshold=threshold, iou_threshold=bound)
    metric.update(*sample)
    found = metric.compute()
    expected, count = by_definition(sample, threshold, bound)
    assert [float(found[name]) for name in ("gt_known", "top1", "top5")] == pytest.approx(expected.tolist())
    assert int(found["count"]) == count
    assert float(found["threshold"]) == pytest.approx(threshold)


def test_the_best_threshold_is_that_of_gt_known(sample):
    metric, curve = LocalizationAccuracy(iou_threshold=0.4), MaxBoxAccuracy(version=1, iou_thresholds=[0.4])
    metric.update(*sample)
    curve.update(*sample[:2])
    found, best = metric.compute(), curve.compute()
    assert found["gt_known"] == best["max_box_acc"]
    assert found["threshold"] == best["best_threshold"]
    assert found["center_gt_known"] == best["center_box_acc"]
    expected, _ = by_definition(sample, float(found["threshold"]), 0.4)
    assert [float(found[name]) for name in ("gt_known", "top1", "top5")] == pytest.approx(expected.tolist())
    for prefix in ("", "center_"):
        assert found[f"{prefix}top1"] <= found[f"{prefix}top5"] <= found[f"{prefix}gt_known"]


@pytest.mark.parametrize("largest", [False, True])
def test_one_threshold_is_one_point_of_the_curve(sample, largest):
    for heat, truth, *_ in zip(*sample, strict=True):
        if len(truth):
            curve = best_iou_by_threshold(heat, truth, 100, largest=largest)
            for number in (0, 1, 20, 55, 99):
                found = best_iou_at_threshold(heat, truth, number / 100, largest=largest)
                assert found == pytest.approx(float(curve[number]), abs=1e-12)


def test_fewer_classes_than_five(sample):
    heats, boxes, scores, labels = sample
    metric = LocalizationAccuracy(threshold=0.5)
    metric.update(heats, boxes, scores[:, :3], labels % 3)
    assert metric.compute()["top5"] == metric.compute()["gt_known"]


def test_no_image_gives_nan():
    found = LocalizationAccuracy(threshold=0.2)
    found.update(torch.rand(1, 4, 4), [torch.zeros(0, 4)], torch.rand(1, 2), torch.tensor([0]))
    figures = found.compute()
    assert figures["count"] == 0
    assert all(torch.isnan(one) for name, one in figures.items() if name != "count")


@pytest.mark.parametrize(
    "options",
    [{"threshold": -0.1}, {"threshold": 1.1}, {"iou_threshold": 0}, {"parity": "x"}, {"count": 0}, {"count": 1001}],
)
def test_options_that_cannot_work(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LocalizationAccuracy(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.rand(2, 3)}, "scores"),
        ({"scores": torch.full((1, 3), float("nan"))}, "scores"),
        ({"labels": torch.tensor([3])}, "labels"),
        ({"labels": torch.tensor([0.0])}, "labels"),
        ({"maps": torch.rand(1, 4, 4) * float("nan")}, "NaN"),
        ({"boxes": []}, "must be"),
        ({"boxes": [torch.tensor([[9, 9, 12, 12]])]}, "outside"),
    ],
)
def test_what_cannot_be_used(change, message):
    parts = {"maps": torch.rand(1, 4, 4), "boxes": [torch.tensor([[0, 0, 2, 2]])], "scores": torch.rand(1, 3)}
    metric = LocalizationAccuracy()
    with pytest.raises(DataError, match=message):
        metric.update(**{**parts, "labels": torch.tensor([0]), **change})
    assert metric.total == 0
