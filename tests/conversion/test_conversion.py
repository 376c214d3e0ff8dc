"""Conversion of torchvision's VGG and AlexNet by hand-written formulas, and its options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camify.conversion import convert, inspect
from camify.errors import ConversionError
from camify.model import CAMNet
from tests.conversion.networks import (
    VGGS,
    FunctionalNet,
    body,
    chain,
    check_identity,
    heads,
    loops,
    narrow_vgg,
    real,
    relative,
    same_tensors,
    shake,
)


def check_layers(net: CAMNet, legacy: nn.Module, new_convs: list[tuple[int, int]]) -> None:
    """The features are torchvision's ``features[:-1]``, layer for layer, and the new convolutions."""
    layers, expected = list(net.features), list(legacy.features)[:-1]
    assert isinstance(legacy.features[-1], nn.MaxPool2d)
    kept, new = layers[: len(expected)], layers[len(expected) :]
    assert [repr(layer) for layer in kept] == [repr(layer) for layer in expected]
    assert all(same_tensors(a, b) for a, b in zip(kept, expected, strict=True))
    assert all(a is not b for a, b in zip(kept, expected, strict=True))
    wanted = []
    for before, after in new_convs:
        wanted += [repr(nn.Conv2d(before, after, 3, padding=1)), repr(nn.ReLU())]
    assert [repr(layer) for layer in new] == wanted


@pytest.mark.parametrize("name", VGGS)
@pytest.mark.slow
def test_every_vgg_becomes_features_without_the_last_pool_and_a_cam_head(name):
    legacy = narrow_vgg(name)
    images = torch.randn(1, 3, 96, 96)
    net = convert(legacy, head="gap", input_size=96, seed=0)
    check_layers(net, legacy, [(64, 1024)])
    assert net.certificate.map_size == (6, 6)
    assert net.certificate.map_channels == net.num_features == 1024
    assert net.num_classes == 5
    check_identity(net, images)
    direct = convert(legacy, head="direct", input_size=64, seed=0)
    check_layers(direct, legacy, [])
    assert direct.certificate.map_size == (4, 4)
    assert direct.num_features == 64
    with torch.no_grad():
        assert torch.equal(direct.features(images), legacy.features[:-1](images))


def parts(net: CAMNet) -> list[tuple[str, int]]:
    return [(part.status, part.parameters) for part in net.certificate.parts]


@pytest.mark.slow
def test_vgg16_drops_its_fully_connected_parameters():
    legacy = real("vgg16")
    net = convert(legacy, input_size=64, seed=0)
    kept = sum(p.numel() for p in legacy.features.parameters())
    new_conv, new_classifier = 512 * 1024 * 9 + 1024, 1024 * 1000 + 1000
    assert kept == 14_714_688
    assert parts(net) == [
        ("kept", kept),
        ("dropped", 123_642_856),
        ("new", new_conv),
        ("new", new_classifier),
    ]
    assert sum(p.numel() for p in net.parameters()) == kept + new_conv + new_classifier


def test_vgg11_at_224_has_a_map_of_14x14():
    legacy = narrow_vgg("vgg11")
    images = torch.randn(1, 3, 224, 224)
    net = convert(legacy, input_size=224, seed=0)
    check_layers(net, legacy, [(64, 1024)])
    assert net.certificate.map_size == (14, 14)
    check_identity(net, images)
    with torch.no_grad():
        features = legacy.features[:-1](images)
        assert features.shape == (1, 64, 14, 14)
        expected = F.relu(F.conv2d(features, net.features[-2].weight, net.features[-2].bias, padding=1))
        assert relative(net.features(images), expected) < 1e-6


@pytest.mark.slow
def test_alexnet_at_224_has_a_map_of_13x13_and_two_convolutions():
    legacy = real("alexnet")
    images = torch.randn(1, 3, 224, 224)
    net = convert(legacy, input_size=224, seed=0)
    check_layers(net, legacy, [(256, 512), (512, 512)])
    assert net.certificate.map_size == (13, 13)
    kept = sum(p.numel() for p in legacy.features.parameters())
    assert parts(net)[:2] == [("kept", kept), ("dropped", 58_631_144)]
    assert [size for _, size in parts(net)[2:]] == [
        256 * 512 * 9 + 512,
        512 * 512 * 9 + 512,
        512 * 1000 + 1000,
    ]
    check_identity(net, images)
    direct = convert(legacy, head="direct", input_size=224, seed=0)
    check_layers(direct, legacy, [])
    assert parts(direct) == [("kept", kept), ("dropped", 58_631_144), ("new", 256 * 1000 + 1000)]
    assert direct.forward_with_maps(images)[1].shape == (1, 1000, 13, 13)


def test_a_small_image_is_not_enlarged_to_the_size_of_the_adaptive_pool():
    """torchvision's VGG pools to 7 x 7 whatever comes: at 64 px that would copy 2 x 2 values."""
    net = convert(narrow_vgg("vgg11"), head="direct", input_size=64)
    assert net.certificate.map_size == (4, 4)


def test_maps_are_those_of_the_formula_written_as_loops():
    net = convert(chain(), input_size=64, seed=3, head_channels=6)
    images = torch.randn(2, 3, 64, 64)[:, :, :24, :20]  # a map of 12 x 10
    with torch.no_grad():
        logits, maps = net.forward_with_maps(images)
        expected = loops(net.features(images), net.classifier.weight)
    assert maps.shape == (2, 5, 12, 10) or maps.shape == expected.shape
    assert relative(maps.double(), expected) < 1e-5
    assert relative(expected.mean((2, 3)) + net.classifier.bias.double(), logits.double()) < 1e-4


def test_the_number_of_classes_can_change():
    legacy = chain(classes=5)
    for classes in (1, 2, 37):
        net = convert(legacy, num_classes=classes, input_size=64, head_channels=8)
        assert net(torch.randn(2, 3, 64, 64)).shape == (2, classes)
        assert net.certificate.num_classes == classes
        assert net.certificate.legacy_classes == 5
    native = shake(nn.Sequential(*body(), *heads()["batch norm"])).eval()
    assert convert(native, head="direct", num_classes=9, input_size=16).certificate.legacy_error is None
    with pytest.raises(ConversionError, match=r"keeps the 5 classes; num_classes=9"):
        convert(native, head="recast", num_classes=9, input_size=16)


@pytest.mark.parametrize("head", ["gap", "direct"])
def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone(head):
    for legacy in (chain(), shake(nn.Sequential(*body(), *heads()["two linear"])).eval()):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        nets = [convert(legacy, head=head, input_size=64, seed=seed, head_channels=6) for seed in (5, 5, 6)]
        inspect(legacy, input_size=64)
        assert torch.equal(torch.get_rng_state(), before)
        assert same_tensors(nets[0], nets[1])
        if head == "gap":
            assert not same_tensors(nets[0], nets[2])


def test_without_a_seed_the_global_generator_draws():
    legacy = chain()
    torch.manual_seed(7)
    first, second = (convert(legacy, input_size=64, head_channels=6) for _ in range(2))
    torch.manual_seed(7)
    again = convert(legacy, input_size=64, head_channels=6)
    assert same_tensors(first, again)
    assert not same_tensors(first, second)


@pytest.mark.parametrize("pool", ["gmp", "lse"])
def test_other_pools_follow_their_formula_and_claim_no_identity(pool):
    net = convert(chain(), input_size=64, pool=pool, head_channels=6, seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = net.features(images).double()
        r = getattr(net.pool, "r", None)
        pooled = features.amax((2, 3)) if pool == "gmp" else torch.log(torch.exp(r * features).mean((2, 3))) / r
        expected = pooled @ net.classifier.weight.double().T + net.classifier.bias.double()
        assert relative(net(images).double(), expected) < 1e-4
    assert net.certificate.identity_error is None
    assert not net.certificate.cam_ready
    assert "do not add up" in str(net.certificate)
    native = shake(nn.Sequential(*body(), *heads()["two linear"])).eval()
    assert convert(native, head="direct", pool=pool, input_size=16).certificate.legacy_error is None


def test_gradients_of_logits_and_maps_reach_the_first_convolution():
    for legacy in (chain(), FunctionalNet()):
        for output in (0, 1):
            net = convert(legacy, input_size=64, head_channels=6, seed=0)
            net.forward_with_maps(torch.randn(2, 3, 64, 64))[output].pow(2).sum().backward()
            for name, parameter in net.named_parameters():
                if output == 0 or name != "classifier.bias":
                    assert parameter.grad is not None, name
                    assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_precision_and_mode_are_the_legacys(dtype, training):
    legacy = chain().to(dtype).train(training)
    net = convert(legacy, input_size=64, head_channels=6, seed=0)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert {module.training for module in net.modules()} == {training}
    assert net.certificate.cam_ready
    for ours, theirs in zip(net.features[:6], legacy[:6], strict=True):
        assert same_tensors(ours, theirs)
    native = shake(nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))).to(dtype)
    assert inspect(native, input_size=16).verdict == "native"
    kept = convert(native, head="direct", input_size=16)
    assert torch.equal(kept.classifier.weight, native[-1].weight)
    assert next(native.parameters()).dtype == dtype


def test_a_converted_network_can_be_converted_again():
    once = convert(chain(), input_size=64, head_channels=6, seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    same = convert(once, head="direct", input_size=64)
    with torch.no_grad():
        assert torch.equal(same(images), once(images))
    for again in (
        convert(once, input_size=64, head_channels=4, seed=0),
        convert(FunctionalNet(), input_size=64),
    ):
        twice = convert(again, input_size=64, head_channels=(3, 4), seed=0)
        names = [name for name, _ in twice.features.named_children()]
        assert len(names) == len(set(names))
        assert twice.num_features == 4
        check_identity(twice, images)
