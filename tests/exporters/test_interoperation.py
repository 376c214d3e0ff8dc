"""Other people's tools work on a network that was loaded from its folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import camify
from tests.conversion.test_interoperation import scaled_twice
from tests.exporters.conftest import SIZE

TARGETS = [0, 3, 2]


@pytest.fixture
def loaded(folder):
    return camify.load(folder)


@pytest.fixture
def images():
    return torch.randn(3, 3, SIZE, SIZE)


@pytest.fixture
def own(loaded, images):
    """The raw maps of the targets (3, h, w)."""
    with torch.no_grad():
        return loaded.forward_with_maps(images)[1][torch.arange(3), torch.tensor(TARGETS)]


def test_torch_cam(loaded, images, own):
    from torchcam.methods import CAM

    with CAM(loaded, "features", "classifier", input_shape=(3, SIZE, SIZE)) as extractor:
        (theirs,) = extractor(TARGETS, loaded(images), normalized=False)
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-5)


def test_pytorch_grad_cam(loaded, images, own):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model=loaded, target_layers=[loaded.features]) as method:
        theirs = method(input_tensor=images, targets=[ClassifierOutputTarget(index) for index in TARGETS])
    np.testing.assert_allclose(theirs, scaled_twice(own.clamp_min(0).numpy(), (SIZE, SIZE)), atol=1e-3)


def test_captum(loaded, images, own):
    """With GAP the gradient is weight / (h w) everywhere."""
    from captum.attr import LayerGradCam

    theirs = LayerGradCam(loaded, loaded.features).attribute(images, torch.tensor(TARGETS))
    torch.testing.assert_close(theirs[:, 0].detach(), own / own[0].numel(), rtol=1e-4, atol=1e-6)


def test_timms_protocol(loaded, images):
    features = loaded.forward_features(images)
    assert features.shape == (3, loaded.num_features, 16, 16)
    torch.testing.assert_close(loaded.forward_head(features), loaded(images))
    pooled = loaded.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert isinstance(loaded.get_classifier(), nn.Linear)
    loaded.reset_classifier(7)
    assert loaded(images).shape == (3, 7)


def test_timms_own_tools_take_it(loaded, images):
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(loaded, decay=0.5)
    optimizer = create_optimizer_v2(loaded, opt="sgd", lr=0.1)
    before = loaded(images).detach()
    loaded(images).square().sum().backward()
    optimizer.step()
    average.update(loaded)
    assert not torch.equal(loaded(images), before)
    assert not torch.equal(average.module(images), before)


def test_it_fine_tunes_without_the_users_class(loaded, images):
    loaded.train()
    optimizer = torch.optim.SGD(loaded.parameters(), 0.01)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(loaded(images), torch.tensor(TARGETS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
