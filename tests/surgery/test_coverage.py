"""Every classification CNN of torchvision at its native size: ``pytest -m slow tests/surgery/test_coverage.py``."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from camify import convert

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
NAMES = [name for name in list_models(module=torchvision.models) if not name.startswith(TRANSFORMERS)]
GIANT = 150_000_000  # parameters; more take minutes and gigabytes here


def legacy_of(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        parameters = sum(p.numel() for p in get_model(name, weights=None, **options).parameters())
    if parameters > GIANT:
        pytest.skip(f"{name} has {parameters:,} parameters")
    return get_model(name, weights=None, **options).eval()


def test_the_list_is_torchvisions():
    assert len(NAMES) > 60
    assert {"alexnet", "vgg16", "resnet50", "googlenet", "convnext_tiny", "regnet_y_8gf"} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cnn_converts_with_every_head(name):
    legacy = legacy_of(name)
    size = get_model_weights(name).DEFAULT.transforms().crop_size[0]
    for head in ("gap", "direct", "recast"):
        net = convert(legacy, head=head, input_size=size)
        assert net.certificate.identity_error <= 1e-4
        if head != "recast" or ("vgg" not in name and name != "alexnet"):
            assert min(net.certificate.map_size) >= 7
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        net(images).square().sum().backward()
        first = next(module for module in net.features.modules() if isinstance(module, nn.Conv2d))
        assert float(first.weight.grad.abs().max()) > 0, "the gradient reaches the first convolution"
