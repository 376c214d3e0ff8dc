"""Normalizers by hand, and the calibration against a search of everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from camify.errors import ConfigError, DataError
from camify.metrics import MaxBoxAccuracy
from camify.metrics.functional import NORMALIZERS, Normalizer, calibrate, calibrated_accuracy, normalize_maps


def by_hand(heat, name, percentile):
    """rethinkingCAM and GenDisc/IVR, one map."""
    heat = heat.astype(float)
    if name == "minmax":
        return (heat - heat.min()) / (heat.max() - heat.min())
    if name == "max":
        return np.maximum(heat, 0) / heat.max()
    if name == "pas":
        heat = heat - heat.min()
        return np.minimum(heat / np.percentile(heat, percentile), 1)
    heat = np.maximum(heat - np.percentile(heat, percentile), 0)
    return heat / heat.max()


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_every_normalizer_by_hand(normalizer):
    maps = torch.randn(4, 11, 13)
    found = normalize_maps(maps, *normalizer)
    expected = [by_hand(heat, *normalizer) for heat in maps.numpy()]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    half = normalize_maps(maps.half(), *normalizer)
    assert half.dtype == torch.float32
    assert float((half - found).abs().max()) < 0.01


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_maps_without_contrast_or_evidence_give_zeros(normalizer):
    assert normalize_maps(torch.full((1, 4, 4), 0.3), *normalizer).abs().max() == 0
    if normalizer.name == "max":
        assert normalize_maps(-torch.rand(1, 4, 4) - 1, *normalizer).abs().max() == 0
    flat = torch.zeros(1, 4, 4)
    flat[0, 0, 0] = 1
    assert torch.isfinite(normalize_maps(flat, *normalizer)).all()


@pytest.fixture(scope="module")
def sample():
    """Blobs on boxes, on a floor that differs from image to image, so that the normalizer matters."""
    generator = torch.Generator().manual_seed(0)
    maps, boxes = [], []
    for index in range(30):
        x, y = (int(torch.randint(2, 20, (1,), generator=generator)) for _ in range(2))
        heat = torch.zeros(1, 1, 40, 48)
        heat[..., y : y + 14, x : x + 18] = 1
        heat = F.avg_pool2d(heat, 7, 1, 3)[0, 0] + 0.05 * torch.randn(40, 48, generator=generator)
        maps.append(heat - 0.6 * torch.rand(1, generator=generator))
        boxes.append(torch.tensor([[x, y, x + 18, y + 14]])[: 0 if index % 10 == 9 else 1])
    return torch.stack(maps), boxes


@pytest.mark.parametrize("largest", [True, False])
def test_the_best_of_all_points_is_chosen(sample, largest):
    maps, boxes = sample
    found = calibrate(maps, boxes, largest=largest, iou_thresholds=(0.5, 0.7), count=20)
    best = (-1.0, None, None)
    for normalizer in NORMALIZERS:
        metric = MaxBoxAccuracy(1 if largest else 2, iou_thresholds=(0.5, 0.7), count=20)
        metric.update(normalize_maps(maps, *normalizer), boxes)
        curve = metric.compute()["curve"].double().mean(dim=0)
        np.testing.assert_allclose(found.curves[normalizer].numpy(), curve.numpy(), atol=1e-6)
        for number, height in enumerate(curve.tolist()):
            if height > best[0] + 1e-6:
                best = (height, normalizer, number / 20)
    assert found.accuracy == pytest.approx(best[0], abs=1e-6)
    assert found.normalizer == best[1]
    assert found.threshold == pytest.approx(best[2])


def test_the_other_half_agrees(sample):
    maps, boxes = sample
    fitted = calibrate(maps[:15], boxes[:15])
    own = calibrated_accuracy(fitted, maps[:15], boxes[:15])
    assert len(own) == 14
    assert float(own.mean()) == pytest.approx(fitted.accuracy)
    other = calibrated_accuracy(fitted, maps[15:], boxes[15:])
    assert float(other.mean()) > 0.7
    fixed = fitted._replace(normalizer=Normalizer("minmax"), threshold=0.01)
    assert float(calibrated_accuracy(fixed, maps[15:], boxes[15:]).mean()) < float(other.mean())


def test_what_cannot_be_used(sample):
    maps, boxes = sample
    for name, percentile in (("min", None), ("ivr", None), ("max", 3.0), ("pas", 101.0)):
        with pytest.raises(ConfigError):
            normalize_maps(maps, name, percentile)
    with pytest.raises(DataError, match="NaN"):
        normalize_maps(maps * float("nan"))
    with pytest.raises(DataError, match="No image"):
        calibrate(maps, [torch.zeros(0, 4)] * 30)
    with pytest.raises(DataError, match="box lists"):
        calibrate(maps, boxes[:3])
