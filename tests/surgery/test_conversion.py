"""Conversion against torchvision's own modules, hand-written networks and formulas."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from camify.errors import ConversionError
from camify.model import CAMNet
from camify.surgery import convert, inspect

MODELS = torchvision.models
VGGS = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]


def real(name: str, num_classes: int = 1000) -> nn.Module:
    """A torchvision network with all its parameters, drawn quickly (Kaiming draws of 100 M numbers take seconds)."""
    with torch.device("meta"):
        options = {"init_weights": False} if name.startswith("vgg") else {}
        network = getattr(MODELS, name)(num_classes=num_classes, **options)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            bound = (6 / fan_in) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.uniform_(-bound, bound, generator=generator)
    shake(network)
    return network.eval()


def shake(network: nn.Module) -> nn.Module:
    """Batch norms that do something: a fresh one is the identity in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def with_small_head(name: str) -> nn.Module:
    """The torchvision VGG with its own features and a head of the same form that is quick to run."""
    with torch.device("meta"):
        network = getattr(MODELS, name)(init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))
    network.features.to_empty(device="cpu")
    for module in network.features:
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return shake(network).eval()


def same_tensors(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = list(ours.state_dict().values()), list(theirs.state_dict().values())
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def chain(blocks: int = 2, classes: int = 5, size: int = 64, channels: int = 3) -> nn.Sequential:
    """Convolutions, max-pools, flatten, two linear layers: the plain legacy network."""
    layers: list[nn.Module] = []
    width = 8
    for block in range(blocks):
        layers += [nn.Conv2d(channels if block == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    side = size // 2**blocks
    layers += [nn.Flatten(), nn.Linear(width * side * side, 16), nn.ReLU(), nn.Linear(16, classes)]
    return shake(nn.Sequential(*layers)).eval()


def loops(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Zhou et al. 2016, eq. 2, written out: M_k(x, y) = sum_c w_kc f_c(x, y)."""
    images, channels, height, width = features.shape
    maps = torch.zeros(images, len(weight), height, width, dtype=torch.float64)
    for n in range(images):
        for k in range(len(weight)):
            for y in range(height):
                for x in range(width):
                    value = 0.0
                    for c in range(channels):
                        value += float(weight[k, c]) * float(features[n, c, y, x])
                    maps[n, k, y, x] = value
    return maps


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def check_identity(net: CAMNet, images: torch.Tensor) -> None:
    net.eval()
    with torch.no_grad():
        logits, maps = net.forward_with_maps(images)
        assert torch.equal(logits, net(images))
        expected = torch.einsum("nchw,kc->nkhw", net.features(images).double(), net.classifier.weight.double())
    assert relative(maps.double(), expected) < 1e-5
    bias = net.classifier.bias.double()
    assert relative(expected.mean((2, 3)) + bias, logits.double()) < 1e-4


# ---------------------------------------------------------------- VGG and AlexNet


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
def test_every_vgg_becomes_features_without_the_last_pool_and_a_cam_head(name):
    legacy = with_small_head(name)
    images = torch.randn(1, 3, 96, 96)
    net = convert(legacy, head="gap", input_size=96, seed=0)
    check_layers(net, legacy, [(512, 1024)])
    assert net.certificate.map_size == (6, 6)
    assert net.certificate.map_channels == net.num_features == 1024
    assert net.num_classes == 5
    check_identity(net, images)
    direct = convert(legacy, head="direct", input_size=64, seed=0)
    check_layers(direct, legacy, [])
    assert direct.certificate.map_size == (4, 4)
    assert direct.num_features == 512
    with torch.no_grad():
        assert torch.equal(direct.features(images), legacy.features[:-1](images))


def parts(net: CAMNet) -> list[tuple[str, int]]:
    return [(part.status, part.parameters) for part in net.certificate.parts]


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
    legacy = real("vgg11")
    images = torch.randn(1, 3, 224, 224)
    net = convert(legacy, input_size=224, seed=0)
    check_layers(net, legacy, [(512, 1024)])
    assert net.certificate.map_size == (14, 14)
    check_identity(net, images)
    with torch.no_grad():
        features = legacy.features[:-1](images)
        assert features.shape == (1, 512, 14, 14)
        expected = F.relu(F.conv2d(features, net.features[-2].weight, net.features[-2].bias, padding=1))
        assert relative(net.features(images), expected) < 1e-6


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
    net = convert(with_small_head("vgg11"), head="direct", input_size=64)
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


# ---------------------------------------------------------------- a user's own networks


class FunctionalNet(nn.Module):
    """relu, pool and flatten as functions; the batch size is read at the top."""

    def __init__(self, flatten="view", size=(64, 64)):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.hidden = nn.Linear(12 * (size[0] // 4) * (size[1] // 4), 16)
        self.last = nn.Linear(16, 5)
        self.flatten = flatten

    def maps(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        return F.relu(self.two(x))

    def forward(self, x):
        batch = x.shape[0]
        y = F.max_pool2d(self.maps(x), kernel_size=2, stride=2)
        if self.flatten == "view":
            y = y.view(batch, -1)
        elif self.flatten == "size":
            y = y.view(y.size(0), -1)
        elif self.flatten == "reshape":
            y = y.reshape(x.shape[0], y.shape[1] * y.shape[2] * y.shape[3])
        else:
            y = torch.flatten(y, 1)
        return self.last(F.relu(self.hidden(y)))


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


class MnistNet(nn.Module):
    """The network of PyTorch's MNIST example: pool before ReLU, dropout of both kinds, log-softmax."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = x.view(-1, 320)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, training=self.training)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


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


class DropoutNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.dropout(x, 0.3, training=self.training)
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        return self.last(F.dropout(x.flatten(1), p=0.5, training=self.training))


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


class Nested(nn.Module):
    """Blocks in blocks, a skip connection, and a head in a block of its own."""

    class Block(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after))
            self.skip = nn.Conv2d(before, after, 1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(self.conv(x) + self.skip(x))

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"stem": self.Block(3, 8), "stage": self.Block(8, 12)})
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 16 * 16, 8), nn.Tanh(), nn.Linear(8, 4))

    def maps(self, x):
        return self.body["stage"](self.pool(self.body["stem"](x)))

    def forward(self, x):
        return self.head(self.pool(self.maps(x)))


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


class Discarded(nn.Module):
    """An in-place ReLU whose result nobody takes: the classic line ``self.relu(x)``."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.relu, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Linear(2048, 5),
        )
        self.how = how

    def forward(self, x):
        x = self.conv(x)
        if self.how == "layer":
            self.relu(x)
        elif self.how == "method":
            x.relu_()
        else:
            F.relu(x, inplace=True)
        return self.last(F.max_pool2d(x, 2).flatten(1))


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


class FiveChannels(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))


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


# ---------------------------------------------------------------- heads that are linear after pooling


NATIVES = {
    "resnet18": {},
    "mobilenet_v2": {},
    "densenet121": {},
    "googlenet": {"init_weights": False},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
}


@pytest.mark.parametrize("name", NATIVES)
def test_a_native_cam_network_keeps_its_logits_and_its_classifier(name):
    legacy = shake(getattr(MODELS, name)(weights=None, num_classes=12, **NATIVES[name])).eval()
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


def body() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]


def heads() -> dict[str, list[nn.Module]]:
    gap = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return {
        "batch norm": [*gap, nn.BatchNorm1d(8), nn.Linear(8, 5)],
        "two linear": [*gap, nn.Linear(8, 6), nn.Linear(6, 5)],
        "all of it": [*gap, nn.Linear(8, 6), nn.Dropout(0.4), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False)],
        "conv first": [nn.Conv2d(8, 6, 1), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(6, 5)],
    }


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
    "softmax": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(1)],
    "positions": [nn.Flatten(), nn.Linear(8 * 256, 5)],
}


@pytest.mark.parametrize("kind", NONLINEAR)
def test_a_head_that_is_not_linear_after_pooling_is_replaced(kind):
    legacy = nn.Sequential(*body(), *NONLINEAR[kind]).eval()
    assert inspect(legacy, input_size=16).verdict == "convertible"
    net = convert(legacy, head="direct", input_size=16)
    assert [part.status for part in net.certificate.parts] == ["kept", "dropped", "new"]
    assert net.certificate.legacy_error is None


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


# ---------------------------------------------------------------- options


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


# ---------------------------------------------------------------- promise 1: the user's model


def fingerprint(model: nn.Module) -> dict[str, object]:
    """All that a conversion could change: values, addresses, modes, flags, gradients, hooks, attributes."""
    return {
        "values": {
            name: (hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest(), tensor.data_ptr())
            for name, tensor in model.state_dict().items()
        },
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "flags": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.sum().item()) for n, p in model.named_parameters()
        },
        "hooks": [
            (name, key, list(hooks.items()))
            for name, module in model.named_modules()
            for key, hooks in vars(module).items()
            if key.endswith("_hooks") and isinstance(hooks, dict)
        ],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "layers": [(name, id(module)) for name, module in model.named_modules()],
    }


def lived_in(model: nn.Module) -> list[str]:
    """Mixed modes, frozen parts, gradients and hooks, as a model in use has them."""
    calls: list[str] = []
    model.train()
    modules = [module for module in model.modules() if not list(module.children())]
    for module in modules[::2]:
        module.eval()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
        module.register_forward_pre_hook(lambda *_: calls.append("pre"))
        module.register_full_backward_hook(lambda *_: None)
    return calls


def users_models() -> list[nn.Module]:
    return [chain(), FunctionalNet(), DropoutNet(), Nested(), MODELS.resnet18(num_classes=4)]


@pytest.mark.parametrize("index", range(5))
def test_converting_never_changes_the_users_model(index):
    model = users_models()[index]
    calls = lived_in(model)
    before = fingerprint(model)
    for head in ("gap", "direct"):
        net = convert(model, head=head, input_size=64, head_channels=6)
        assert fingerprint(model) == before
    inspect(model, input_size=64)
    assert fingerprint(model) == before
    assert calls == []
    # and what is trained afterwards is not the user's
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert fingerprint(model) == before


def test_a_refused_model_is_left_as_it_was():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Linear(8, 5)

        def forward(self, x):
            x = F.conv2d(x, self.weight)
            return self.last(x.mean((2, 3))) if x.sum() > 0 else self.last(x.amax((2, 3)))

    model = Bare()
    lived_in(model)
    before = fingerprint(model)
    with pytest.raises(ConversionError):
        convert(model, input_size=64)
    assert fingerprint(model) == before
    small = MODELS.resnet18(num_classes=4)
    lived_in(small)
    before = fingerprint(small)
    with pytest.raises(ConversionError):
        convert(small, input_size=16)
    assert fingerprint(small) == before


def test_kept_layers_keep_their_modes_and_flags_and_lose_hooks_and_gradients():
    model = chain()
    calls = lived_in(model)
    net = convert(model, input_size=64, head_channels=6)
    kept = [(ours, theirs) for ours, theirs in zip(net.features, model, strict=False) if ours is not theirs][:7]
    for ours, theirs in kept:
        assert type(ours) is type(theirs)
        assert ours.training == theirs.training
        assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
        assert all(p.grad is None for p in ours.parameters())
    assert all(p.requires_grad for n, p in net.named_parameters() if n.startswith(("features.cam", "classifier")))
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert calls == []
    assert all(not m._forward_hooks and not m._backward_hooks for m in net.modules())


def test_hooks_that_cannot_be_copied_or_traced_do_no_harm():
    class Recorder:
        def __init__(self):
            self.file = Path(__file__).open()  # noqa: SIM115 - a file cannot be copied
            self.means = []

        def hook(self, module, inputs, output):
            self.means.append(float(output.detach().mean()))

    model = Nested().eval()
    recorder = Recorder()
    for module in (model.body["stem"], model.body["stem"].act, model.head[1]):
        module.register_forward_hook(recorder.hook)
    net = convert(model, input_size=64, head_channels=6)
    assert recorder.means == []
    net(torch.randn(1, 3, 64, 64))
    assert recorder.means == []
    model(torch.randn(1, 3, 64, 64))
    assert len(recorder.means) == 3
    recorder.file.close()


# ---------------------------------------------------------------- refusals


def test_wrapped_models_are_refused_with_the_way_out():
    model = chain()
    with pytest.raises(ConversionError, match=r"DataParallel.*`model\.module`"):
        convert(nn.DataParallel(model), input_size=64)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ConversionError, match=r"DistributedDataParallel.*`model\.module`"):
            convert(wrapped, input_size=64)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ConversionError, match=r"torch\.compile.*`model\._orig_mod`"):
        convert(torch.compile(model), input_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; people still have such files
        script = torch.jit.trace(model, torch.randn(1, 3, 64, 64))
    with pytest.raises(ConversionError, match=r"ScriptModule"):
        convert(script, input_size=64)


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = chain(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: [y], lambda y: {"logits": y}, lambda y: y[:, :, None]])
def test_outputs_other_than_logits_are_refused(wrap):
    with pytest.raises(ConversionError, match=r"returns .*expected one tensor of logits \(N, classes\)"):
        convert(Returns(wrap), input_size=64)


def test_networks_without_a_map_are_refused():
    with pytest.raises(ConversionError, match=r"No spatial map.*larger input_size"):
        convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(), nn.Linear(16, 5)), input_size=8)
    with pytest.raises(ConversionError, match=r"No spatial map.*larger input_size"):
        convert(nn.Sequential(nn.Conv2d(3, 8, 16), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)), input_size=16)
    with pytest.raises(
        ConversionError, match=r"No spatial map.*1 x 1 at 32x32 px.*larger input_size: 224x224 gives 7 x 7"
    ):
        convert(MODELS.resnet18(num_classes=4), input_size=32)


def test_input_that_does_not_fit_is_named_with_the_layer():
    with pytest.raises(ConversionError, match=r"\(2, 3, 8, 8\); at features\.\d+: .*too small.*input_size"):
        convert(MODELS.squeezenet1_1(num_classes=4), input_size=8)
    with pytest.raises(ConversionError, match=r"at 9: .*Give input_size \(now 32x32\) or example"):
        convert(chain(size=64), input_size=32)
    with pytest.raises(ConversionError, match=r"input_size"):
        convert(chain(), input_size=0)
    with pytest.raises(ConversionError, match=r"example.*float images"):
        convert(chain(), example=torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ConversionError, match=r"example.*float images"):
        convert(chain(), example=torch.zeros(3, 64, 64))
    with pytest.raises(ConversionError, match=r"\(2, 1, 64, 64\)"):
        convert(chain(), example=torch.zeros(2, 1, 64, 64))


def test_parameters_without_values_are_refused():
    with pytest.raises(ConversionError, match=r"no parameters"):
        convert(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), input_size=16)
    with pytest.raises(ConversionError, match=r"without values"):
        convert(chain().to("meta"), input_size=64)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ConversionError, match=r"without values"):
        convert(lazy, input_size=16)
    broken = chain()
    with torch.no_grad():
        broken[0].weight.fill_(torch.nan)
    with pytest.raises(ConversionError, match=r"NaN or infinite"):
        convert(broken, input_size=64)


def test_weights_that_a_hook_computes_are_refused():
    pruned = chain()
    prune.l1_unstructured(pruned[4], "weight", 0.5)
    with pytest.raises(ConversionError, match=r"layer 4.*weight.*prune\.remove"):
        convert(pruned, input_size=64)
    prune.remove(pruned[4], "weight")
    assert convert(pruned, input_size=64, head_channels=6).certificate.cam_ready
    normed = chain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(normed[0])
    with pytest.raises(ConversionError, match=r"layer 0.*remove_weight_norm"):
        convert(normed, input_size=64)


@pytest.mark.parametrize("name", ["graph", "code", "meta", "to_folder", "recompile", "self", "in", "lambda"])
def test_layers_named_like_parts_of_the_generated_code_are_refused(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 4, 3))
            self.last = nn.Linear(4, 5)

        def forward(self, x):
            return self.last((self._modules[name](x) + 1).mean((2, 3)))

    with pytest.raises(ConversionError, match=f"layer {name}: .*Rename the layer"):
        convert(Named(), input_size=16)


@pytest.mark.parametrize("name", ["append", "extend", "x", "conv-1", "features", "pool", "cam_conv"])
def test_other_layer_names_are_free(name, tmp_path):
    layers = OrderedDict([(name, nn.Conv2d(3, 4, 3)), ("act", nn.ReLU())])

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            for key, layer in layers.items():
                self.add_module(key, layer)
            self.last = nn.Linear(4 * 30 * 30, 5)

        def forward(self, x):
            return self.last(self.act(self._modules[name](x)).flatten(1))

    net = convert(Named(), input_size=32, head_channels=6).eval()
    images = torch.randn(2, 3, 32, 32)
    check_identity(net, images)
    again = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    assert torch.equal(again(images), net(images))


BAD_OPTIONS = [
    ({"head": "fc"}, "head='fc'.*gap, direct, recast"),
    ({"pool": "avg"}, "pool='avg'.*gap, gmp, lse"),
    ({"recipe": "zhou2017"}, "recipe='zhou2017'.*zhou2016/vgg16-gap"),
    ({"recipe": "zhou2016/vgg16-gap"}, "is for VGG16"),
    ({"num_classes": 0}, "num_classes=0"),
    ({"num_classes": -3}, "num_classes=-3"),
    ({"dropout": 1.0}, r"dropout=1\.0"),
    ({"dropout": -0.1}, r"dropout=-0\.1"),
    ({"dropout": float("nan")}, "dropout=nan"),
    ({"map_stride": 8}, "map_stride"),
    ({"head_channels": 0}, "head_channels=0"),
    ({"head_channels": ()}, "head_channels="),
    ({"head_channels": (8, -1)}, "head_channels="),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConversionError, match=message):
        convert(chain(), input_size=64, **options)


# ---------------------------------------------------------------- against torch-cam
