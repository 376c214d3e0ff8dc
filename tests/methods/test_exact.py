"""Raw maps equal the papers' formulas, evaluated by brute force in float64."""

from __future__ import annotations

import pytest
import torch

from camify import methods

from .brute_force import BruteForce

NETWORKS = ("alexnet", "vgg16", "resnet18", "mobilenet_v2", "converted", "recast")


def assert_equals(found, expected):
    """To 1e-4 of the map's largest value."""
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.fixture(params=NETWORKS)
def case(request, networks):
    model, brute, side = networks(request.param)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    return model, brute, images, torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("kind", "options", "formula"),
    [
        (methods.GradCAM, {}, "gradcam"),
        (methods.GradCAMPlusPlus, {}, "gradcampp"),
        (methods.GradCAMPlusPlus, {"variant": "authors"}, "gradcampp_authors"),
        (methods.LayerCAM, {}, "layercam"),
    ],
)
def test_gradient_methods(case, kind, options, formula):
    model, brute, images, targets = case
    found = kind(model, **options)(images, targets)
    for image, target, maps in zip(images, targets, found, strict=True):
        assert_equals(maps, getattr(brute, formula)(image, int(target)))


@pytest.mark.parametrize(("variant", "gaussian"), [("softmax", True), ("logits", False)])
def test_reciprocam(case, variant, gaussian):
    model, brute, images, targets = case
    found = methods.ReciproCAM(model, variant=variant, gaussian=gaussian)(images, targets)
    expected = brute.reciprocam(images[1], int(targets[1]), variant, gaussian)
    assert_equals(found[1], expected)
    spread = expected - expected.mean()  # of probabilities that are nearly the same everywhere, too
    assert float((found[1] - found[1].mean() - spread).abs().max() / spread.abs().max()) < 1e-2


@pytest.mark.parametrize(("variant", "formula"), [("paper", "scorecam"), ("authors", "scorecam_authors")])
@pytest.mark.parametrize("name", [pytest.param("converted", marks=pytest.mark.slow), "recast", "tiny"])
def test_scorecam(networks, name, variant, formula):
    model, brute, side = networks(name)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    found = methods.ScoreCAM(model, variant=variant, chunk=5)(images, [3, 1])
    assert_equals(found[1], getattr(brute, formula)(images[1], 1))


@pytest.mark.parametrize(
    "layer", ["layer2", "layer4.0.conv1", "layer4.1.bn1", "layer3.0.downsample.0", "layer4.1.relu"]
)
@pytest.mark.parametrize("formula", ["gradcam", "layercam", "reciprocam"])
@pytest.mark.slow
def test_any_layer(networks, layer, formula):
    """Also inside a residual block, before an in-place step, and a module that runs twice."""
    model, _, _ = networks("resnet18")
    side = 64 if formula != "reciprocam" else 40  # its brute force runs the network once for every cell
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(4))
    if formula == "reciprocam" and layer == "layer4.1.relu":
        pytest.skip("the brute force replaces every call of the module")
    kind = {"gradcam": methods.GradCAM, "layercam": methods.LayerCAM, "reciprocam": methods.ReciproCAM}[formula]
    options = {"variant": "logits"} if formula == "reciprocam" else {}
    found = kind(model, layer, **options)(image, 2)
    assert_equals(found[0], getattr(BruteForce(model, layer), formula)(image[0], 2, *options.values()))


@pytest.mark.parametrize("name", ["converted", "recast"])
def test_closed_forms_of_a_linear_head(networks, name):
    model, _, side = networks(name)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        maps = model.features(images).double()
    positions, targets = maps.shape[2] * maps.shape[3], torch.tensor([2, 0])
    weight = model.classifier.weight.detach().double()[targets][:, :, None, None]
    cam = (weight * maps).sum(1)
    found = {
        key: kind(model, **options)(images, targets).double()
        for key, kind, options in [
            ("cam", methods.CAM, {}),
            ("gradcam", methods.GradCAM, {}),
            ("layercam", methods.LayerCAM, {}),
            ("gradcam++", methods.GradCAMPlusPlus, {}),
            ("recipro", methods.ReciproCAM, {"variant": "logits"}),
        ]
    }
    assert_equals(found["cam"], cam)
    assert_equals(found["gradcam"], cam / positions)
    assert_equals(found["layercam"], (weight.relu() * maps).sum(1) / positions)
    plus = weight.relu() / (2 + weight * maps.mean((2, 3), keepdim=True))
    assert_equals(found["gradcam++"], (plus * maps).sum(1))
    bias = model.classifier.bias.detach().double()[targets][:, None, None]
    assert_equals(found["recipro"], cam / positions + bias)
