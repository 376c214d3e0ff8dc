"""FullGrad: its parts add up to the logit; its map by hand, by pytorch-grad-cam and as the authors' code has it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

import camify
from camify import explain, methods

TARGETS = [2, 0]


def with_statistics(net):
    """Batch norms whose bias is no zero; random weights of ReLU networks."""
    torch.manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            if module.affine:
                nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    return net.double().eval()


def network(*behind):
    torch.manual_seed(3)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    head = behind or (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), block, block, nn.Dropout(), *head
    )  # the block runs twice
    return with_statistics(net)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Shortcut(nn.Module):
    """A functional layer, a shortcut and a parameter's own batch norm; torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.bias, self.classifier = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        if float(x.mean()) > 1e9:
            raise ValueError
        x = self.act(self.norm(self.first(x)))
        x = self.act(x + F.conv2d(x, self.first.weight[:, :1].repeat(1, 4, 1, 1), bias=self.bias, padding=1))
        return self.classifier(x.mean((2, 3)))


def assert_adds_up(net, images, targets=TARGETS):
    parts = methods.FullGrad(net).parts(images, targets)
    with torch.no_grad():
        expected = net(images)[range(len(images)), targets]
    assert float(parts.image.abs().max()) > 0
    assert all(len(part) == len(images) for part in parts.biases)
    torch.testing.assert_close(parts.total, expected, rtol=1e-10, atol=1e-12)
    return parts


def test_the_parts_add_up_to_the_logit(images):
    parts = assert_adds_up(network(), images)
    assert [tuple(part.shape[1:]) for part in parts.biases] == [(4, 8, 12), (4, 4, 6), (4, 4, 6), (4,)]
    assert_adds_up(network(nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 4)), images)
    assert len(assert_adds_up(with_statistics(Shortcut()), images).biases) == 4


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_the_parts_of_torchvisions_networks_add_up(name):
    torch.manual_seed(0)
    net = with_statistics(get_model(name, weights=None, num_classes=5))
    assert_adds_up(net, torch.randn(2, 3, 64, 64, dtype=torch.float64))


@pytest.mark.slow
def test_the_parts_of_densenet_add_up():
    torch.manual_seed(0)
    net = with_statistics(get_model("densenet121", weights=None, num_classes=5))
    assert_adds_up(net, torch.randn(2, 3, 64, 64, dtype=torch.float64))


def test_the_parts_of_converted_networks_add_up(images):
    net = camify.convert(network().float(), head="gap", head_channels=8, input_size=(8, 12), seed=0)
    assert_adds_up(with_statistics(net), images)


def test_a_softmax_behind_the_logits_is_no_part(images):
    net = network()
    with_softmax = nn.Sequential(*copy.deepcopy(net), nn.Softmax(1)).eval()
    torch.testing.assert_close(
        methods.FullGrad(with_softmax).parts(images, TARGETS).total, net(images)[range(2), TARGETS].detach()
    )


def test_the_parts_of_one_logit_turn_with_the_class(images):
    net = network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    logit = net(images)[:, 0].detach()
    first, second = (methods.FullGrad(net).parts(images, target).total for target in (0, 1))
    torch.testing.assert_close(first.abs(), logit.abs())
    torch.testing.assert_close(first, -second)


def by_hand(net, images, targets, *, together=False, corners=False, epsilon=0.0):
    """Channel by channel; biases as parameters of every position, whose gradients torch gives."""
    net, maps = copy.deepcopy(net), []
    for image, target in zip(images, targets, strict=True):
        outputs, handles = [], []
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                handles.append(module.register_forward_hook(lambda module, args, out: out + offset(module, out)))
        image = image[None].clone().requires_grad_()

        def offset(module, out, outputs=outputs):
            zero = torch.zeros_like(out, requires_grad=True)
            if isinstance(module, nn.BatchNorm2d):
                sigma = (module.running_var + module.eps).sqrt()
                outputs.append((zero, module.bias - module.weight * module.running_mean / sigma))
            elif module.bias is not None:
                outputs.append((zero, module.bias))
            return zero

        score = net(image)[0, target]
        gradients = torch.autograd.grad(score, [image, *(zero for zero, _ in outputs)])
        products = [gradients[0] * image]
        products += [g * b[None, :, None, None] for g, (_, b) in zip(gradients[1:], outputs, strict=True)]
        total = torch.zeros(image.shape[2:], dtype=torch.float64)
        for product in products:
            values = product.detach().abs()
            for channel in values[0]:
                low, high = (values.min(), values.max()) if together else (channel.min(), channel.max())
                scaled = (channel - low) / (high - low + epsilon) if high > low else torch.zeros_like(channel)
                total += F.interpolate(
                    scaled[None, None], image.shape[2:], mode="bilinear", align_corners=corners
                )[0, 0]  # fmt: skip
        maps.append(total)
        for handle in handles:
            handle.remove()
    return torch.stack(maps)


def raw(net, images, **options):
    return explain(net, images, method="fullgrad", targets=TARGETS, normalize=None, size=None, **options)


@pytest.mark.parametrize("net", [network(), network(nn.Flatten(), nn.Linear(96, 4))], ids=["gap", "flat"])
def test_the_map_by_hand(net, images):
    found = raw(net, images)
    assert found.shape == (2, 8, 12)
    torch.testing.assert_close(found, by_hand(net, images, TARGETS), rtol=1e-9, atol=1e-12)
    authors = by_hand(net, images, TARGETS, together=True, corners=True, epsilon=1e-6)
    torch.testing.assert_close(raw(net, images, variant="authors"), authors, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(authors, found)


def test_frozen_networks_have_the_same_map(images):
    net = network()
    expected = raw(net, images)
    torch.testing.assert_close(raw(copy.deepcopy(net).requires_grad_(False), images), expected)


def test_a_map_takes_one_run_beside_the_shared_one(images):
    net, rows = network(), []
    made = methods.FullGrad(net)
    made(images, TARGETS)  # the last map is found once
    handle = net[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    made(images, TARGETS)
    handle.remove()
    assert rows == [2] * (1 + made.further_forwards(4))


def test_two_classes_of_an_image(images):
    net = network()
    found = explain(net, images, method="fullgrad", targets=[[2, 1], [0, 3]], normalize=None, size=None)
    torch.testing.assert_close(found[:, 0], raw(net, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_pytorch_grad_cam(networks, name):
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    net = network().float() if name == "tiny" else networks(name)[0]
    if name == "tiny":
        net[4] = copy.deepcopy(net[3])  # theirs takes a layer that runs twice for one
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(target) for target in TARGETS]
    with pytorch_grad_cam.FullGrad(copy.deepcopy(net), []) as cam:
        expected = torch.from_numpy(cam(input_tensor=images.clone(), targets=targets))
    found = explain(net, images, method="fullgrad", targets=TARGETS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)  # they add 1e-7 to every span


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_networks_whose_biases_have_no_maps_are_refused(images):
    torch.manual_seed(0)
    net = Tokens().double().eval()
    with pytest.raises(camify.ConversionError, match=r"FullGrad: a layer with biases gives \(2, 16, 6\).*Use gradcam"):
        raw(net, images)
    norm = network()
    norm[3][1] = nn.BatchNorm2d(4, track_running_stats=False).double()
    with (
        pytest.warns(UserWarning, match="depend on which others are in its batch"),
        pytest.raises(camify.ConversionError, match="keeps no running statistics"),
    ):
        raw(norm, images)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"variant": "best"}, "Choose one of paper, authors"), ({"layer": "0"}, "FullGrad takes all layers")],
)
def test_wrong_options_are_refused(images, options, words):
    with pytest.raises(camify.ConfigError, match=words):
        raw(network(), images, **options)


def test_parts_are_of_one_class_per_image(images):
    with pytest.raises(camify.ConfigError, match="one class per image"):
        methods.FullGrad(network()).parts(images, [[0, 1], [1, 2]])
