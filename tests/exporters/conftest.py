"""One small network for all tests of exported files, and its files, written once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camify
from camify.boxes import BoxRule

SIZE = 32


class Legacy(nn.Module):
    """Functions, a skip connection, a class of its own, a fully connected head."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(6), nn.Linear(6 * 8 * 8, 4)

    def forward(self, x):
        x = F.relu(self.one(x))
        x = F.relu(self.norm(self.two(x)) + x)
        return self.last(F.max_pool2d(x, 2).flatten(1))


def network(legacy=None, **options):
    torch.manual_seed(0)
    net = camify.convert((legacy or Legacy)().eval(), input_size=SIZE, seed=0, **{"head_channels": 5, **options})
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    nn.init.normal_(net.classifier.weight)
    nn.init.normal_(net.classifier.bias)
    net.class_names = ["cat", "dog", "Zürich", "日本"]
    net.preprocessing = {"size": SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "aspect": "not kept",
                         "range": "0..1"}  # fmt: skip
    net.box_rule = BoxRule(threshold=0.4)
    net.results = {"val/acc": 0.75, "validation_images": 20, "seed": 0}
    return net.eval()


@pytest.fixture(scope="session")
def net():
    return network()


@pytest.fixture(scope="session")
def folder(net, tmp_path_factory):
    return net.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="session")
def files(net, tmp_path_factory):
    """Its exported files by suffix, prepared images in; and with pictures in and boxes out."""
    place = tmp_path_factory.mktemp("files")
    found = {}
    for suffix in (".onnx", ".pt2"):
        found[suffix] = camify.export(net, place / f"plain{suffix}")
        found[suffix, "pictures"] = camify.export(net, place / f"pictures{suffix}", preprocess=True, boxes=True)
    return found
