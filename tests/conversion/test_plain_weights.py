"""Weights that a parametrization computes are plain ones in the converted network, of the same values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from camify import CAMNet, convert


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def of_ones_own(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return parametrize.register_parametrization(layer, "bias", Doubled())


WAYS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "one's own": of_ones_own,
}


def network(way):
    torch.manual_seed(0)
    return nn.Sequential(
        way(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), way(nn.Linear(6, 4)),
    )  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_the_copy_holds_plain_weights_of_the_same_values(name, training, tmp_path):
    legacy, images = network(WAYS[name]).train(training), torch.rand(2, 3, 16, 16)
    before = copy.deepcopy(legacy.state_dict())
    net = convert(legacy, head="direct", input_size=16)
    assert not any(map(parametrize.is_parametrized, net.modules()))
    assert any("0 (" in note and "7 (" in note and "plain ones" in note for note in net.certificate.notes)
    assert legacy.training == net.training == training
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())
    assert parametrize.is_parametrized(legacy[0])
    torch.testing.assert_close(net.eval()(images), legacy.eval()(images), rtol=1e-5, atol=1e-6)
    loaded = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    torch.testing.assert_close(loaded(images), net(images))


def test_a_network_of_plain_layers_has_no_such_note():
    notes = convert(network(lambda layer: layer), head="gap", input_size=16).certificate.notes
    assert not any("plain ones" in note for note in notes)
