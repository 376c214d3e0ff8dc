"""The new convolution and the classifier share one scale: nothing that the network says changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import camify
from camify.conversion import balance_head
from tests.conversion.networks import body


def converted(**options):
    torch.manual_seed(0)
    legacy = nn.Sequential(*body(), nn.Flatten(), nn.Linear(8 * 32 * 32, 5))
    return camify.convert(legacy, input_size=32, **options).eval()


def fitted(model):
    images = torch.rand(40, 3, 32, 32)
    camify.fit_head(model, images, labels=torch.arange(40) % 5, ridge=1e-6)
    return images


@pytest.mark.parametrize("pool", ["gap", "gmp", "tap"])
@pytest.mark.parametrize("widths", [[6], [6, 7]])
def test_logits_and_maps_stay_and_norms_meet(pool, widths):
    model = converted(pool=pool, head_channels=widths)
    images = fitted(model).double()
    model.double()
    logits, maps = model.forward_with_maps(images)
    assert balance_head(model)
    after, maps_after = model.forward_with_maps(images)
    torch.testing.assert_close(after, logits)
    torch.testing.assert_close(maps_after, maps)
    conv = model.features.get_submodule(model.head_layers[-2])
    for own, read in zip(conv.weight.flatten(1), model.classifier.weight.T, strict=True):
        torch.testing.assert_close(own.norm(), read.norm())


def test_a_channel_that_is_not_read_stays_as_it_is():
    model = converted(head_channels=[6])
    with torch.no_grad():
        model.classifier.weight[:, 2] = 0
    before = model.features.cam_conv.weight[2].clone()
    assert balance_head(model)
    assert torch.equal(model.features.cam_conv.weight[2], before)
    assert model.classifier.weight.isfinite().all()


@pytest.mark.parametrize("options", [{"head": "direct"}, {"pool": "lse", "head_channels": [6]}])
def test_where_the_scale_is_not_free_nothing_is_touched(options):
    model = converted(**options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not balance_head(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_step_that_destroys_the_fitted_network_does_not_destroy_the_balanced_one():
    """Plain gradient descent at one rate: as it was fitted the loss explodes, balanced it stays."""
    torch.manual_seed(1)
    labels = torch.arange(40) % 5
    images = torch.rand(40, 3, 32, 32) + torch.rand(5, 3, 1, 1)[labels] + 0.2 * torch.randn(40, 3, 1, 1)
    losses = []
    for balanced in (False, True):
        model = converted(head_channels=[64])
        camify.fit_head(model, images, labels=labels, ridge=1e-6)
        if balanced:
            balance_head(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0005)
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    print(losses)
    assert losses[4] > 10 * losses[0]
    assert losses[9] < 2 * losses[5]
