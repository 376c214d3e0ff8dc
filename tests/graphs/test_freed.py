"""A network that was looked into is gone with its last reference: Python need not collect garbage first."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import camify

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.last = nn.Linear(4 * 16 * 16, 5)

    def forward(self, x):
        x = self.one(x).relu()
        return self.last((x + self.two(x).relu()).flatten(1))


class Deciding(Skipping):
    """torch.fx cannot follow it."""

    def forward(self, x):
        x = self.one(x).relu()
        return self.last((x + self.two(x) if x.sum() > 0 else x).flatten(1))


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 6), nn.ReLU(), nn.Linear(6, 5)
    )


def explained(network, method):
    camify.explain(network, IMAGES, method=method)


def refused(network):
    with pytest.raises(camify.ConversionError):
        camify.convert(network, input_size=48)


ACTIONS = {
    "inspect": lambda network: camify.inspect(network, input_size=32),
    "convert": lambda network: camify.convert(network, head="direct", input_size=32),
    "recast": lambda network: camify.convert(network, head="recast", input_size=32),
    "fit_head": lambda network: camify.fit_head(
        camify.convert(network, head="direct", input_size=32), IMAGES, labels=torch.tensor([0, 1])
    ),
    "refused": refused,
    **{
        method: lambda network, method=method: explained(network, method)
        for method in ("gradcam", "layercam", "scorecam", "reciprocam", "fullgrad", "hirescam")
    },
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("make", [chain, Skipping, Deciding])
def test_the_users_network_is_gone_with_its_last_reference(make, action):
    if make is Deciding and action in ("recast", "fullgrad"):
        pytest.skip("refused, in other tests")
    network = make().eval()
    alive = [weakref.ref(part) for part in (network, *network.modules(), *network.parameters())]
    gc.disable()
    try:
        ACTIONS[action](network)
        del network
        assert not any(part() is not None for part in alive)
    finally:
        gc.enable()
