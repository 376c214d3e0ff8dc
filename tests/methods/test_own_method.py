"""A method from outside the package, by name everywhere."""

from __future__ import annotations

import pytest
import torch

import camify
from camify.methods import Method, find_method, register


class XGradCAM(Method):
    """Fu et al. 2020, "Axiom-based Grad-CAM", eq. 8: gradients weighed by the share of each position in its channel."""

    uses_gradients = True

    def maps(self, forward, targets_N):
        maps, gradients = forward.activations, forward.gradients(targets_N)
        weights = (gradients * maps).sum((2, 3)) / maps.sum((2, 3)).clamp_min(1e-12)
        return torch.einsum("nchw,nc->nhw", maps, weights)


def test_registered_methods_are_known_by_name(net, images, clean_methods):
    register("xgradcam")(XGradCAM)
    found = camify.explain(net, images, method=["cam", "xgradcam"], targets=1, normalize=None, size=None)
    positions = found["cam"].shape[1] * found["cam"].shape[2]
    torch.testing.assert_close(found["xgradcam"], found["cam"] / positions, rtol=1e-4, atol=1e-7)  # on GAP + linear


def test_it_equals_torch_cams(networks, clean_methods):
    kind = pytest.importorskip("torchcam.methods").XGradCAM
    model, _, side = networks("alexnet")
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    with kind(model, "features.11", input_shape=(3, side, side)) as extractor, torch.enable_grad():
        theirs = extractor(4, model(image.requires_grad_()), normalized=False)[0].detach()
    torch.testing.assert_close(XGradCAM(model)(image, 4).relu(), theirs, rtol=1e-3, atol=1e-7)


def test_installed_packages_bring_methods(net, images, clean_methods, monkeypatch):
    class Point:
        def load(self):
            return XGradCAM

    def entry_points(group, name):
        return [Point()] if (group, name) == ("camify.methods", "theirs") else []

    monkeypatch.setattr("camify.methods.base.entry_points", entry_points)
    assert camify.explain(net, images, method="theirs").shape == (3, 96, 96)
    with pytest.raises(camify.ConfigError, match=r"unknown.*gradcam"):
        find_method("others")


def test_names_are_taken_once(clean_methods):
    register("xgradcam")(XGradCAM)
    register("xgradcam")(XGradCAM)  # a notebook's cell, run again
    with pytest.raises(camify.ConfigError, match="gradcam: this name is taken by GradCAM"):
        register("gradcam")(XGradCAM)
    with pytest.raises(camify.ConfigError, match="is no camify"):
        register("number")(int)
