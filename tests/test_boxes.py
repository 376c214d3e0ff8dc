"""The box rule: Otsu by brute force and OpenCV, all regions by scipy, mirrored and finer maps by hand, bad fields."""

from __future__ import annotations

import copy
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import camify
from camify.box_features import box_features
from camify.boxes import DEFAULT_RULE, OTSU, BoxRule, otsu_thresholds
from camify.graphs.map_stride import set_map_stride
from camify.maps import upsample
from camify.normalizers import NORMALIZERS, limits, normalize_maps


def heats(count=20):
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(count, 5, 6, generator=generator) ** 3
    return normalize_maps(upsample(raw, (37, 41)))


def test_otsus_threshold_parts_best():
    """By its definition, over all 256 levels, in exact fractions of pixels."""
    found = otsu_thresholds(heats())
    for heat, threshold in zip(heats().numpy().astype(np.float64), found.flatten().tolist(), strict=True):
        levels = np.floor(heat * 255 + 0.5)
        between = []
        for level in range(255):
            low, high = levels[levels <= level], levels[levels > level]
            shares = (len(low) / levels.size, len(high) / levels.size)
            between.append(shares[0] * shares[1] * (low.mean() - high.mean()) ** 2 if all(shares) else 0.0)
        at = round(threshold * 255 - 0.5)
        assert between[at] == pytest.approx(max(between), rel=1e-6)
        opencv, _ = cv2.threshold(levels.astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
        assert at == int(opencv)


def test_a_map_of_two_values_is_cut_between_them_and_a_flat_one_shows_nothing():
    maps = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], [[2.0] * 3] * 2])
    found = BoxRule(threshold=OTSU).boxes(maps, (2, 3))
    assert [boxes.tolist() for boxes in found] == [[[2, 0, 3, 1]], []]


def test_pas_takes_the_maximum_where_heat_covers_less_than_its_percentile():
    sparse = torch.zeros(1, 10, 10)
    sparse[0, 2, 3:6] = torch.tensor([1.0, 4.0, 2.0])
    torch.testing.assert_close(normalize_maps(sparse, "pas", 90.0), sparse / 4)
    assert DEFAULT_RULE.boxes(sparse, (10, 10))[0].tolist() == [[4, 2, 6, 3]]


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_limits_are_what_becomes_0_and_1(normalizer):
    raw = upsample(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)), (20, 20))
    low, high = limits(raw, *normalizer)
    expected = ((raw - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(normalize_maps(raw, *normalizer), expected)


def test_every_region_that_is_not_small_has_a_box_the_largest_first():
    rng = np.random.default_rng(3)
    rule = BoxRule(regions="all", threshold=0.6)
    for _ in range(20):
        raw = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((48, 50)), 2.5)).float()
        mask = normalize_maps(raw[None])[0].numpy() >= np.float32(0.6)
        labels, count = ndimage.label(ndimage.binary_fill_holes(mask), np.ones((3, 3)))
        sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
        slices = ndimage.find_objects(labels)
        order = sorted(range(count), key=lambda i: (-sizes[i], slices[i][0].start, slices[i][1].start))
        wanted = [
            [slices[i][1].start, slices[i][0].start, slices[i][1].stop, slices[i][0].stop]
            for i in order
            if i == order[0] or sizes[i] >= 24
        ]
        assert rule.boxes(raw[None], (48, 50))[0].tolist() == wanted
        assert replace(rule, regions="largest").boxes(raw[None], (48, 50))[0].tolist() == wanted[:1]
    assert rule.boxes(torch.zeros(1, 4, 4), (8, 8))[0].shape == (0, 4)


@pytest.fixture
def net():
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    layers = [conv, nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1)]
    net = camify.CAMNet(nn.Sequential(*layers), nn.Linear(4, 3)).eval()
    net.features[1].running_mean.uniform_(-0.1, 0.1)
    return net


def test_a_mirrored_map_is_the_mean_with_the_image_mirrored(net):
    images, classes = torch.randn(2, 3, 32, 32), torch.tensor([2, 0])
    with torch.no_grad():
        straight, mirrored = (net.forward_with_maps(x)[1][[0, 1], classes] for x in (images, images.flip(3)))
        rule = BoxRule(threshold=0.7, flip=True)
        maps = rule.maps(box_features(net, images, rule), net.classifier.weight, classes)
    torch.testing.assert_close(maps, (straight + mirrored.flip(2)) / 2)
    wanted = rule.boxes((straight + mirrored.flip(2)) / 2, (32, 32))
    assert all(map(torch.equal, net.predict_boxes(images, classes, rule=rule), wanted))


def test_a_finer_map_has_the_networks_weights_also_later_and_is_not_stored(net):
    images, rule = torch.randn(2, 3, 32, 32), BoxRule(map_stride=2)
    names = list(net.state_dict())
    for _ in range(2):
        finer = copy.deepcopy(net.features)
        set_map_stride(finer, 2, images)
        with torch.no_grad():
            torch.testing.assert_close(box_features(net, images, rule), finer(images))
            net.features[0].weight.mul_(1.5)
            net.features[1].running_mean.add_(0.2)
    assert list(net.state_dict()) == names
    assert box_features(net, images, BoxRule()).shape[-1] == 8, "the network itself stays as it is"
    with pytest.raises(camify.ConversionError, match="map_stride=3"):
        net.predict_boxes(images, rule=BoxRule(map_stride=3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5}, {"threshold": float("nan")}, {"threshold": "half"}, {"threshold": True},
        {"threshold": None}, {"normalizer": "best"}, {"normalizer": ["pas"]}, {"percentile": 90},
        {"normalizer": "pas"}, {"normalizer": "pas", "percentile": "x"}, {"kind": "heat"}, {"kind": ["plain"]},
        {"flip": 1}, {"clamp_weights": "no"}, {"map_stride": 0}, {"map_stride": 8.0}, {"map_stride": True},
        {"regions": "two"}, {"source": "me"}, {"count": -1}, {"accuracy": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_that_cannot_work_is_refused_here_and_in_files(wrong):
    with pytest.raises(camify.ConfigError):
        BoxRule(**wrong)
    with pytest.raises(camify.CheckpointError, match="box_rule: a field"):
        BoxRule.from_dict({**BoxRule().to_dict(), **wrong})


def test_rules_of_former_versions_are_what_they_were():
    stored = {
        "normalizer": "ivr", "percentile": 35.0, "threshold": 0.3, "clamp_weights": False, "source": "mosaics",
        "count": 24, "accuracy": 0.5,
    }  # fmt: skip
    rule = BoxRule.from_dict(stored)
    assert (rule.kind, rule.flip, rule.map_stride, rule.regions) == ("plain", False, None, "largest")
    assert {key: value for key, value in rule.to_dict().items() if key in stored} == stored
    assert BoxRule.from_dict(DEFAULT_RULE.to_dict()) == DEFAULT_RULE


def test_a_rule_says_what_it_does():
    rule = BoxRule("pas", 90.0, OTSU, kind="object", flip=True, map_stride=8, regions="all", count=30)
    assert str(rule) == (
        "object map, pas 90 >= Otsu's threshold, map stride 8, with the mirrored image, every region"
        " (the network's rule, from boxes)"
    )
    assert "no boxes were there" in str(replace(DEFAULT_RULE, source="otsu"))
