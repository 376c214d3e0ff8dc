"""Conversion of a user's own networks: functional steps, nesting, shared layers, other inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify.conversion import convert, inspect
from camify.model import CAMNet
from tests.conversion.networks import (
    Discarded,
    DropoutNet,
    FiveChannels,
    FunctionalNet,
    MnistNet,
    Nested,
    chain,
    check_identity,
    relative,
    shake,
)


@pytest.mark.parametrize("flatten", ["view", "size", "reshape", "flatten"])
def test_functional_networks_are_cut_before_their_last_pool(flatten):
    legacy = FunctionalNet(flatten).eval()
    net = convert(legacy, head="direct", input_size=64, seed=0)
    images = torch.randn(3, 3, 64, 64)
    assert net.certificate.map_size == (32, 32)
    with torch.no_grad():
        assert torch.equal(net.features(images), legacy.maps(images))
    check_identity(net, images)
    other_size = torch.randn(1, 3, 40, 72)
    assert net.forward_with_maps(other_size)[1].shape == (1, 5, 20, 36)


def test_the_mnist_example_keeps_relu_and_loses_the_pool_before_it():
    legacy = MnistNet().eval()
    net = convert(legacy, head="direct", input_size=28, seed=0)
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        expected = F.relu(legacy.conv2(F.relu(F.max_pool2d(legacy.conv1(images), 2))))
        assert torch.equal(net.features(images), expected)
    assert net.certificate.map_size == (8, 8)
    assert net.num_classes == 10
    assert any(isinstance(m, nn.Dropout2d) for m in net.features.modules())
    check_identity(net, images)


@pytest.mark.parametrize("training", [True, False])
def test_functional_dropout_in_the_features_works_in_both_modes(training):
    legacy = DropoutNet().train(training)
    net = convert(legacy, input_size=64, head="direct", seed=0)
    dropouts = [m for m in net.features.modules() if isinstance(m, nn.Dropout)]
    assert [d.p for d in dropouts] == [0.3]
    assert dropouts[0].training is training
    images = torch.randn(2, 3, 64, 64)
    net.eval()
    assert torch.equal(net(images), net(images))
    with torch.no_grad():
        x = F.max_pool2d(F.relu(legacy.one(images)), 2)
        assert torch.equal(net.features(images), F.relu(legacy.two(x)))
    net.train()
    assert not torch.equal(net(images), net(images))


def test_nested_blocks_with_skip_connections():
    legacy = shake(Nested()).eval()
    net = convert(legacy, input_size=64, seed=0, head_channels=(6, 7))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = legacy.maps(images)
        for conv in [m for n, m in net.features.named_modules() if n in net.head_layers and hasattr(m, "weight")]:
            expected = F.relu(F.conv2d(expected, conv.weight, conv.bias, padding=1))
        assert relative(net.features(images), expected) < 1e-6
    assert net.certificate.feature_layer == "body.stage"
    assert net.num_features == 7
    check_identity(net, images)


@pytest.mark.parametrize("how", ["layer", "method", "function"])
def test_the_effect_of_a_discarded_in_place_step_is_kept(how):
    legacy = Discarded(how).eval()
    net = convert(legacy, head="direct", input_size=32, seed=0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.features(images), legacy.conv(images).clamp_min(0))


def test_grayscale_rectangular_and_example_inputs():
    gray = convert(chain(channels=1), input_size=64, head="direct")
    assert gray.certificate.input_shape == (1, 64, 64)
    assert gray(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    legacy = FunctionalNet("flatten", size=(48, 80)).eval()
    wide = convert(legacy, input_size=(48, 80), head="direct")
    assert wide.certificate.map_size == (24, 40)
    assert wide.certificate.input_shape == (3, 48, 80)
    for count in (1, 2, 5):
        images = torch.rand(count, 3, 48, 80)
        given = convert(legacy, example=images, head="direct")
        assert given.certificate.map_size == (24, 40)
    five = convert(FiveChannels(), input_size=32, head="direct")
    assert five.certificate.input_shape == (5, 32, 32)


def test_sizes_and_constants_made_before_the_cut_reach_the_head():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
            self.register_buffer("scale", torch.full((8,), 2.0))

        def forward(self, x):
            batch, _, height, width = x.shape
            gain = self.scale * 3
            y = F.relu(self.conv(x)).sum((2, 3)) / (height * width)
            return self.last((y * gain).view(batch, 8))

    legacy = Masked().eval()
    images = torch.randn(2, 3, 16, 16)
    assert inspect(legacy, input_size=16).verdict in ("native", "foldable")
    net = convert(legacy, input_size=16, head="direct")
    with torch.no_grad():
        assert relative(net(images), legacy(images)) < 1e-4


def test_a_layer_may_be_used_twice_and_a_weight_by_two_layers(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(c, 3, 3, padding=1) for c in (3, 3, 3))
            self.three.weight = self.two.weight
            self.last = nn.Linear(3 * 8 * 8, 5)

        def maps(self, x):
            return F.relu(self.three(F.relu(self.two(F.relu(self.one(F.relu(self.one(x))))))))

        def forward(self, x):
            return self.last(F.max_pool2d(self.maps(x), 2).flatten(1))

    legacy = Tied().eval()
    net = convert(legacy, input_size=16, head="direct").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert relative(net.features(images), legacy.maps(images)) < 1e-6
        again = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "tied"))
        assert torch.equal(again(images), net(images))
