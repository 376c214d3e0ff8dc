from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model

import camify
from camify.sources.demo_network import TinyVGG
from tests.conversion.networks import narrow_vgg

from .brute_force import BruteForce


@pytest.fixture
def net():
    return camify.convert(TinyVGG(4), head="direct", input_size=96, seed=0)


@pytest.fixture
def legacy():
    """Narrow: Score-CAM runs it once for every channel."""
    torch.manual_seed(0)
    return TinyVGG(4, widths=(4, 8, 16, 16))


@pytest.fixture
def images():
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def _network(name):
    """Of AlexNet and VGG with a narrow head, of VGG with narrow features too: they are run hundreds of times."""
    torch.manual_seed(0)
    if name == "vgg16":
        model = narrow_vgg("vgg16", 7)
    elif name == "alexnet":
        model = get_model(name, weights=None)
        torch.manual_seed(2)  # a head whose maps have positive evidence on every image
        model.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 36, 40),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(40, 40),
            nn.ReLU(),
            nn.Linear(40, 7),
        )
    else:
        model = get_model(name, weights=None, num_classes=7)
    model.eval()
    for module in model.modules():  # random networks of this depth hardly answer to the image; these do
        if name == "vgg16" and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


@pytest.fixture(scope="session")
def networks():
    """(network, brute force at its last map, side of the image) by name, each made once."""
    made = {}

    def of(name):
        if name not in made:
            model, layer, side = {
                "alexnet": lambda: (_network("alexnet"), "features.11", 127),
                "vgg16": lambda: (_network("vgg16"), "features.29", 64),
                "resnet18": lambda: (_network("resnet18"), "layer4", 96),
                "mobilenet_v2": lambda: (_network("mobilenet_v2"), "features", 96),
                "converted": lambda: (camify.convert(_network("resnet18"), head="gap", head_channels=16,
                                                     input_size=96, seed=0), "features", 96),
                "recast": lambda: (camify.convert(TinyVGG(5, (8, 16, 32, 32)), head="recast",
                                                  input_size=96, seed=0), "features", 128),
                "tiny": lambda: (TinyVGG(5), "features.20", 96),
            }[name]()  # fmt: skip
            made[name] = (model.eval(), BruteForce(model, layer), side)
        return made[name]

    return of
