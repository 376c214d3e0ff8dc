"""Inspection: what a network is found to be, against what torchvision's sources say it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from camify.conversion import convert, inspect
from camify.errors import CheckpointError, ConversionError
from tests.conversion.networks import Returns

MODELS = torchvision.models


def narrow_vgg(batch_norm=False):
    """torchvision's VGG class with narrow layers."""
    with torch.device("meta"):  # its own head has 120 M parameters
        network = MODELS.VGG(nn.Identity(), init_weights=False)
    network.features = MODELS.vgg.make_layers([8, "M", 8, "M", 32, "M"], batch_norm=batch_norm)
    network.classifier = nn.Sequential(
        nn.Linear(32 * 49, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 6),
    )
    return network


class Gap(nn.Module):
    """Convolution, global average pooling as a function, then the given head."""

    def __init__(self, *head):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(*head)

    def forward(self, x):
        return self.head(self.stem(x).mean([2, 3]))


EXPECTED = {
    "vgg": (narrow_vgg, 64, "convertible", "features", (16, 16), 32, 6),
    "vgg_bn": (lambda: narrow_vgg(True), 64, "convertible", "features", (16, 16), 32, 6),
    "resnet18": (lambda: MODELS.resnet18(num_classes=7), 64, "native", "layer4", (2, 2), 512, 7),
    "mobilenet_v2": (lambda: MODELS.mobilenet_v2(num_classes=7), 64, "native", "features", (2, 2), 1280, 7),
    "shufflenet": (lambda: MODELS.shufflenet_v2_x0_5(num_classes=3), 64, "native", "conv5", (2, 2), 1024, 3),
    "squeezenet": (lambda: MODELS.squeezenet1_1(num_classes=4), 64, "convertible", "features", (3, 3), 512, 4),
    "mobilenet_v3": (
        lambda: MODELS.mobilenet_v3_small(num_classes=4), 64, "convertible", "features", (2, 2), 576, 4,
    ),
    "gap": (lambda: Gap(nn.Linear(8, 5)), 16, "native", "stem", (16, 16), 8, 5),
    "two linear": (lambda: Gap(nn.Linear(8, 4), nn.Linear(4, 5)), 16, "foldable", "stem", (16, 16), 8, 5),
    "norm": (lambda: Gap(nn.BatchNorm1d(8), nn.Linear(8, 5)), 16, "foldable", "stem", (16, 16), 8, 5),
    "hidden": (lambda: Gap(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 5)), 16, "convertible", "stem", (16, 16), 8, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_verdict_and_geometry(name):
    build, size, verdict, layer, map_size, channels, classes = EXPECTED[name]
    network = build().eval()
    found = inspect(network, input_size=size)
    assert found.verdict == verdict
    assert found.cam_ready is (verdict == "native")
    modules = dict(network.named_modules())
    last = found.feature_layer
    assert last in modules
    assert last == layer or last.startswith(f"{layer}.")
    assert (found.map_size, found.map_channels, found.num_classes) == (map_size, channels, classes)
    assert found.input_shape == (3, size, size)
    assert found.head_layers
    assert all(name in modules for name in found.head_layers)
    assert isinstance(modules[found.head_layers[-1]], nn.Linear) or name == "squeezenet"


def test_the_named_layers_are_the_ones_behind_the_map():
    found = inspect(narrow_vgg(), input_size=64)
    assert found.head_layers[:2] == ("features.8", "avgpool")
    assert found.head_layers[2:] == tuple(f"classifier.{index}" for index in range(7))
    network = narrow_vgg().eval()
    with torch.no_grad():
        expected = network.features[:-1](torch.zeros(1, 3, 64, 64))
    assert tuple(expected.shape[1:]) == (found.map_channels, *found.map_size)


def test_a_pool_before_the_activation_is_named_as_left_out():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)
    )
    found = inspect(network, input_size=16)
    assert found.verdict == "convertible"
    assert found.map_size == (16, 16)
    assert "1 would be left out" in found.reason
    assert found.head_layers[0] == "1"


def test_a_converted_network_is_native():
    net = convert(narrow_vgg(), input_size=64, head_channels=8)
    found = inspect(net, input_size=64)
    assert found.verdict == "native"
    assert found.cam_ready
    assert found.map_size == (16, 16)
    assert found.map_channels == 8


def test_functions_only_heads_are_native_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.weight = nn.Parameter(torch.randn(5, 8))

        def forward(self, x):
            return F.linear(F.relu(self.conv(x)).mean((2, 3)), self.weight)

    found = inspect(Functional(), input_size=16)
    assert found.verdict == "native"
    assert found.num_classes == 5
    assert "functions only" in str(found)


def test_it_can_be_printed():
    found = inspect(narrow_vgg(), input_size=64)
    text = str(found)
    for part in ("convertible", "features", "32 channels", "16 x 16 at 64 x 64 px", "classifier.6", "6"):
        assert part in text
    assert all(len(line) <= 110 for line in text.splitlines())
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    assert "verdict" in console.export_text()
    console.file.close()


UNSUPPORTED = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), "No spatial map"),
    "tuple": (lambda: Returns(Gap(nn.Linear(8, 5)), lambda y: (y, [y])), "expected one tensor"),
    "parallel": (lambda: nn.DataParallel(Gap(nn.Linear(8, 5))), "model.module"),
    "empty": (lambda: nn.Sequential(nn.MaxPool2d(2)), "no parameters"),
    "channels": (lambda: nn.Sequential(nn.Linear(7, 7), nn.Conv2d(3, 2, 3)), "cannot run"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_networks_get_a_verdict_and_a_reason(name):
    build, reason = UNSUPPORTED[name]
    found = inspect(build(), input_size=16)
    assert found.verdict == "unsupported"
    assert reason in found.reason
    assert not found.cam_ready
    assert found.feature_layer is None
    assert found.map_size is None
    assert found.head_layers == ()
    assert "unsupported" in str(found)


def test_reasons_with_brackets_are_printed_as_they_are():
    class Fails(Gap):
        def forward(self, x):
            raise RuntimeError("[red]not markup[/] and [/blue] neither")

    found = inspect(Fails(), input_size=16)
    assert "[red]not markup[/] and [/blue] neither" in " ".join(str(found).split())


def test_the_network_is_left_as_it_was():
    network = narrow_vgg(batch_norm=True).train()
    network.features[1].eval()
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    for example in (None, torch.rand(1, 3, 64, 64)):
        inspect(network, input_size=64, example=example)
        assert [m.training for m in network.modules()] == modes
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_example_and_rectangular_sizes():
    network = Gap(nn.Linear(8, 5))
    assert inspect(network, input_size=(12, 20)).map_size == (12, 20)
    found = inspect(network, example=torch.rand(1, 3, 9, 11))
    assert (found.map_size, found.input_shape) == ((9, 11), (3, 9, 11))
    assert inspect(network, example=torch.zeros(1, 3, 4, 4, dtype=torch.int64)).verdict == "unsupported"


def test_names_are_inspected_without_weights(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    found = inspect("torchvision/squeezenet1_1", input_size=64)
    assert (found.verdict, found.num_classes) == ("convertible", 1000)
    assert inspect("camify/tiny_vgg", input_size=96).map_size == (12, 12)
    with pytest.raises(ConversionError, match=r"no such network"):
        inspect("torchvision")
    with pytest.raises(CheckpointError):
        inspect(".")
