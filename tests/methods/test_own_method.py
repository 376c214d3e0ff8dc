"""A method from outside the package, by name everywhere."""

from __future__ import annotations

import pytest
import torch

import camify
from camify.methods import Method, find_method, register


class Elementwise(Method):
    """Grad-CAM element by element, sum_k ReLU(A_k dy_c / dA_k)."""

    uses_gradients = True

    def maps(self, forward, targets_N):
        return (forward.activations * forward.gradients(targets_N)).relu().sum(1)


def test_registered_methods_are_known_by_name(net, images, clean_methods):
    register("elementwise")(Elementwise)
    found = camify.explain(net, images, method=["layercam", "elementwise"], targets=1, normalize=None, size=None)
    torch.testing.assert_close(found["elementwise"], found["layercam"], rtol=1e-4, atol=1e-7)  # no activation is < 0


def test_it_equals_pytorch_grad_cams(networks, clean_methods):
    library = pytest.importorskip("pytorch_grad_cam")
    if not hasattr(library, "GradCAMElementWise"):
        pytest.skip("this pytorch-grad-cam has none")
    register("elementwise")(Elementwise)
    model, _, side = networks("alexnet")
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    target = library.utils.model_targets.ClassifierOutputTarget(4)
    with library.GradCAMElementWise(model=model, target_layers=[model.get_submodule("features.11")]) as cam:
        theirs = torch.from_numpy(cam(input_tensor=image, targets=[target]))
    found = camify.explain(model, image, method="elementwise", targets=4)
    torch.testing.assert_close(found, theirs, rtol=0, atol=2e-3)


def test_installed_packages_bring_methods(net, images, clean_methods, monkeypatch):
    class Point:
        def load(self):
            return Elementwise

    def entry_points(group, name):
        return [Point()] if (group, name) == ("camify.methods", "theirs") else []

    monkeypatch.setattr("camify.methods.base.entry_points", entry_points)
    assert camify.explain(net, images, method="theirs").shape == (3, 96, 96)
    with pytest.raises(camify.ConfigError, match=r"unknown.*gradcam"):
        find_method("others")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Grad-CAM++", r"Did you mean gradcam\+\+\? Choose one of cam, "),
        ("score_cam", r"Did you mean scorecam\?"),
        ("cam,gradcam", r"one by one: --method cam gradcam, in Python \['cam', 'gradcam'\]"),
        ("nope", r"method='nope' is unknown\. Choose"),
        ("", r"method='' is unknown\. Choose"),
    ],
)
def test_what_may_have_been_meant_is_said(name, said):
    with pytest.raises(camify.ConfigError, match=said):
        find_method(name)


def test_names_are_taken_once(clean_methods):
    register("elementwise")(Elementwise)
    register("elementwise")(Elementwise)  # a notebook's cell, run again
    with pytest.raises(camify.ConfigError, match="gradcam: this name is taken by GradCAM"):
        register("gradcam")(Elementwise)
    with pytest.raises(camify.ConfigError, match="is no camify"):
        register("number")(int)
