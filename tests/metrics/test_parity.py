"""parity="wsolevaluation": golden values of that project, and its algorithm written down again, level by level.

clovaai/wsolevaluation cannot be imported on today's NumPy. What its code does is stated here from scratch: 8-bit maps,
strictly above the whole part of threshold times maximum, contours of holes too, boxes that end before the last pixel,
whole-number ground truth, corners that count.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch

from camify.metrics import LocalizationAccuracy, MaxBoxAccuracy
from camify.metrics.functional import best_iou_at_threshold, best_iou_by_threshold, resize_boxes

PARITY = "wsolevaluation"


def boxes_at(heat, threshold, every):
    """The boxes of one level, as that code makes them."""
    height, width = heat.shape
    bits = (heat.astype(np.float64) * 255).astype(np.uint8)
    above = (bits > int(threshold * float(bits.max()))).astype(np.uint8)
    contours, _ = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [(0, 0, 0, 0)]
    if not every:
        areas = [cv2.contourArea(contour) for contour in contours]
        contours = [contours[areas.index(max(areas))]]
    found = []
    for contour in contours:
        x, y, wide, high = cv2.boundingRect(contour)
        found.append((x, y, min(x + wide, width - 1), min(y + high, height - 1)))
    return found


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(area) - width * height)


def best_ious(heat, truth, thresholds, every):
    truth = [tuple(int(value) for value in box) for box in truth]
    return [max(iou(box, one) for box in boxes_at(heat, t, every) for one in truth) for t in thresholds]


def smooth(rng, height, width, cells):
    small = np.maximum(rng.standard_normal((cells, cells)), -0.5).astype(np.float32)
    heat = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return (heat - heat.min()) / (heat.max() - heat.min())


def maps(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(size) for size in rng.integers(3, 40, 2))
    noise = rng.random((height, width)).astype(np.float32)
    yield smooth(rng, height, width, int(rng.integers(2, 6)))
    yield noise
    yield (noise * 4).round() / 4
    yield (noise > 0.6).astype(np.float32) * np.float32(rng.random())
    yield scipy.ndimage.gaussian_filter(noise, 2)
    yield np.full_like(noise, rng.random())
    yield np.zeros_like(noise)


def truth_for(rng, height, width):
    count = int(rng.integers(1, 4))
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width - 1.5, height - 1.5)
    return np.concatenate([corners[:, 0], corners[:, 1] + 1.5], axis=1)


# --- golden values of evaluation_test.py --------------------------------------------------------------------


def test_golden_iou():
    """Boxes (1, 2, 5, 6) and (3, 1, 4, 5) share 8 of 27 pixels."""
    heat = torch.zeros(10, 10)
    heat[2:6, 1:5] = 1  # its box in that convention is (1, 2, 5, 6)
    found = best_iou_by_threshold(heat, torch.tensor([[3, 1, 4, 5]]), 5, parity=PARITY)
    assert found.tolist() == [8 / 27] * 5


def test_golden_resized_box():
    found = resize_boxes(torch.tensor([[1, 2, 4, 3]]), (20, 10), (10, 35))
    assert found.trunc().tolist() == [[3, 1, 14, 1]]
    assert resize_boxes(torch.tensor([[1, 2, 1, 2]]), (3, 3), (3, 3)).tolist() == [[1, 2, 1, 2]]


UNIMODAL = [[0.0] * 5, [0.0, 0.4, 0.4, 0.4, 0.6], [0.0, 0.4, 1.0, 0.8, 0.6], [0.0, 0.4, 0.4, 0.4, 0.6]]
MULTIMODAL = [
    [0.4, 0.0, 0.2, 0.2, 0.2],
    [0.4, 0.4, 0.0, 0.4, 0.0],
    [0.0, 0.0, 0.0, 0.4, 0.0],
    [1.0, 0.6, 0.8, 0.2, 0.2],
]


@pytest.mark.parametrize(
    ("heat", "boxes"),
    [
        (UNIMODAL, [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]]),
        (MULTIMODAL, [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]]),
        ([[0.0] * 3] * 3, [[0, 0, 0, 0]] * 5),
    ],
)
def test_golden_boxes(heat, boxes):
    """The box of each threshold is the golden one: the IoU with it is 1, and less with any other box nearby."""
    heat = torch.tensor(heat, dtype=torch.float64)
    for number, box in enumerate(boxes):
        found = best_iou_by_threshold(heat, torch.tensor([box]), 5, largest=True, parity=PARITY)
        assert found[number] == 1
        assert boxes_at(heat.numpy(), number * 0.2, every=False) == [tuple(box)]


# --- the algorithm, on thousands of maps --------------------------------------------------------------------


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 10))])
def test_every_iou_is_bit_for_bit_that_of_the_reference(block, largest):
    """2 x 10 x 30 x 7 = 4,200 maps."""
    for seed in range(block * 30, block * 30 + 30):
        rng = np.random.default_rng(1000 + seed)
        count = int(rng.integers(1, 60))
        thresholds = [number * (1 / count) for number in range(count)]
        for heat in maps(seed):
            truth = truth_for(rng, *heat.shape)
            found = best_iou_by_threshold(
                torch.from_numpy(heat), torch.from_numpy(truth), count, largest=largest, parity=PARITY
            )
            assert found.tolist() == best_ious(heat, truth, thresholds, every=not largest)


@pytest.mark.parametrize("largest", [False, True])
def test_a_thousand_thresholds_at_full_size(largest):
    rng = np.random.default_rng(5)
    thresholds = list(np.arange(0, 1, 0.001))
    for cells in (5, 14):
        heat, truth = smooth(rng, 224, 224, cells), truth_for(rng, 224, 224)
        found = best_iou_by_threshold(
            torch.from_numpy(heat), torch.from_numpy(truth), 1000, largest=largest, parity=PARITY
        )
        assert found.tolist() == best_ious(heat, truth, thresholds, every=not largest)


@pytest.mark.parametrize("largest", [False, True])
def test_one_threshold_is_one_point_of_the_curve(largest):
    for seed in range(20):
        for heat in maps(seed):
            truth = truth_for(np.random.default_rng(seed), *heat.shape)
            for threshold in (0.0, 0.2, 0.5, 0.95):
                found = best_iou_at_threshold(
                    torch.from_numpy(heat), torch.from_numpy(truth), threshold, largest=largest, parity=PARITY
                )
                assert found == best_ious(heat, truth, [threshold], every=not largest)[0]


@pytest.mark.parametrize("version", [1, 2])
def test_the_metric_counts_as_the_reference_does(version):
    rng = np.random.default_rng(version)
    heats = np.stack([smooth(rng, 56, 48, 4) for _ in range(24)])
    truths = [truth_for(rng, 56, 48) for _ in heats]
    metric = MaxBoxAccuracy(version, parity=PARITY, count=100)
    metric.update(torch.from_numpy(heats), [torch.from_numpy(truth) for truth in truths])
    found = metric.compute()
    levels = [0.5] if version == 1 else [0.3, 0.5, 0.7]
    thresholds = np.arange(0, 1, 0.01)
    ious = np.array([best_ious(h, t, thresholds, version == 2) for h, t in zip(heats, truths, strict=True)])
    curve = np.array([(ious >= level).mean(axis=0) for level in levels])
    np.testing.assert_allclose(found["curve"].numpy(), curve, atol=1e-7)
    assert float(found["max_box_acc"]) == pytest.approx(curve.max(axis=1).mean())


def test_top_1_localization_in_parity():
    heat = torch.zeros(1, 20, 20)
    heat[0, 5:12, 5:12] = 1
    metric = LocalizationAccuracy(threshold=0.2, iou_threshold=1.0, parity=PARITY)
    metric.update(heat, [torch.tensor([[5, 5, 12, 12]])], torch.tensor([[0.1, 0.9]]), torch.tensor([1]))
    assert metric.compute()["top1"] == 1


def test_how_far_the_clean_definition_is_from_the_reference():
    """Not far, on smooth maps."""
    rng = np.random.default_rng(0)
    heats = torch.from_numpy(np.stack([smooth(rng, 224, 224, 7) for _ in range(40)]))
    truths = [torch.from_numpy(truth_for(rng, 224, 224)) for _ in heats]
    figures = []
    for parity in (None, PARITY):
        metric = MaxBoxAccuracy(parity=parity)
        metric.update(heats, truths)
        figures.append(float(metric.compute()["max_box_acc"]))
    assert abs(figures[0] - figures[1]) < 0.05
