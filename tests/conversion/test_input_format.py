"""Input formats of old networks: the converted network, fed RGB, answers as the old one fed in its own way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import camify
from camify.cli.commands import main
from camify.conversion import Source, adapt_input, convert
from camify.errors import ConversionError
from camify.preprocessing import Preprocessing

MEAN_BGR = torch.tensor([104.0, 117.0, 123.0]).reshape(1, 3, 1, 1)


class CaffePort(nn.Module):
    """As ported from Caffe: padded convolutions, pools that round up, linear after global pooling or a flatten."""

    def __init__(self, flatten=False, bias=True, padding=2, classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, 2, padding, bias=bias)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(10, 12, 3, padding=1)
        self.fc = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, classes)) if flatten else nn.Linear(12, 4)
        self.flatten = flatten
        with torch.no_grad():
            self(torch.zeros(1, 3, 40, 40))

    def forward(self, x):
        x = self.pool1(torch.relu(self.conv1(x)))
        x = torch.relu(self.conv3(self.pool2(torch.relu(self.conv2(x)))))
        return self.fc(x.flatten(1) if self.flatten else x.mean((2, 3)))


def pictures(gray=False):
    pixels = torch.randint(0, 256, (2, 1 if gray else 3, 40, 40), generator=torch.Generator().manual_seed(1))
    return pixels.expand(-1, 3, -1, -1).to(torch.uint8)


def prepared(net, pixels):
    """RGB pixels as the network's record says they are to be prepared."""
    record = net.preprocessing
    mean, std = (torch.tensor(record[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return (pixels[:, : len(record["mean"])] / 255 - mean) / std


@pytest.mark.parametrize(("head", "flatten"), [("direct", False), ("recast", True), ("recast", False)])
def test_a_caffe_port_answers_as_in_caffe_borders_included(head, flatten):
    legacy = CaffePort(flatten).eval()
    before = {key: value.clone() for key, value in legacy.state_dict().items()}
    net = convert(legacy, head=head, input_size=40, input_format="caffe")
    pixels = pictures()
    with torch.no_grad():
        caffe = pixels.flip(1).float() - MEAN_BGR  # BGR in 0..255 minus the mean
        torch.testing.assert_close(net(prepared(net, pixels)), legacy(caffe), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(net(prepared(net, pixels.flip(1))), legacy(caffe), rtol=1e-2)
    assert Preprocessing.from_dict(net.preprocessing.to_dict()) == net.preprocessing
    assert net.preprocessing.size == 40
    assert any("as Caffe's" in note for note in net.certificate.notes)
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())
    assert torch.equal(net.features.get_submodule("conv1").weight, legacy.conv1.weight.flip(1))


def test_bgr_turns_the_known_normalization_round():
    legacy = CaffePort().eval()
    own = Preprocessing(40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    net = convert(Source(legacy, "bgr", preprocessing=own), head="direct", input_size=40, input_format="bgr")
    pixels = pictures()
    bgr = (pixels.flip(1) / 255 - torch.tensor(own["mean"]).reshape(3, 1, 1)) / torch.tensor(own["std"]).reshape(
        3, 1, 1
    )
    with torch.no_grad():
        torch.testing.assert_close(net(prepared(net, pixels)), legacy(bgr))
    assert convert(legacy, head="direct", input_size=40, input_format="bgr").preprocessing is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_a_grayscale_copy_answers_as_the_network_on_replicated_gray(bias, padding, mean):
    legacy = CaffePort(bias=bias, padding=padding).eval()
    own = Preprocessing(40, mean, (0.229, 0.224, 0.225))
    net = convert(Source(legacy, "rgb", preprocessing=own), head="direct", input_size=40, input_format="grayscale")
    assert net.certificate.input_shape == (1, 40, 40)
    pixels = pictures(gray=True)
    usual = (pixels / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(own["std"]).reshape(3, 1, 1)
    with torch.no_grad():
        first = net.features.get_submodule("conv1")(prepared(net, pixels))
        expected = legacy.conv1(usual)
        inner = (..., slice(1, -1), slice(1, -1))  # cells whose windows do not reach into the padding
        torch.testing.assert_close(first[inner], expected[inner], rtol=1e-4, atol=1e-5)
        exact = padding == 0 or len(set(mean)) == 1
        assert torch.allclose(first, expected, rtol=1e-4, atol=1e-5) == exact
        if exact:
            torch.testing.assert_close(net(prepared(net, pixels)), legacy(usual), rtol=1e-4, atol=1e-5)
    assert any("beside zero padding" in note for note in net.certificate.notes) == (len(set(mean)) > 1)


def test_adapting_is_pure_and_keeps_modes_flags_and_precision():
    legacy = CaffePort().half().train()
    legacy.conv1.weight.requires_grad_(False)
    before = legacy.conv1.weight.clone()
    gray = adapt_input(legacy, channels=1)
    assert torch.equal(legacy.conv1.weight, before)
    assert gray.training
    assert gray.conv1.weight.dtype == torch.float16
    assert gray.conv1.weight.shape == (8, 1, 5, 5)
    assert not gray.conv1.weight.requires_grad
    assert torch.equal(adapt_input(legacy).conv1.weight, before)
    assert torch.equal(adapt_input(legacy, channel_order="bgr", channels=3).conv1.weight, before.flip(1))


class TwoStems(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.one(x) + self.two(x)).mean((2, 3)))


def test_what_cannot_be_adapted_is_refused():
    for options, message in (
        ({"channels": 4}, r"channels=4: .*1 channel"),
        ({"channel_order": "gbr"}, r"channel_order='gbr' is unknown"),
        ({"channels": 1, "mean": (0.5,)}, r"mean: 1 values"),
    ):
        with pytest.raises(ConversionError, match=message):
            adapt_input(CaffePort(), **options)
    with pytest.raises(ConversionError, match="no convolution of the network takes three channels"):
        adapt_input(nn.Sequential(nn.Conv2d(1, 3, 3)), channel_order="bgr")
    with pytest.raises(ConversionError, match=r"with one adapted the network answers otherwise.*not the only layer"):
        convert(TwoStems(), head="direct", input_size=16, input_format="bgr")
    with pytest.raises(ConversionError, match=r"input_format='cmyk' is unknown"):
        convert(CaffePort(), input_size=40, input_format="cmyk")
    with pytest.raises(ConversionError, match=r"does not run on images \(3, 48, 48\).*input_size"):
        convert(CaffePort(flatten=True), input_size=48, input_format="caffe")
    network = CaffePort()
    network.transform_input = True
    with pytest.raises(ConversionError, match="transform_input=False"):
        adapt_input(network, channel_order="bgr")


@pytest.mark.parametrize(("given", "channels"), [("caffe", 3), ("grayscale", 1)])
def test_the_command_saves_what_explains_pictures(tmp_path, capsys, given, channels):
    from PIL import Image

    folder, photo = tmp_path / "out", tmp_path / "photo.png"
    Image.new("RGB", (50, 40), (200, 30, 90)).save(photo)
    options = ["--head", "direct", "--input_size", "96", "--input_format", given]
    main(["convert", "torchvision/squeezenet1_1@none", str(folder), *options])
    assert ("Assumed" in capsys.readouterr().out) == (given == "grayscale")
    net = camify.load(folder)
    assert net.certificate.input_shape == (channels, 96, 96)
    assert net.preprocessing.read(photo).shape == (channels, 96, 96)
    assert net.preprocessing.restore(torch.zeros(2, channels, 5, 5)).shape == (2, 3, 5, 5)
    main(["explain", str(photo), "--model", str(folder), "--out", str(tmp_path / "explained")])
    assert (tmp_path / "explained" / "photo_cam.png").is_file()
