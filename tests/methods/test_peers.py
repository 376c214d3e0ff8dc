"""The same maps as other people's libraries, where those follow the formula, and as their variants where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camify import explain, methods

TARGETS = [3, 1]


@pytest.fixture(params=["alexnet", "resnet18", "converted"])
def case(request, networks):
    model, brute, side = networks(request.param)
    layer = next(name for name, module in brute.model.named_modules() if module is brute.layer)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(6))
    return model, layer, images


def same(found, expected, tolerance=1e-4):
    expected = torch.as_tensor(np.asarray(expected)).double()
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    return float((found.double() - expected).abs().max() / expected.abs().max()) < tolerance


def torch_cam(name, model, layer, images, **options):
    """Raw maps of torch-cam, ReLU-ed by itself."""
    found = []
    kind = getattr(pytest.importorskip("torchcam.methods"), name)
    for image, target in zip(images, TARGETS, strict=True):
        with kind(model, layer, input_shape=tuple(image.shape), **options) as extractor, torch.enable_grad():
            scores = model(image[None].requires_grad_())
            found.append(extractor(target, scores, normalized=False)[0][0].detach())
    return torch.stack(found)


def pytorch_grad_cam(name, model, layer, images):
    """Heat of pytorch-grad-cam: ReLU-ed, upsampled, min-max."""
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(t) for t in TARGETS]
    with getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        return cam(input_tensor=images, targets=targets)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("gradcam++/torch-cam", "GradCAMpp")]
)
def test_torch_cam(case, ours, theirs):
    model, layer, images = case
    name, _, variant = ours.partition("/")
    options = {"variant": variant} if variant else {}
    found = explain(model, images, method=name, targets=TARGETS, normalize=None, size=None, **options)
    assert same(found.relu(), torch_cam(theirs, model, layer, images))


def test_torch_cam_of_cam(networks):
    model, _, side = networks("resnet18")
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    kind = pytest.importorskip("torchcam.methods").CAM
    for image, target in zip(images, TARGETS, strict=True):
        with kind(model, "layer4", fc_layer="fc", input_shape=tuple(image.shape)) as extractor, torch.no_grad():
            model(image[None])
            theirs = extractor(target, normalized=False)[0]
        assert same(methods.CAM(model)(image[None], target), theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("gradcam++/pytorch-grad-cam", "GradCAMPlusPlus")],
)
def test_pytorch_grad_cam(case, ours, theirs):
    model, layer, images = case
    name, _, variant = ours.partition("/")
    options = {"variant": variant} if variant else {}
    found = explain(model, images, method=name, targets=TARGETS, **options)
    assert same(found, pytorch_grad_cam(theirs, model, layer, images), 2e-3)  # they add 1e-7 to every span


def test_captum(case):
    model, layer, images = case
    captum = pytest.importorskip("captum.attr")
    theirs = captum.LayerGradCam(model, model.get_submodule(layer)).attribute(images, torch.tensor(TARGETS))
    assert same(methods.GradCAM(model)(images, TARGETS), theirs[:, 0].detach())


@pytest.mark.parametrize("name", ["converted", pytest.param("recast", marks=pytest.mark.slow)])
def test_scorecam_of_both(networks, name, monkeypatch):
    model, brute, side = networks(name)
    layer = next(key for key, module in brute.model.named_modules() if module is brute.layer)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(8))
    found = methods.ScoreCAM(model, variant="torch-cam")(images, TARGETS)
    assert same(found.relu(), torch_cam("ScoreCAM", model, layer, images))
    heat = explain(model, images, method="scorecam", targets=TARGETS, variant="pytorch-grad-cam")
    monkeypatch.setattr("tqdm.tqdm", lambda iterable: iterable)
    assert same(heat, pytorch_grad_cam("ScoreCAM", model, layer, images), 2e-3)


def test_our_default_is_not_theirs(networks):
    """The deviations that the docstrings name are real."""
    model, _, side = networks("converted")
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))
    maps = {v: methods.GradCAMPlusPlus(model, variant=v)(images, TARGETS) for v in
            ("paper", "authors", "pytorch-grad-cam", "torch-cam")}  # fmt: skip
    maps = {name: value / value.amax((1, 2), keepdim=True) for name, value in maps.items()}
    for name in ("authors", "pytorch-grad-cam", "torch-cam"):
        assert float((maps[name] - maps["paper"]).abs().max()) > 1e-3, name
