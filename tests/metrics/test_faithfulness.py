"""Faithfulness metrics against loops, SciPy, and the published code's steps written down again."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.stats
import torch
from torch import nn

from camify.errors import ConfigError, DataError
from camify.metrics import ADCC, AverageDrop, AverageIncrease, Coherency, Complexity, DeletionAUC, InsertionAUC
from camify.metrics.functional import (
    adcc,
    area_under_curve,
    average_drop,
    black,
    blurred,
    coherency,
    complexity,
    deletion_curves,
    insertion_curves,
    masked_images,
)


def value(metric, *parts):
    metric.update(*parts)
    return float(metric.compute())


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(1)
    scores, masked = torch.rand(2, 12, generator=generator)
    maps, others = torch.rand(2, 12, 9, 7, generator=generator)
    return scores, masked, maps, others


# --- the parts of ADCC ------------------------------------------------------------------------------------------


def authors_adcc(score, masked, heat, other):
    """aimagelab/ADCC, one image: metrics/average_drop.py, coherency.py, complexity.py, adcc.py."""
    drop = max(0.0, score - masked) / score
    likeness = (scipy.stats.pearsonr(heat.ravel(), other.ravel())[0] + 1) / 2
    share = np.abs(heat).sum() / (heat.shape[-1] * heat.shape[-2])
    return drop, likeness, share, 3 / (1 / likeness + 1 / (1 - share) + 1 / (1 - drop))


def test_all_four_are_the_authors(sample):
    scores, masked, maps, others = sample
    doubles = (part.double().numpy() for part in sample)
    expected = np.array([authors_adcc(*parts) for parts in zip(*doubles, strict=True)])
    found = torch.stack([average_drop(scores, masked), coherency(maps, others), complexity(maps)])
    np.testing.assert_allclose(found.numpy().T, expected[:, :3], atol=1e-12)
    np.testing.assert_allclose(adcc(*found[[0, 1, 2]]).numpy(), expected[:, 3], atol=1e-12)
    drop, likeness, share, whole = expected.mean(axis=0)
    assert value(AverageDrop(), scores, masked) == pytest.approx(drop, abs=1e-6)
    assert value(Coherency(), maps, others) == pytest.approx(likeness, abs=1e-6)
    assert value(Complexity(), maps) == pytest.approx(share, abs=1e-6)
    assert value(ADCC(), scores, masked, maps, others) == pytest.approx(whole, abs=1e-6)


def test_increase_counts_what_gains(sample):
    scores, masked, *_ = sample
    expected = np.mean([b > a for a, b in zip(scores.tolist(), masked.tolist(), strict=True)])
    assert value(AverageIncrease(), scores, masked) == pytest.approx(expected)
    assert value(AverageIncrease(), scores, scores) == 0


def test_where_the_authors_divide_by_zero():
    zero, one = torch.zeros(1), torch.ones(1)
    assert average_drop(zero, one).tolist() == [0]
    for parts in ((one, one, zero), (zero, zero, zero), (zero, one, one)):
        assert adcc(*parts).tolist() == [0]
    assert adcc(zero, one, zero).tolist() == [1]
    constant, varied = torch.full((1, 3, 3), 0.1), torch.rand(1, 3, 3)
    assert coherency(constant, varied).tolist() == [0]
    assert coherency(constant, constant).tolist() == [0]
    assert coherency(varied, varied).tolist() == [pytest.approx(1)]
    assert coherency(varied, -varied).tolist() == [pytest.approx(0)]


def test_correlation_of_maps_far_from_zero():
    heat = 1000 + torch.rand(1, 20, 20, dtype=torch.float64)
    other = torch.rand(1, 20, 20, dtype=torch.float64)
    expected = (scipy.stats.pearsonr(heat.numpy().ravel(), other.numpy().ravel())[0] + 1) / 2
    assert float(coherency(heat, other)) == pytest.approx(expected, abs=1e-9)


# --- masked images ----------------------------------------------------------------------------------------------


def test_masking_in_normalized_and_in_raw_space():
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1])
    raw, maps = torch.rand(2, 3, 6, 5), torch.rand(2, 6, 5)
    images = (raw - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(masked_images(images, maps), images * maps[:, None])
    expected = (raw * maps[:, None] - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(masked_images(images, maps, black(mean, std)), expected)
    assert torch.equal(masked_images(images, torch.ones_like(maps), 7.0), images)
    torch.testing.assert_close(masked_images(images, torch.zeros_like(maps), blurred(images)), blurred(images))


def test_blur_is_that_of_the_authors():
    """eclique/RISE: a dot through scipy's gaussian_filter is the kernel, zeros stand outside the image."""
    dot = np.zeros((11, 11))
    dot[5, 5] = 1
    kernel = scipy.ndimage.gaussian_filter(dot, 5)
    images = torch.rand(2, 3, 30, 26)
    expected = [
        [scipy.ndimage.convolve(one, kernel, mode="constant") for one in image] for image in images.double().numpy()
    ]
    np.testing.assert_allclose(blurred(images).numpy(), expected, atol=1e-6)


# --- insertion and deletion -------------------------------------------------------------------------------------


class Network(nn.Module):
    """Convolution, dropout, batch norm: eval mode matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 5)
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return 4 * self.head(self.layers(images).mean((2, 3)))


def curve_by_steps(model, image, heat, target, steps, start, end):
    """One image, one pixel list, one step after the other."""
    height, width = heat.shape
    order = sorted(range(height * width), key=lambda place: -float(heat.flatten()[place]))  # sorted() is stable
    scores = []
    for step in range(steps + 1):
        shown = start.clone()
        for place in order[: step * height * width // steps]:
            shown[:, place // width, place % width] = end[:, place // width, place % width]
        with torch.no_grad():
            scores.append(float(model(shown[None]).softmax(dim=1)[0, target]))
    return scores


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_curves_are_made_step_by_step(steps):
    model = Network().eval()
    images, maps, targets = torch.rand(3, 3, 6, 5), (torch.rand(3, 6, 5) * 4).round(), torch.tensor([0, 4, 2])
    found = insertion_curves(model, images, maps, targets, steps=steps, batch_size=2)
    removed = deletion_curves(model, images, maps, targets, steps=steps)
    own = deletion_curves(model, images, maps, targets, steps=steps, baseline=torch.tensor([1.0, 2, 3])[:, None, None])
    soft = blurred(images)
    for index in range(3):
        image, heat, target = images[index], maps[index], int(targets[index])
        one = curve_by_steps(model, image, heat, target, steps, soft[index], image)
        assert found[index].tolist() == pytest.approx(one, abs=1e-6)
        two = curve_by_steps(model, image, heat, target, steps, image, torch.zeros_like(image))
        assert removed[index].tolist() == pytest.approx(two, abs=1e-6)
        color = torch.tensor([1.0, 2, 3])[:, None, None].expand(3, 6, 5)
        three = curve_by_steps(model, image, heat, target, steps, image, color)
        assert own[index].tolist() == pytest.approx(three, abs=1e-6)


def test_the_network_is_left_as_it_was_and_runs_no_more_than_it_must():
    model = Network()
    model.layers[1].eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    model.head.weight.grad = torch.ones_like(model.head.weight)
    first, second = (
        deletion_curves(model, torch.ones(2, 3, 6, 6), torch.rand(2, 6, 6), torch.tensor([0, 1]), steps=s)
        for s in (3, 3)
    )
    assert not first.requires_grad
    assert model.images == 2 * 2 * 4
    assert (model.training, model.layers[1].training, model.layers[2].training) == (True, False, True)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert bool((model.head.weight.grad == 1).all())
    assert first.shape == second.shape == (2, 4)


def test_any_batch_size_gives_the_same():
    model, images, maps, targets = (
        Network().eval(),
        torch.rand(3, 3, 8, 8),
        torch.rand(3, 8, 8),
        torch.tensor([1, 2, 3]),
    )
    whole = insertion_curves(model, images, maps, targets, steps=5, batch_size=100)
    for size in (1, 4, 18):
        torch.testing.assert_close(insertion_curves(model, images, maps, targets, steps=5, batch_size=size), whole)


def test_area_is_the_trapezoidal_rule():
    curves = torch.rand(6, 9)
    expected = scipy.integrate.trapezoid(curves.double().numpy(), dx=1 / 8)
    np.testing.assert_allclose(area_under_curve(curves).numpy(), expected, atol=1e-12)
    rise = [(curve.sum() - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1) for curve in curves.double().numpy()]
    np.testing.assert_allclose(area_under_curve(curves).numpy(), rise, atol=1e-12)
    assert value(InsertionAUC(), curves) == pytest.approx(expected.mean(), abs=1e-6)
    assert value(DeletionAUC(), curves) == pytest.approx(expected.mean(), abs=1e-6)


def test_a_true_map_beats_its_opposite():
    """A network that looks at one corner: the map of that corner inserts early and deletes early."""

    class Corner(nn.Module):
        def forward(self, images):
            score = images[:, :, :4, :4].mean((1, 2, 3))
            return 5 * torch.stack([score, 1 - score], dim=1)

    images, targets = torch.ones(1, 3, 12, 12), torch.tensor([0])
    heat = torch.zeros(1, 12, 12)
    heat[:, :4, :4] = 1
    inserted = [
        value(InsertionAUC(), insertion_curves(Corner(), images, one, targets, steps=9, baseline=0.0))
        for one in (heat, 1 - heat)
    ]
    deleted = [
        value(DeletionAUC(), deletion_curves(Corner(), images, one, targets, steps=9)) for one in (heat, 1 - heat)
    ]
    assert inserted[0] > inserted[1] + 0.3
    assert deleted[0] < deleted[1] - 0.3


# --- what cannot be used ----------------------------------------------------------------------------------------


NAN = float("nan")


@pytest.mark.parametrize(
    ("metric", "parts", "message"),
    [
        (AverageDrop(), (torch.tensor([0.5]), torch.tensor([0.5, 0.1])), "masked_scores"),
        (AverageDrop(), (torch.tensor([NAN]), torch.tensor([0.5])), "probabilities"),
        (AverageDrop(), (torch.tensor([3.5]), torch.tensor([0.5])), "softmax"),
        (AverageIncrease(), (torch.tensor([[0.5]]), torch.tensor([[0.5]])), "shape"),
        (Coherency(), (torch.full((1, 2, 2), NAN), torch.ones(1, 2, 2)), "NaN"),
        (Coherency(), (torch.ones(1, 2, 2), torch.full((1, 2, 2), NAN)), "NaN"),
        (Coherency(), (torch.ones(1, 2, 2), torch.ones(1, 2, 3)), "differ"),
        (Complexity(), (torch.full((1, 2, 2), 2.0),), r"\[0, 1\]"),
        (ADCC(), (torch.ones(2), torch.ones(2), torch.ones(1, 2, 2), torch.ones(1, 2, 2)), "must be"),
        (InsertionAUC(), (torch.rand(3),), "shape"),
        (InsertionAUC(), (torch.rand(3, 1),), "shape"),
        (DeletionAUC(), (torch.full((1, 3), NAN),), "DeletionAUC"),
    ],
)
def test_what_cannot_be_used(metric, parts, message):
    with pytest.raises(DataError, match=message):
        metric.update(*parts)
    assert int(metric.counts) == 0


def test_curves_that_cannot_be_made():
    images, maps, targets = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4), torch.tensor([0, 1])
    with pytest.raises(DataError, match="upsample"):
        insertion_curves(Network(), images, torch.rand(2, 2, 2), targets)
    with pytest.raises(DataError, match="NaN"):
        insertion_curves(Network(), images, maps * NAN, targets, steps=4)
    with pytest.raises(DataError, match="targets"):
        insertion_curves(Network(), images, maps, targets[:1], steps=4)
    for options in ({"steps": 0}, {"steps": 17}, {"steps": 4, "batch_size": 0}):
        with pytest.raises(ConfigError, match="steps"):
            deletion_curves(Network(), images, maps, targets, **options)


def test_nothing_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int(InsertionAUC().counts) == 0


def test_drops_by_hand():
    drops = average_drop(torch.tensor([0.8, 0.5, 0.0]), torch.tensor([0.2, 0.9, 0.0]))
    assert drops.tolist() == pytest.approx([0.75, 0, 0])
