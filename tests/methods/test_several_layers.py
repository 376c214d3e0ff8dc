"""LayerCAM of several layers: the paper's fusion of maps that brute force takes one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import camify
from camify import explain, methods

from .brute_force import BruteForce

TARGETS = [3, 1]


def images_of(side, seed=4):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def fused_by_hand(maps, gamma=2.0):
    """Jiang et al. 2021, section III, of the maps (h_i, w_i) of one image: the finest grid's size."""
    side = max(len(m) for m in maps)
    stages = []
    for m in maps:
        positive = m.clamp(min=0)
        scaled = torch.tanh(gamma * positive / positive.max()) if positive.max() > 0 else positive
        stages.append(F.interpolate(scaled[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0])
    best = stages[0]
    for stage in stages[1:]:
        best = torch.where(stage > best, stage, best)
    return best


class Residual(nn.Module):
    """Stages with shortcuts, ReLUs in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.first, self.second = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.pool(self.relu(x + self.first(x)))
        return self.head(self.relu(x + self.relu(self.second(x))).mean((2, 3)))


@pytest.fixture
def residual():
    torch.manual_seed(1)
    return Residual().eval()


@pytest.mark.parametrize(
    ("convert", "layers", "gamma"),
    [
        (False, ["second", "pool", "stem.0", "first"], 2.0),  # in any order; ReLUs in place follow three of them
        (False, ["stem", "second"], 3.0),
        (True, ["features.pool", "features"], 2.0),  # a CAMNet, its last map by name
    ],
)
def test_the_fused_map_is_the_papers_of_brute_forces_maps(residual, convert, layers, gamma):
    model = camify.convert(residual, head="gap", head_channels=5, input_size=32, seed=0) if convert else residual
    images = images_of(32)
    options = {"layer": layers, "targets": TARGETS, "gamma": gamma}
    found = explain(model, images, method="layercam", normalize=None, size=None, **options)
    for index, target in enumerate(TARGETS):
        maps = [BruteForce(model, layer).layercam(images[index], target) for layer in layers]
        assert len({m.shape for m in maps}) > 1 or convert
        expected = fused_by_hand(maps, gamma)
        assert float(expected.max()) > 0.9
        torch.testing.assert_close(found[index].double(), expected, rtol=0, atol=1e-4)


def test_torch_cam_fuses_the_same(residual):
    model, layers, images = residual, ["stem", "pool"], images_of(32, 5)
    found = explain(model, images, method="layercam", layer=layers, targets=TARGETS, normalize=None, size=None)
    kind = pytest.importorskip("torchcam.methods").LayerCAM
    for image, target, ours in zip(images, TARGETS, found, strict=True):
        with kind(model, layers, input_shape=tuple(image.shape)) as extractor, torch.enable_grad():
            maps = extractor(target, model(image[None].requires_grad_()), normalized=False)
        theirs = kind.fuse_cams([m.detach() / m.detach().max() for m in maps])[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_tokens_of_a_transformers_blocks():
    """The patches of each block's tokens as a 4 x 4 map; the class token is no cell."""
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    layers = [f"encoder.layers.encoder_layer_{index}" for index in (0, 1)]
    images, seen = images_of(32), []
    found = explain(model, images, method="layercam", layer=layers, targets=TARGETS, normalize=None, size=None)
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda *given: seen.append(given[2])) for layer in layers
    ]
    score = model(images)[torch.arange(2), torch.tensor(TARGETS)].sum()
    stages = [
        (gradient.relu() * tokens)[:, 1:].sum(2).reshape(2, 4, 4).detach()
        for tokens, gradient in zip(seen, torch.autograd.grad(score, seen), strict=True)
    ]
    assert len(handles) == len(stages) == 2
    for index in range(2):
        expected = fused_by_hand([stage[index] for stage in stages])
        torch.testing.assert_close(found[index], expected, rtol=0, atol=1e-4)


def test_one_forward_and_one_backward_serve_all_layers(residual, monkeypatch):
    model, layers, images = residual, ["stem", "second"], images_of(32)
    methods.LayerCAM(model, layers)(images)  # the layers' places are found once
    forwards, backwards, grad = [], [], torch.autograd.grad
    handle = model.stem[0].register_forward_pre_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: backwards.append(1) or grad(*args, **kwargs))
    methods.LayerCAM(model, layers)(images, TARGETS)
    handle.remove()
    assert (len(forwards), len(backwards)) == (1, 1)


def test_several_targets_and_one_name_in_a_list(residual):
    model, images, layers = residual, images_of(32), ["stem", "second"]
    both = explain(model, images, method="layercam", layer=layers, targets=[[3, 1], [0, 2]])
    assert both.shape == (2, 2, 32, 32)
    torch.testing.assert_close(both[:, 1], explain(model, images, method="layercam", layer=layers, targets=[1, 2]))
    alone = explain(model, images, method="layercam", layer=["stem"])
    assert torch.equal(alone, explain(model, images, method="layercam", layer="stem"))


def test_a_stage_without_evidence_adds_nothing():
    """The head reads the second stage's map with negative weights only: no gradient is positive there."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -1, 1)
    nn.init.constant_(network[7].weight, -1.0)
    nn.init.uniform_(network[3].weight, -1.0, 0.0)
    nn.init.constant_(network[3].bias, 9.0)  # its ReLU lets all through
    images = images_of(8)
    found = explain(network, images, method="layercam", layer=["1", "4"], targets=0, normalize=None, size=None)
    for index in range(2):
        first, second = (BruteForce(network, layer).layercam(images[index], 0) for layer in ("1", "4"))
        assert float(second.max()) == 0
        torch.testing.assert_close(found[index].double(), fused_by_hand([first]), rtol=0, atol=1e-5)


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head((self.left(x).relu() + self.right(x).relu()).mean((2, 3)))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = TwoBranches()

    def forward(self, x):
        return self.body(x if x.sum() > 0 else x * 1)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (TwoBranches, {"layer": ["left", "right"]}, "not computed from"),
        (TwoBranches, {"layer": ["left", "midle"]}, "no such module"),
        (TwoBranches, {"layer": ["left", 3]}, "a list of names"),
        (TwoBranches, {"layer": []}, "a list of names"),
        (TwoBranches, {"layer": ["left", "right"], "method": "gradcam"}, "GradCAM looks at one layer"),
        (TwoBranches, {"layer": ["left", "right"], "method": "cam"}, "last spatial map only"),
        (TwoBranches, {"layer": "left", "gamma": 0}, "gamma=0"),
        (Untraceable, {"layer": ["body.left", "body.right"]}, "cannot trace"),
    ],
)
def test_layers_that_cannot_be_fused_are_refused(make, options, words):
    torch.manual_seed(0)
    with pytest.raises(camify.ConfigError, match=words):
        explain(make().eval(), images_of(16), **{"method": "layercam", **options})
