"""Promise 11: a map lies where its evidence is.

Small random networks with every trick of layout that people use, against their own last map, which they tell: which
tensor is the map, its axes, Grad-CAM by hand, and the logits of a recast head.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify import convert, explain
from camify.graphs import PLACE_SHOWN

TO_VECTOR = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.contiguous().view(x.size(0), -1),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous().view(x.size(0), -1),
    "two transposes": lambda x: x.transpose(1, 3).transpose(1, 2).contiguous().view(x.size(0), -1),
    "width first": lambda x: x.transpose(2, 3).flatten(1),
    "width, channels, height": lambda x: x.permute(0, 3, 1, 2).reshape(x.shape[0], -1),
    "movedim": lambda x: torch.movedim(x, 1, -1).flatten(1),
    "einsum": lambda x: torch.einsum("nchw->nhwc", x).reshape(x.shape[0], -1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).flatten(1),
    "swapaxes": lambda x: torch.swapaxes(x, 1, 2).flatten(1),
    "activation between": lambda x: F.relu(x.permute(0, 2, 3, 1)).flatten(1),
    "there and back": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).flatten(1),
}
TO_POOLED = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive 1-D": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1).flatten(1),
    "mean of the last axis": lambda x: x.flatten(2).mean(2, keepdim=True).flatten(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).mean(1),
    "rows, then columns": lambda x: x.mean(3).mean(2),
    "einsum": lambda x: torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3]),
    "matmul": lambda x: (x.flatten(2) @ x.new_ones(x.shape[2] * x.shape[3], 1)).flatten(1),
    "maximum 1-D": lambda x: F.max_pool1d(x.flatten(2), x.shape[2] * x.shape[3]).flatten(1),
}
NO_MAP = ("covariance", "clusters", "queries", "row profiles")


class Network(nn.Module):
    """Convolutions, perhaps layers in another layout, and a head; ``last_map`` and ``head`` are its truth."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.cells = draw.choice([(3, 3), (4, 4), (5, 3), (2, 6), (8, 8), (3, 5)])
        self.channels = draw.choice([4, 9, 16, 64, self.cells[0] * self.cells[1]])
        self.shared = draw.random() < 0.3
        self.stem = nn.Conv2d(3, self.channels, 4, 4)
        self.conv = nn.Conv2d(self.channels, self.channels, 3, padding=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.normal_(self.stem.weight, std=0.2)
        self.conv.weight.data += torch.randn_like(self.conv.weight) * 0.1 / self.channels**0.5
        self.inner = draw.choice(["none", "none", "channels last", "tokens", "class token", "einsum", "column tokens"])
        self.linear, self.norm = nn.Linear(self.channels, self.channels), nn.LayerNorm(self.channels)
        self.token = nn.Parameter(torch.randn(1, 1, self.channels))
        self.position = nn.Parameter(torch.randn(1, self.cells[0] * self.cells[1] + 1, self.channels) * 0.1)
        self.kind = draw.choice(["vector", "vector", "pooled", "pooled", *NO_MAP])
        self.how = draw.choice(sorted(TO_VECTOR if self.kind == "vector" else TO_POOLED))
        count = self.cells[0] * self.cells[1]
        width = {
            "vector": count * self.channels, "covariance": self.channels**2, "clusters": count * self.channels,
            "row profiles": self.cells[0] * self.channels,
        }.get(self.kind, self.channels)  # fmt: skip
        self.centers = nn.Parameter(torch.randn(count, self.channels))
        deep = draw.random() < 0.5
        self.fc = nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, 5)) if deep else nn.Linear(width, 5)

    @property
    def size(self):
        return 4 * self.cells[0], 4 * self.cells[1]

    def last_map(self, x):
        x = F.leaky_relu(self.stem(x), 0.3)
        x = F.leaky_relu(self.conv(x), 0.3)
        if self.shared:
            x = F.leaky_relu(self.conv(x), 0.3)
        rows, columns = self.cells
        if self.inner == "channels last":
            y = x.permute(0, 2, 3, 1)
            x = (y + self.linear(self.norm(y))).permute(0, 3, 1, 2)
        elif self.inner == "einsum":
            x = torch.einsum("nchw,kc->nkhw", x, self.linear.weight)
        elif self.inner == "tokens":
            y = x.flatten(2).transpose(1, 2)
            x = (y + self.linear(y)).transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        elif self.inner == "column tokens":
            y = x.transpose(2, 3).flatten(2).transpose(1, 2)
            x = self.norm(y).transpose(1, 2).unflatten(2, (columns, rows)).transpose(2, 3)
        elif self.inner == "class token":
            y = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1) + self.position
            x = self.norm(y)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        return x

    def head(self, x):
        if self.kind == "vector":
            return self.fc(TO_VECTOR[self.how](x))
        tokens = x.flatten(2).transpose(1, 2)
        if self.kind == "covariance":
            return self.fc((tokens.transpose(1, 2) @ tokens).flatten(1) / tokens.shape[1])
        if self.kind == "clusters":
            shares = (tokens @ self.centers.T).softmax(2)
            return self.fc((shares.transpose(1, 2) @ tokens).flatten(1))
        if self.kind == "queries":
            shares = (self.centers @ tokens.transpose(1, 2)).softmax(2)
            return self.fc((shares @ tokens).mean(1))
        if self.kind == "row profiles":
            return self.fc(x.mean(3).flatten(1))
        return self.fc(TO_POOLED[self.how](x))

    def forward(self, x):
        return self.head(self.last_map(x))


def check(seed):
    network = Network(seed).eval()
    images = torch.randn(2, 3, *network.size, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        maps, logits = network.last_map(images), network(images)
    if network.kind == "vector":
        recast = convert(network, head="recast", input_size=network.size).eval()
        with torch.no_grad():
            torch.testing.assert_close(recast(images), logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
        assert not any("pooled" in note for note in recast.certificate.notes)
    net = convert(network, head="direct", input_size=network.size, seed=0).eval()
    with torch.no_grad():
        found = net.forward_features(images)
    assert net.certificate.place > PLACE_SHOWN
    if network.kind == "vector" and network.how == "activation between":
        maps = F.relu(maps)  # the head's first step gives the last map
    assert found.shape == maps.shape, "the map is the last one that the network says it has"
    torch.testing.assert_close(found, maps, rtol=1e-4, atol=1e-5)

    if network.kind == "vector" and network.how == "activation between":
        return  # its head would be asked with the activation twice
    leaf = maps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.head(leaf)[:, 3].sum(), leaf)
    by_hand = (gradient.mean((2, 3), keepdim=True) * maps).sum(1)
    heat = explain(network, images, method="gradcam", targets=3, normalize=None, size=None)
    torch.testing.assert_close(heat, by_hand, rtol=1e-3, atol=1e-5 * float(by_hand.abs().max() + 1))


@pytest.mark.parametrize("seed", range(40))
def test_the_map_is_where_the_network_has_it(seed):
    check(seed)


@pytest.mark.slow
def test_the_map_is_where_the_network_has_it_500_times():
    for seed in range(1000, 1500):
        check(seed)
