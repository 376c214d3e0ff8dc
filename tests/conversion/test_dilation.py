"""map_stride: a finer map with the same weights, whose subsample is the old map."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.resnet import Bottleneck

from camify import CAMNet, ConversionError, convert
from tests.conversion.networks import narrow_vgg


def images(size=96, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


class NarrowAlexNet(nn.Module):
    """AlexNet's geometry: 13 cells of 224 pixels, 7 of 127, 16 pixels apart."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(6, 8, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(8 * 36, 3))

    def forward(self, x):
        return self.classifier(self.features(x))


class FunctionalPool(nn.Module):
    """A stride that no layer has."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.first(x).relu(), 2)
        return self.head(self.second(x).relu().mean((2, 3)))


def pair(legacy, stride, size=96, **options):
    options = {"head": "direct", "input_size": size, "seed": 0} | options
    return convert(legacy, **options).eval(), convert(legacy, map_stride=stride, **options).eval()


NARROW = {  # the published geometry with few channels
    "vgg11_bn": partial(narrow_vgg, "vgg11_bn"),
    "resnet50": partial(ResNet, Bottleneck, [1, 2, 2, 2], width_per_group=8),
    "alexnet": lambda: NarrowAlexNet(),
    "densenet121": partial(DenseNet, 8, (2, 3, 3, 2), 16),
}


@pytest.mark.parametrize(
    ("name", "size", "stride", "factor"),
    [
        ("vgg11_bn", 96, 4, 4), ("resnet18", 96, 16, 2), ("resnet18", 95, 16, 2),
        pytest.param("resnet50", 64, 8, 4, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", 96, 8, 4, marks=pytest.mark.slow),
        pytest.param("densenet121", 96, 16, 2, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", 96, 8, 2, marks=pytest.mark.slow),
        pytest.param("resnet18", 96, 8, 4, marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x0_5", 96, 16, 2, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_dense_map_subsampled_is_the_old_map(name, size, stride, factor):
    torch.manual_seed(0)
    legacy = NARROW[name]() if name in NARROW else torchvision.models.get_model(name, weights=None)
    coarse, fine = pair(legacy.eval(), stride, size)
    x = images(size)
    with torch.no_grad():
        old, new = coarse.forward_features(x), fine.forward_features(x)
    assert new.shape[-1] > old.shape[-1]
    torch.testing.assert_close(new[:, :, ::factor, ::factor], old, rtol=1e-4, atol=1e-5 * float(old.abs().max()))
    for (key, before), after in zip(coarse.state_dict().items(), fine.state_dict().values(), strict=True):
        assert torch.equal(before, after), key


def test_by_hand_on_two_layers():
    legacy = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    _, fine = pair(legacy, 1, 16)
    x = images(16)
    first = torch.relu(nn.functional.conv2d(x, legacy[0].weight, legacy[0].bias, stride=1, padding=1))
    expected = torch.relu(nn.functional.conv2d(first, legacy[2].weight, legacy[2].bias, padding=2, dilation=2))
    torch.testing.assert_close(fine.forward_features(x), expected)


@pytest.mark.parametrize(
    ("size", "stride", "cells"),
    [(224, 8, (13, 25)), (127, 8, (7, 13)), (127, 4, (7, 25)), (130, 8, (7, 13))],
)
def test_alexnets_sizes_do_not_divide_evenly(size, stride, cells):
    """By hand: 224 -> 55 -> 27 -> 13; without the second pool's stride 27 -> 25, every second cell an old one."""
    torch.manual_seed(0)
    coarse, fine = pair(NarrowAlexNet().eval(), stride, size)
    x, factor = images(size), 16 // stride
    with torch.no_grad():
        old, new = coarse.forward_features(x), fine.forward_features(x)
    assert (old.shape[-1], new.shape[-1]) == cells
    torch.testing.assert_close(new[:, :, ::factor, ::factor], old, rtol=1e-4, atol=1e-6)


def test_a_stride_that_is_no_layers_counts_too():
    """The functional pool keeps its stride of 2, the convolution behind it loses its own."""
    torch.manual_seed(0)
    coarse, fine = pair(FunctionalPool().eval(), 2, 32)
    old, new = coarse.forward_features(images(32)), fine.forward_features(images(32))
    assert (old.shape[-1], new.shape[-1]) == (8, 16)
    torch.testing.assert_close(new[:, :, ::2, ::2], old)


def test_the_certificate_says_what_it_costs():
    _, fine = pair(torchvision.models.resnet18(weights=None).eval(), 8)
    assert any("times the multiplications" in note for note in fine.certificate.notes)
    assert fine.certificate.map_size == (12, 12)
    assert fine.certificate.identity_error < 1e-4


def test_new_convolutions_come_behind_the_finer_map():
    legacy = narrow_vgg("vgg11")
    net = convert(legacy, head="gap", head_channels=16, map_stride=8, input_size=96, seed=0)
    assert net.certificate.map_size == (11, 11), "a pool of 2 x 2 without its stride: 12 -> 11"
    assert net.features.cam_conv.dilation == (1, 1)


def test_it_is_saved_and_loaded(tmp_path):
    _, fine = pair(torchvision.models.resnet18(weights=None).eval(), 16)
    loaded = CAMNet.from_pretrained(fine.save_pretrained(tmp_path / "net"))
    torch.testing.assert_close(loaded(images()), fine(images()))


def test_the_users_network_keeps_its_strides():
    legacy = torchvision.models.resnet18(weights=None).eval()
    expected = legacy(images())
    pair(legacy, 8)
    assert torch.equal(legacy(images()), expected)
    assert legacy.layer4[0].conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "stride", "words"),
    [
        ("mobilenet_v3_small", 16, "works across positions"),
        ("resnet18", 5, "the map's stride is 32"),
        ("resnet18", 64, "the map's stride is 32"),
        ("resnet18", 0, "the map's stride is 32"),
        ("alexnet", 2, r"stride is 16. Choose one of \[1, 4, 8, 16\]"),
        ("densenet121", 8, "average pool"),
        ("googlenet", 16, "max-pool with padding"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(name, stride, words):
    options = {"init_weights": False} if name == "googlenet" else {}
    legacy = NARROW[name]() if name in NARROW else torchvision.models.get_model(name, weights=None, **options)
    with pytest.raises(ConversionError, match=words):
        convert(legacy.eval(), head="direct", map_stride=stride, input_size=96)


def test_recast_keeps_its_stride():
    legacy = narrow_vgg("vgg11")
    with pytest.raises(ConversionError, match="map_stride"):
        convert(legacy, head="recast", map_stride=8)
