"""camify.explain takes images as people have them; what it cannot take is named."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.methods.given_images import network_input

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def network(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()


@pytest.fixture(scope="module")
def net():
    model = camify.convert(network(), head="direct", input_size=32, class_names=["cat", "dog", "owl"])
    model.preprocessing = camify.Preprocessing((24, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return model.eval()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def raw(model, images, **options):
    return camify.explain(model, images, targets=options.pop("targets", 1), normalize=None, size=None, **options)


# ---------------------------------------------------------------- prepared


def test_numbers_in_any_precision_form_and_count():
    model, images = network(), torch.randn(2, 3, 20, 24)
    expected = raw(model, images)
    for given in (
        images.double(), images.numpy(), images.numpy().astype(np.float64), np.asfortranarray(images.numpy()),
        list(images), [image.numpy() for image in images], [images[:1], images[1:]],
    ):  # fmt: skip
        torch.testing.assert_close(raw(model, given), expected)
    torch.testing.assert_close(raw(model, images.half()), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(raw(model, images[0]), expected[:1])
    torch.testing.assert_close(raw(model, images[0].numpy()), expected[:1])
    torch.testing.assert_close(camify.methods.CAM(model)(images.numpy(), 1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_in_other_precisions(dtype):
    images = torch.randn(2, 3, 20, 24)
    maps = raw(network().to(dtype), images)
    torch.testing.assert_close(maps.float(), raw(network(), images), rtol=0.1, atol=0.05)


# ---------------------------------------------------------------- pictures


def test_pictures_are_prepared_as_the_network_says(net, pixels, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = raw(net, net.preprocessing.read(path)[None])
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (
            path, str(path), [path], Image.fromarray(pixels), [Image.fromarray(pixels)], pixels, pixels[None], [pixels],
            chw, chw[None], chw[None].numpy(), np.dstack([pixels, np.zeros((40, 48), np.uint8)]),
        ):  # fmt: skip
            torch.testing.assert_close(raw(net, given), expected)
        assert camify.explain(net, path).shape == (1, 24, 32)
        assert camify.explain(net, path, size=(40, 48)).shape == (1, 40, 48)


def test_pictures_of_different_sizes_and_kinds_come_in_one_list(net, pixels, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    other = np.ascontiguousarray(pixels[:30, :20])
    both = raw(net, [path, Image.fromarray(other)])
    torch.testing.assert_close(both, torch.cat([raw(net, pixels), raw(net, other)]))


def test_what_is_assumed_is_said_once(pixels):
    model = network()
    prepared = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - MEAN[:, None, None]) / STD[:, None, None]
    with pytest.warns(UserWarning, match=r"assumed is 40 x 48 px, rgb, mean \(0\.485.*ImageNet's"):
        maps = raw(model, pixels)
    torch.testing.assert_close(maps, raw(model, prepared), rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw(model, Image.fromarray(pixels))
        raw(model, torch.randn(1, 3, 20, 24))


def test_large_pictures_are_assumed_to_become_224_px():
    with pytest.warns(UserWarning, match="assumed is 224 x 224 px"):
        assert network_input(network(), np.zeros((10, 300, 3), np.uint8)).shape == (1, 3, 224, 224)
    with pytest.warns(UserWarning, match="assumed is 224 x 224 px"):
        assert network_input(network(), [np.zeros((10, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)]).shape[0] == 2


def test_gray_networks_and_gray_pictures(pixels):
    gray = network(1)
    with pytest.warns(UserWarning, match="grayscale"):
        batch = network_input(gray, pixels)
    weighted = (torch.from_numpy(pixels).float() @ torch.tensor([0.2989, 0.587, 0.114])).floor() / 255
    torch.testing.assert_close(batch[0, 0], (weighted - MEAN.mean()) / STD.mean(), rtol=1e-3, atol=0.02)
    with pytest.warns(UserWarning, match="assumed"):
        colors = network_input(network(), pixels[:, :, 0])  # (H, W)
    restored = colors[0] * STD[:, None, None] + MEAN[:, None, None]
    expected = torch.from_numpy(pixels[:, :, 0]).float().expand(3, -1, -1) / 255
    torch.testing.assert_close(restored, expected)


def test_timm_says_how_its_networks_want_their_pictures(pixels):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", pretrained=False, num_classes=3).eval()
    with pytest.warns(UserWarning, match="as timm says"):
        batch = network_input(model, pixels)
    assert batch.shape[1:] == model.pretrained_cfg["input_size"]


def test_sources_are_explained_by_name(tmp_path, net, pixels):
    folder = str(net.save_pretrained(tmp_path / "net"))
    torch.testing.assert_close(raw(folder, pixels, targets="dog"), raw(net, pixels))


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "images: expected .* not NoneType"),
        (3, "not int 3"),
        ({}, "not dict"),
        (torch.randn(32, 32, 3), r"not \(32, 32, 3\).*channels stand last"),
        (torch.randn(5, 32, 32), r"not \(5, 32, 32\).*takes 3 channels"),
        (torch.randn(32, 32), r"not \(32, 32\)"),
        (torch.randn(1, 2, 3, 32, 32), r"not \(1, 2, 3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.long), r"int64 \(2, 3, 32, 32\).*uint8"),
        (np.zeros((32, 32, 3), np.uint16), r"uint16 \(32, 32, 3\).*uint8"),
        (np.zeros((2, 2), object), "array object"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 5, 32, 32, dtype=torch.uint8), r"1 or 3 channels"),
        (torch.zeros(2, 3, 32, 32, device="meta"), "meta"),
        (torch.zeros(2, 3, 32, 32).to_sparse(), "layout"),
        ([torch.randn(3, 32, 32), torch.randn(3, 30, 32)], "different shapes"),
    ],
)
def test_other_things_are_named(net, images, words):
    with pytest.raises(camify.ConfigError, match=words):
        camify.explain(net, images)


@pytest.mark.parametrize("images", [[], torch.zeros(0, 3, 32, 32), np.zeros((0, 3, 32, 32), np.float32)])
def test_no_images_are_named(net, images):
    with pytest.raises(camify.DataError, match="there are none"):
        camify.explain(net, images)


def test_files_that_are_no_images_are_named(net, tmp_path):
    for name in (tmp_path / "none.png", tmp_path):
        with pytest.raises(camify.DataError, match=re.escape(str(name))):
            camify.explain(net, name)


def test_pictures_for_many_channels_are_refused():
    with pytest.raises(camify.ConfigError, match=r"the network takes 13.*floating-point"):
        camify.explain(network(13), np.zeros((32, 32, 3), np.uint8))


def test_classes_by_name(net):
    images = torch.randn(2, 3, 24, 32)
    torch.testing.assert_close(raw(net, images, targets="owl"), raw(net, images, targets=2))
    torch.testing.assert_close(raw(net, images, targets=["owl", "cat"]), raw(net, images, targets=[2, 0]))
    torch.testing.assert_close(raw(net, images, targets=np.array(["owl", "cat"])), raw(net, images, targets=[2, 0]))
    nested = raw(net, images, targets=[["owl", "cat"], ["dog", 0]])
    torch.testing.assert_close(nested, raw(net, images, targets=[[2, 0], [1, 0]]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": "dgo"}, r"targets 'dgo': no such class. Did you mean 'dog'\? Known: cat, dog, owl"),
        ({"targets": object()}, "are no classes"),
        ({"targets": [["cat"], "dog"]}, "are no classes"),
        ({"targets": ["cat", "dog", "owl"]}, "2 images"),
        ({"targets": 1.5}, "targets"),
        ({"size": (10,)}, r"size=\(10,\): choose 'input'"),
        ({"size": (0, 5)}, "size"),
        ({"size": (10.5, 5)}, "size"),
        ({"size": "big"}, "size='big'"),
        ({"method": 3}, "method=3"),
        ({"method": []}, "at least one"),
        ({"method": ["cam", 3]}, "method="),
        ({"method": "gradcam", "layer": ["features.0"]}, "looks at one layer. Several are fused"),
        ({"method": "gradcam", "layer": 3}, "name of one module.*not int"),
        ({"method": "scorecam", "chunk": "a"}, "chunk='a'"),
        ({"normalize": 1}, "normalize=1"),
    ],
)
def test_other_options_are_named(net, options, words):
    with pytest.raises(camify.ConfigError, match=words):
        camify.explain(net, torch.randn(2, 3, 24, 32), **options)


def test_a_module_is_no_name_but_its_name_is_said(net):
    with pytest.raises(camify.ConfigError, match=r"not Conv2d\. This one is called 'features\.0'"):
        camify.explain(net, torch.randn(2, 3, 24, 32), method="gradcam", layer=net.features[0])
    with pytest.raises(camify.ConfigError, match="no class names"):
        camify.explain(network(), torch.randn(2, 3, 24, 32), targets="cat")
    with pytest.raises(camify.ConfigError, match="A network is needed"):
        camify.methods.GradCAM(None)


def test_sizes(net):
    images = torch.randn(2, 3, 24, 32)
    assert camify.explain(net, images, size=10).shape == (2, 10, 10)
    assert camify.explain(net, images, size=[10, 12]).shape == (2, 10, 12)
    assert camify.explain(net, images, size=None).shape == (2, 22, 30)


def test_nan_is_named_by_image(net):
    images = torch.randn(3, 3, 24, 32)
    images[1] = torch.nan
    for method in ("cam", "gradcam"):
        with pytest.raises(camify.DataError, match="image 1 of the batch is not finite"):
            camify.explain(network(), images, method=method)
    broken = network()
    nn.init.constant_(broken[4].bias, torch.nan)
    with pytest.raises(camify.DataError, match="NaN or infinite"):
        camify.explain(broken, images[:1], method="cam")
