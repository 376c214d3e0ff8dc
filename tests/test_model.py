"""CAMNet against the same steps written by hand, and timm's protocol."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from camify.errors import ConversionError
from camify.model import CAMNet
from camify.pooling import POOLS, LogSumExpPool2d


def net(pool="gap", dropout=0.0, bias=True, head_layers=("cam_conv", "cam_relu")) -> CAMNet:
    features = nn.Sequential()
    features.add_module("conv", nn.Conv2d(3, 6, 3, padding=1))
    features.add_module("norm", nn.BatchNorm2d(6))
    features.add_module("relu", nn.ReLU())
    features.add_module("pool", nn.MaxPool2d(2))
    features.add_module("cam_conv", nn.Conv2d(6, 8, 3, padding=1))
    features.add_module("cam_relu", nn.ReLU())
    return CAMNet(features, nn.Linear(8, 5, bias=bias), pool=pool, dropout=dropout, head_layers=head_layers).eval()


IMAGES = torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
def test_logits_and_maps_are_the_formula(bias):
    model = net(bias=bias)
    with torch.no_grad():
        logits, maps = model.forward_with_maps(IMAGES)
        features = model.features(IMAGES).double()
        weight = model.classifier.weight.double()
        constant = model.classifier.bias.double() if bias else torch.zeros(5).double()
        expected_maps = torch.einsum("nchw,kc->nkhw", features, weight)
        expected_logits = features.mean((2, 3)) @ weight.T + constant
    assert maps.shape == (3, 5, 8, 6)
    torch.testing.assert_close(maps.double(), expected_maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits.double(), expected_logits, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps.double().mean((2, 3)) + constant, logits.double(), rtol=1e-4, atol=1e-6)
    assert torch.equal(model(IMAGES), logits)
    assert model.identity_error(IMAGES) < 1e-6


def test_timms_protocol():
    model = net()
    with torch.no_grad():
        features = model.forward_features(IMAGES)
        assert features.shape == (3, 8, 8, 6)
        assert torch.equal(features, model.features(IMAGES))
        assert torch.equal(model.forward_head(features), model(IMAGES))
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert model.get_classifier() is model.classifier
    assert (model.num_features, model.num_classes) == (8, 5)


def test_hooks_on_the_classifier_run():
    """torch-cam and pytorch-grad-cam read networks through hooks."""
    model, seen = net(), []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(IMAGES)
    assert seen[0] is logits


def test_reset_classifier_puts_a_new_layer_and_forgets_what_no_longer_holds():
    model = net().to(torch.float64)
    model.class_names, model.results, old = list("abcde"), {"acc": 0.5}, model.classifier
    model.reset_classifier(9)
    assert model.classifier is not old
    assert model.num_classes == 9
    assert model.classifier.weight.dtype == torch.float64
    assert model(IMAGES.double()).shape == (3, 9)
    assert (model.class_names, model.results, model.certificate) == (None, {}, None)
    for wrong in (0, -1):
        with pytest.raises(ConversionError, match=f"num_classes={wrong}"):
            model.reset_classifier(wrong)


def test_parameter_groups_split_the_legacys_from_the_heads():
    model = net()
    groups = model.parameter_groups()
    by_id = {id(p): name for name, p in model.named_parameters()}
    assert {by_id[id(p)] for p in groups["features"]} == {
        "features.conv.weight", "features.conv.bias", "features.norm.weight", "features.norm.bias",
    }  # fmt: skip
    assert {by_id[id(p)] for p in groups["head"]} == {
        "features.cam_conv.weight", "features.cam_conv.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip
    similar = net(head_layers=("con",))  # a name that another one starts with
    assert len(similar.parameter_groups()["head"]) == 2
    assert len(net(head_layers=()).parameter_groups()["features"]) == 6


def test_dropout_acts_in_training_only():
    model = net(dropout=0.5)
    assert torch.equal(model(IMAGES), model(IMAGES))
    model.train()
    model.features.eval()
    assert not torch.equal(model(IMAGES), model(IMAGES))
    # and the maps do not see it
    assert torch.equal(model.forward_with_maps(IMAGES)[1], model.forward_with_maps(IMAGES)[1])


def test_identity_error_is_measured_in_eval_mode_and_leaves_the_modes():
    model = net(dropout=0.5).train()
    model.features.norm.eval()
    calls = []
    model.features.register_forward_hook(lambda *_: calls.append(1))
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    error = model.identity_error(IMAGES)
    assert error < 1e-6
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert calls == []


def test_identity_error_sees_a_broken_network():
    class Sharper(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.01

    model = net()
    model.classifier.__class__ = Sharper
    assert model.identity_error(IMAGES) == pytest.approx(0.01 / 1.01, rel=0.2)
    with torch.no_grad():
        model.features.conv.weight.view(-1)[0] = math.nan
    assert math.isnan(model.identity_error(IMAGES))
    assert net("gmp").identity_error(IMAGES) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_identity_error_of_other_precisions(dtype):
    model = net().to(dtype)
    assert model.identity_error(IMAGES.to(dtype)) < 1e-6
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("r", [0.01, 1.0, 4.0, 50.0])
def test_log_sum_exp_pooling_is_its_formula(r):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    pooled = LogSumExpPool2d(r)(x)
    assert pooled.shape == (2, 3, 1, 1)
    for n in range(2):
        for c in range(3):
            values = x[n, c].flatten().tolist()
            expected = math.log(sum(math.exp(r * value) for value in values) / len(values)) / r
            assert float(pooled[n, c]) == pytest.approx(expected, rel=1e-9)
    assert (pooled[..., 0, 0] <= x.amax((2, 3)) + 1e-12).all()
    assert (pooled[..., 0, 0] >= x.mean((2, 3)) - 1e-12).all()


def test_log_sum_exp_pooling_has_its_limits_and_does_not_overflow():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(LogSumExpPool2d(1e-7)(x)[..., 0, 0], x.mean((2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(LogSumExpPool2d(1e4)(x)[..., 0, 0], x.amax((2, 3)), rtol=1e-3, atol=1e-3)
    assert torch.equal(LogSumExpPool2d()(torch.full((1, 1, 2, 2), 1e4)), torch.full((1, 1, 1, 1), 1e4))
    assert LogSumExpPool2d()(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_every_pool_is_its_formula():
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(POOLS["gap"]()(x)[..., 0, 0], x.mean((2, 3)))
    assert torch.equal(POOLS["gmp"]()(x)[..., 0, 0], x.amax((2, 3)))
    assert set(POOLS) == {"gap", "gmp", "lse", "tap"}
    tap = POOLS["tap"]()(x)[..., 0, 0]
    for index, channel in ((n, c) for n in range(2) for c in range(3)):
        values = x[index, channel].flatten().tolist()
        kept = [value for value in values if value > 0.1 * max(values)]
        assert float(tap[index, channel]) == pytest.approx(sum(kept) / len(kept), rel=1e-5)
    assert torch.equal(POOLS["tap"]()(-x.abs()), torch.zeros(2, 3, 1, 1)), "nothing is above a share of nothing"
    with pytest.raises(ConversionError, match=r"pool='avg'.*gap, gmp, lse"):
        net("avg")


@pytest.mark.parametrize("pool", ["gap", "gmp", "lse"])
def test_logits_and_maps_are_differentiable(pool):
    model = net(pool).double()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model.forward_with_maps(x), (images,), atol=1e-5)


def test_the_loss_of_a_map_moves_the_network():
    """Guidance: a loss on the map of one class reaches the first layer in one backward pass."""
    model = net()
    maps = model.forward_with_maps(IMAGES)[1]
    maps[:, 2].sum().backward()
    assert model.features.conv.weight.grad.abs().sum() > 0
    grad = model.classifier.weight.grad
    assert grad[2].abs().sum() > 0
    assert grad[[0, 1, 3, 4]].abs().sum() == 0


def test_batches_of_none_and_of_one():
    model = net()
    assert model(IMAGES[:0]).shape == (0, 5)
    torch.testing.assert_close(model(IMAGES[:1]), model(IMAGES)[:1])


def test_the_model_fits_on_two_screens():
    import camify.model

    assert len(Path(camify.model.__file__).read_text().splitlines()) < 300
