"""Heads that are linear after pooling are kept; what is not linear is replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from camify.conversion import convert, inspect
from tests.conversion.networks import (
    MODELS,
    body,
    check_identity,
    heads,
    relative,
    shake,
)

NATIVES = {
    "resnet18": {},
    "mobilenet_v2": {},
    "DenseNet": {"growth_rate": 8, "block_config": (2, 3, 3, 2), "num_init_features": 16},
    "googlenet": {"init_weights": False},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
}


@pytest.mark.parametrize("name", NATIVES)
@pytest.mark.slow
def test_a_native_cam_network_keeps_its_logits_and_its_classifier(name):
    legacy = shake(getattr(MODELS, name)(num_classes=12, **NATIVES[name])).eval()
    size = 96 if name != "googlenet" else 128
    net = convert(legacy, head="direct", input_size=size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert relative(net(images), legacy(images)) < 1e-4
    linear = [module for module in legacy.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.equal(net.classifier.weight, linear.weight)
    assert torch.equal(net.classifier.bias, linear.bias)
    assert net.classifier is not linear
    assert net.certificate.legacy_error < 1e-4
    assert [part.status for part in net.certificate.parts] == ["kept", "kept"]
    check_identity(net, images)


@pytest.mark.parametrize("kind", heads())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_head_of_several_layers_is_folded_exactly(kind, dtype):
    legacy = shake(nn.Sequential(*body(), *heads()[kind])).eval().to(dtype)
    for head in ("direct", "recast"):
        net = convert(legacy, head=head, input_size=16)
        images = torch.randn(4, 3, 16, 16, dtype=dtype)
        with torch.no_grad():
            assert relative(net(images), legacy(images)) < (1e-5 if dtype == torch.float32 else 1e-12)
        assert net.certificate.legacy_error is not None
        check_identity(net, images)
    if kind != "conv first":
        assert inspect(legacy, input_size=16).verdict == "foldable"


def test_folded_batch_norm_has_the_weights_of_the_formula():
    norm, linear = nn.BatchNorm1d(8), nn.Linear(8, 5)
    legacy = shake(nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, linear)).eval()
    net = convert(legacy, head="direct", input_size=16)
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    assert relative(net.classifier.weight, linear.weight * gain) < 1e-5
    shift = linear.weight @ (norm.bias - norm.running_mean * gain) + linear.bias
    assert relative(net.classifier.bias, shift) < 1e-4


def test_a_pointwise_convolution_to_the_classes_is_a_cam_head():
    conv = nn.Conv2d(8, 5, 1)
    legacy = nn.Sequential(*body(), nn.Dropout(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net = convert(legacy, head="direct", input_size=16)
    assert relative(net.classifier.weight, conv.weight[:, :, 0, 0]) < 1e-5
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        maps = net.forward_with_maps(images)[1]
        class_maps = legacy[:5](images) - conv.bias[:, None, None]
    assert relative(maps, class_maps) < 1e-4


NONLINEAR = {
    "relu": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)],
    "max": [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)],
    "norm": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 5)],
    "positions": [nn.Flatten(), nn.Linear(8 * 256, 5)],
}


@pytest.mark.parametrize("kind", NONLINEAR)
def test_a_head_that_is_not_linear_after_pooling_is_replaced(kind):
    legacy = nn.Sequential(*body(), *NONLINEAR[kind]).eval()
    assert inspect(legacy, input_size=16).verdict == "convertible"
    net = convert(legacy, head="direct", input_size=16)
    assert [part.status for part in net.certificate.parts] == ["kept", "dropped", "new"]
    assert net.certificate.legacy_error is None


@pytest.mark.slow
def test_mobilenet_v3_convnext_and_squeezenet_are_convertible():
    images = torch.randn(1, 3, 64, 64)
    for name, channels in {"mobilenet_v3_small": 576, "convnext_tiny": 768, "squeezenet1_0": 512}.items():
        legacy = shake(getattr(MODELS, name)(weights=None, num_classes=7)).eval()
        net = convert(legacy, head="direct", input_size=64)
        with torch.no_grad():
            expected = legacy.features(images)
            assert relative(net.features(images), expected) < 1e-5, name
        assert net.num_features == channels == expected.shape[1]
        check_identity(net, images)
