"""Figures do not depend on torch's default dtype, which Lightning sets while a step runs in half precision."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import camify
from camify import metrics
from camify.data import ShapesDataModule
from camify.metrics import functional

F32 = torch.float32
GENERATOR = torch.Generator().manual_seed(0)
HEAT = torch.rand(4, 24, 32, generator=GENERATOR, dtype=F32)
OTHER = torch.rand(4, 24, 32, generator=GENERATOR, dtype=F32)
IMAGES = torch.rand(4, 3, 24, 32, generator=GENERATOR, dtype=F32)
BOXES = [torch.tensor([[3.0, 2.0, 17.0, 13.0]], dtype=F32), torch.tensor([[0, 0, 9, 9], [20, 4, 30, 21]])] * 2
MASKS = OTHER > 0.6
SCORES, LABELS = torch.rand(4, 5, generator=GENERATOR, dtype=F32), torch.tensor([0, 3, 2, 4])
SHARES, LOWER = SCORES[:, 0], SCORES[:, 1]
NETWORK = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
HISTOGRAMS = functional.pixel_histograms(HEAT[0], MASKS[0], count=10)
RULE = functional.Normalizer("minmax", None)

CALLS = {
    "Calibration": None, "LevelBoxes": None, "Normalizer": None, "NORMALIZERS": None, "POINTING_TOLERANCE": None,
    "adcc": lambda f: f.adcc(SHARES, LOWER, SCORES[:, 2]),
    "area": lambda f: f.area(HEAT),
    "area_under_curve": lambda f: f.area_under_curve(SCORES),
    "average_drop": lambda f: f.average_drop(SHARES, LOWER),
    "average_precision": lambda f: f.average_precision(HISTOGRAMS),
    "average_ranks": lambda f: f.average_ranks(HEAT),
    "best_iou_at_threshold": lambda f: f.best_iou_at_threshold(HEAT[0], BOXES[0], 0.3),
    "best_iou_by_threshold": lambda f: f.best_iou_by_threshold(HEAT[0], BOXES[0]),
    "best_ious_by_threshold": lambda f: f.best_ious_by_threshold(HEAT[0], BOXES[1]),
    "black": lambda f: f.black(SHARES[:3], LOWER[:3] + 0.1),
    "blurred": lambda f: f.blurred(IMAGES),
    "bootstrap_interval": lambda f: f.bootstrap_interval(SHARES, resamples=20),
    "bootstrap_means": lambda f: f.bootstrap_means(SHARES, resamples=20),
    "box_agreement": lambda f: f.box_agreement(torch.cat(BOXES[:1] * 3)),
    "box_masks": lambda f: f.box_masks(BOXES, 24, 32),
    "box_ious": lambda f: list(f.box_ious(HEAT, BOXES).values()),
    "calibrate": lambda f: f.calibrate(HEAT, BOXES)[:3],
    "calibrated_accuracy": lambda f: f.calibrated_accuracy(f.calibrate(HEAT, BOXES), HEAT, BOXES),
    "cell_masks": lambda f: f.cell_masks(torch.tensor([0, 1, 2, 3]), 2, 24, 32),
    "center_box_ious": lambda f: f.center_box_ious(BOXES, 24, 32),
    "center_boxes": lambda f: f.center_boxes(24, 32),
    "center_gaussian": lambda f: f.center_gaussian(24, 32),
    "center_gaussian_bins": lambda f: f.center_gaussian_bins(24, 32, 10),
    "coherency": lambda f: f.coherency(HEAT, OTHER),
    "complexity": lambda f: f.complexity(HEAT),
    "correlation": lambda f: f.correlation(HEAT, OTHER),
    "correlations": lambda f: f.correlations(HEAT),
    "count_pixels": lambda f: f.count_pixels(f.pixel_bins(HEAT[0], 10), MASKS[0], None, 10),
    "deletion_curves": lambda f: f.deletion_curves(NETWORK, IMAGES, HEAT, LABELS, steps=5),
    "drift": lambda f: f.drift(HEAT, OTHER),
    "calibration_bins": lambda f: f.calibration_bins(SCORES[0].float().softmax(0), SCORES[0] > 0, 4),
    "confused_pairs": lambda f: f.confused_pairs(LABELS, LABELS.flip(0)),
    "expected_calibration_error": lambda f: f.expected_calibration_error(torch.tensor([[2, 1.5, 1]]).double()),
    "energy_share": lambda f: f.energy_share(HEAT, MASKS),
    "entropy": lambda f: f.entropy(HEAT),
    "flip_equivariance": lambda f: f.flip_equivariance(HEAT, OTHER),
    "hard_subset": lambda f: f.hard_subset(BOXES, [(24, 32)] * 4),
    "insertion_curves": lambda f: f.insertion_curves(NETWORK, IMAGES, HEAT, LABELS, steps=5),
    "box_hits_by_threshold": lambda f: f.box_hits_by_threshold(HEAT, BOXES, [0.3, 0.5]),
    "iou_with_best_box": lambda f: f.iou_with_best_box(BOXES[0], BOXES[1]),
    "label_ranks": lambda f: f.label_ranks(SCORES, LABELS),
    "level_set_boxes": lambda f: f.level_set_boxes(HEAT[0].numpy(), f.pixel_bins(HEAT[0], 10), 10).boxes,
    "mask_agreement": lambda f: f.mask_agreement(MASKS),
    "masked_images": lambda f: f.masked_images(IMAGES, HEAT),
    "masks_of_objects": lambda f: f.masks_of_objects(BOXES, 24, 32),
    "mosaic_plan": lambda f: f.mosaic_plan(LABELS),
    "mosaics": lambda f: f.mosaics(IMAGES, LABELS),
    "normalize_maps": lambda f: f.normalize_maps(HEAT, "ivr", 35.0),
    "peak": lambda f: f.peak(HEAT[0]),
    "percentiles": lambda f: f.percentiles(SCORES.flatten().double()),
    "pixel_bins": lambda f: f.pixel_bins(HEAT, 10),
    "pixel_histograms": lambda f: f.pixel_histograms(HEAT, MASKS),
    "pointing_distance": lambda f: f.pointing_distance((3, 4), MASKS[0]),
    "pointing_hits": lambda f: f.pointing_hits([(0, 0), None, (5, 5), (1, 1)], MASKS),
    "precision_recall": lambda f: f.precision_recall(HISTOGRAMS),
    "random_maps": lambda f: f.random_maps(2, 24, 32),
    "rank_correlations": lambda f: f.rank_correlations(HEAT),
    "resize_boxes": lambda f: f.resize_boxes(BOXES[1], (24, 32), (48, 50)),
    "shift_equivariance": lambda f: f.shift_equivariance(HEAT, OTHER, (3, 4)),
    "shifted": lambda f: f.shifted(IMAGES),
    "step_of": lambda f: f.step_of(24, 32),
    "thresholds": lambda f: f.thresholds(100),
    "tiled": lambda f: f.tiled(IMAGES),
    "top_area": lambda f: f.top_area(HEAT, 0.2),
}  # fmt: skip


def plain(value):
    """A result as arrays, with the kinds of numbers."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), np.asarray(value.double())
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return type(value).__name__, value


def assert_same(one, two):
    if isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
        return
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[1], two[1])


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def half(request):
    """Runs a function under a default of half precision."""

    def under(function):
        torch.set_default_dtype(request.param)
        try:
            return function()
        finally:
            torch.set_default_dtype(torch.float32)

    return under


def test_every_function_is_called():
    assert CALLS.keys() == set(functional.__all__)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call is not None])
def test_functions_give_the_same(name, half):
    expected = plain(CALLS[name](functional))
    assert_same(plain(half(lambda: CALLS[name](functional))), expected)


def updated(metric):
    """A metric after an update with what it asks for."""
    known = {
        "heat": HEAT, "maps": HEAT, "masks": MASKS, "boxes": BOXES, "objects": BOXES, "scores": SCORES,
        "labels": LABELS, "cells": LABELS % 4, "masked_scores": LOWER, "maps_of_masked": OTHER, "curves": SCORES,
    }  # fmt: skip
    names = list(inspect.signature(metric.update).parameters)
    if isinstance(metric, metrics.PointingGame):
        names.remove("labels")  # which go with a number of classes
    if len(names) > 1 and names[1] == "masked_scores":
        known["scores"] = SHARES
    metric.update(**{name: known[name] for name in names if name in known})
    return metric.compute()


@pytest.mark.parametrize("name", [name for name in metrics.__all__ if inspect.isclass(getattr(metrics, name))])
def test_metrics_give_the_same(name, half):
    kind = getattr(metrics, name)
    expected, result = updated(kind()), half(lambda: updated(kind()))
    items = [(expected, result)] if not isinstance(expected, dict) else [(expected[k], result[k]) for k in expected]
    for one, two in items:
        assert_same(plain(two), plain(one))


def test_data_maps_and_methods_give_the_same(half):
    from camify.boxes import BoxRule
    from camify.sources.demo_network import TinyVGG

    net = camify.convert(TinyVGG(4), head="direct", input_size=96, seed=0).eval()
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1), dtype=F32)

    def results():
        data = ShapesDataModule(train_count=2, val_count=2, test_count=2, batch_size=2)
        data.setup("validate")
        batch = next(iter(data.val_dataloader()))
        heats = [camify.explain(net, images, method=method) for method in ("cam", "gradcam", "reciprocam", "scorecam")]
        return [batch["image"], *batch["boxes"], *heats, *BoxRule().boxes(HEAT, (24, 32))]

    assert_same(plain(half(results)), plain(results()))
