from __future__ import annotations

import pytest
import torch

import camify
from camify.sources.demo_network import TinyVGG


def brute_force(net, images, classes):
    """Zhou 2016, eq. 2, position by position."""
    with torch.no_grad():
        features = net.eval().features(images).double()
    weights = net.classifier.weight.detach().double()
    maps = torch.zeros(len(images), *features.shape[2:], dtype=torch.float64)
    for n, k in enumerate(classes):
        for y in range(features.shape[2]):
            for x in range(features.shape[3]):
                maps[n, y, x] = sum(weights[k, c] * features[n, c, y, x] for c in range(features.shape[1]))
    return maps.float()


@pytest.mark.parametrize("targets", [2, [0, 3, 1], None])
def test_raw_maps_equal_the_formula(net, images, targets):
    given = torch.tensor(targets) if isinstance(targets, list) else targets
    with torch.no_grad():
        classes = net.eval()(images).argmax(1).tolist() if targets is None else [targets] * 3
    expected = brute_force(net, images, targets if isinstance(targets, list) else classes)
    torch.testing.assert_close(camify.methods.CAM(net)(images, given), expected, rtol=1e-4, atol=1e-6)
    raw = camify.explain(net, images, targets=given, normalize=None, size=None)
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-6)


def test_heat_is_upsampled_then_normalized_once(net, images):
    raw = camify.explain(net, images, normalize=None, size=None)
    big = torch.nn.functional.interpolate(raw[:, None], size=(96, 96), mode="bilinear", align_corners=False)[:, 0]
    low, high = big.amin((1, 2), keepdim=True), big.amax((1, 2), keepdim=True)
    heat = camify.explain(net, images)
    torch.testing.assert_close(heat, (big - low) / (high - low))
    assert heat.shape == (3, 96, 96)
    assert heat.amin((1, 2)).tolist() == [0.0] * 3
    assert heat.amax((1, 2)).tolist() == [1.0] * 3
    assert camify.explain(net, images, size=(50, 20)).shape == (3, 50, 20)


def test_several_methods_give_a_dict(net, images):
    found = camify.explain(net, images, method=["cam"])
    assert set(found) == {"cam"}
    assert torch.equal(found["cam"], camify.explain(net, images))


def test_modes_and_gradients_stay(net, images):
    net.train()
    net.features[1].eval()
    net.classifier.weight.grad = torch.ones_like(net.classifier.weight)
    modes = [module.training for module in net.modules()]
    with torch.inference_mode():
        camify.explain(net, images)
    assert modes == [module.training for module in net.modules()]
    assert bool((net.classifier.weight.grad == 1).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": torch.tensor([0, 1])}, "3 images"),
        ({"targets": 4}, r"0\.\.3"),
        ({"targets": -1}, r"0\.\.3"),
        ({"targets": torch.tensor([0.0, 1.0, 2.0])}, "one per image"),
        ({"method": "magic"}, "magic"),
        ({"normalize": "max"}, "normalize"),
        ({"size": "big"}, "size"),
        ({"layer": "features.3"}, "last spatial map"),
    ],
)
def test_wrong_options_are_refused(net, images, options, words):
    with pytest.raises(camify.ConfigError, match=words):
        camify.explain(net, images, **options)


def test_a_legacy_network_is_told_to_convert(images):
    with pytest.raises(camify.ConversionError, match=r"camify\.convert"):
        camify.explain(TinyVGG(), images)
