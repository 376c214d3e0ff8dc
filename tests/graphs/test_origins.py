"""Which tensor is the map: steps that move, mix, pool or mirror cells, and maps that only look like one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify import convert

CELLS = {  # what a head does with the map before it pools: the map is the trunk's, whatever looks like one behind it
    "spectrum alone": lambda net, x: torch.fft.fft2(x).real,
    "mirrored": lambda net, x: x.flip(-1),
    "turned around": lambda net, x: x.roll(4, 3),
    "cells mixed": lambda net, x: net.mix(x.flatten(2)).unflatten(2, (8, 8)),
    "rows as channels": lambda net, x: x.view(x.size(0), -1, 4, 8).unflatten(1, (-1, 2)).flatten(2, 3),
    "in one line": lambda net, x: x.flatten(2).unsqueeze(3).relu(),
    "pooled and spread again": lambda net, x: F.interpolate(F.adaptive_avg_pool2d(x, 1), size=(8, 8)),
}
SAME_PLACE = {  # steps behind which the map is theirs
    "a little of the spectrum": lambda net, x: x + 0.01 * torch.fft.fft2(x).real,
    "gate of all cells": lambda net, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "context of all cells": lambda net, x: x + F.interpolate(F.adaptive_avg_pool2d(x, 1), size=(8, 8)),
    "mask by place of the maximum": lambda net, x: x * (x.argmax(1, keepdim=True) > 3),
    "shuffled and back": lambda net, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "unfolded and back": lambda net, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "einsum": lambda net, x: torch.einsum("nchw,kc->nkhw", x, net.fc.weight[:, :].T @ net.fc.weight),
}


class Network(nn.Module):
    def __init__(self, step):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.LeakyReLU(0.2))
        self.mix, self.fc, self.step = nn.Linear(64, 64), nn.Linear(16, 5), step

    def forward(self, x):
        return self.fc(self.step(self, self.trunk(x)).mean((2, 3)))


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CELLS)
def test_what_has_lost_its_place_is_no_map(name):
    network = Network(CELLS[name]).eval()
    net = convert(network, head="direct", input_size=32, seed=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(net.forward_features(images()), network.trunk(images()), rtol=1e-4, atol=1e-5)
    assert net.certificate.place > 10


@pytest.mark.parametrize("name", SAME_PLACE)
def test_what_keeps_its_place_is_one(name):
    network = Network(SAME_PLACE[name]).eval()
    net = convert(network, head="direct", input_size=32, seed=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert net.certificate.legacy_error < 1e-4
    assert net.certificate.place > 2


def test_a_map_is_followed_through_tokens_of_its_windows():
    """As in MaxViT: what all cells say is added to each, so much that changed patches hardly show the place."""

    def windows(net, x):
        x = x.reshape(-1, 16, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 16, 16)
        x = F.relu(x + 3000 * net.fc.weight.sum(0) * x.mean((1, 2), keepdim=True))
        return x.reshape(-1, 2, 2, 4, 4, 16).permute(0, 5, 1, 3, 2, 4).reshape(-1, 16, 8, 8)

    network = Network(windows).eval()
    net = convert(network, head="direct", input_size=32, seed=0).eval()
    with torch.no_grad():
        expected = windows(network, network.trunk(images()))
        torch.testing.assert_close(net.forward_features(images()), expected, rtol=1e-4, atol=1e-5)
    assert net.certificate.map_size == (8, 8)


def test_a_map_is_followed_through_tokens_that_stand_as_rows_meanwhile():
    """As in LeViT, whose batch norms take (N * cells, C), shaped back like another tensor."""

    def rows(net, x):
        x = x.flatten(2).transpose(1, 2)
        x = net.norm(x.flatten(0, 1)).reshape_as(x)
        x = F.relu(x + 3000 * net.fc.weight.sum(0) * x.mean(1, keepdim=True))
        return x.transpose(1, 2).unflatten(2, (8, 8))

    network = Network(rows)
    network.norm = nn.BatchNorm1d(16)
    nn.init.uniform_(network.norm.running_var, 0.5, 2.0)
    net = convert(network.eval(), head="direct", input_size=32, seed=0).eval()
    with torch.no_grad():
        expected = rows(network, network.trunk(images()))
        torch.testing.assert_close(net.forward_features(images()), expected, rtol=1e-4, atol=1e-5)


def test_a_map_that_answers_elsewhere_is_refused():
    """Followed cell by cell through a sum, but what counts comes from the other side of the image."""

    class Mirror(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)

        def forward(self, x):
            x = self.conv(x * 0.001 + x.flip(-1))
            return self.fc(x.mean((2, 3)))

    with pytest.raises(ValueError, match=r"looks like a map, but when a patch of the image is changed.*Give|give"):
        convert(Mirror(), input_size=32)
