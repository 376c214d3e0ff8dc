"""What cannot be converted is refused with the reason and the way out."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from camify import explain
from camify.conversion import convert
from camify.errors import ConfigError, ConversionError
from camify.model import CAMNet
from tests.conversion.networks import (
    MODELS,
    Returns,
    chain,
    check_identity,
)


def test_wrapped_models_are_refused_with_the_way_out():
    model = chain()
    with pytest.raises(ConversionError, match=r"DataParallel.*`model\.module`"):
        convert(nn.DataParallel(model), input_size=64)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ConversionError, match=r"DistributedDataParallel.*`model\.module`"):
            convert(wrapped, input_size=64)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ConversionError, match=r"torch\.compile.*`model\._orig_mod`"):
        convert(torch.compile(model), input_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; people still have such files
        script = torch.jit.trace(model, torch.randn(1, 3, 64, 64))
    with pytest.raises(ConversionError, match=r"ScriptModule"):
        convert(script, input_size=64)


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: [y], lambda y: {"logits": y}, lambda y: y[:, :, None]])
def test_outputs_other_than_logits_are_refused(wrap):
    with pytest.raises(ConversionError, match=r"returns .*expected one tensor of logits \(N, classes\)"):
        convert(Returns(chain(), wrap), input_size=64)


def test_networks_without_a_map_are_refused():
    with pytest.raises(ConversionError, match=r"No spatial map.*larger input_size"):
        convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(), nn.Linear(16, 5)), input_size=8)
    with pytest.raises(ConversionError, match=r"No spatial map.*larger input_size"):
        convert(nn.Sequential(nn.Conv2d(3, 8, 16), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)), input_size=16)
    with pytest.raises(
        ConversionError, match=r"No spatial map.*1 x 1 at 32x32 px.*larger input_size: 224x224 gives 7 x 7"
    ):
        convert(MODELS.resnet18(num_classes=4), input_size=32)


class Joined(nn.Module):
    """The mean of the logits of two networks that see the same image."""

    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = one, two

    def forward(self, image):
        return (self.one(image) + self.two(image)) / 2


@pytest.mark.parametrize(("is_linear", "last"), [(False, "two.7"), (True, "one.7")])
def test_branches_that_pass_by_the_last_map_are_named_and_explained_at_a_layer(is_linear, last):
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)) if is_linear else chain()
    network, image = Joined(chain(), other).eval(), torch.rand(1, 3, 64, 64)
    with pytest.raises(ConversionError, match=rf"through which everything flows.*one\.7.*layer='{last}'"):
        convert(network, input_size=64)
    heat = explain(network, image, method="lafam", layer=last)  # the mean of channels behind a ReLU
    assert heat.shape == (1, 64, 64)
    assert heat.max() == 1


class Twice(nn.Module):
    """The mean of a network's logits for the image and for another form of it."""

    def __init__(self, network, other):
        super().__init__()
        self.network, self.other = network, other

    def forward(self, image):
        return (self.network(image) + self.network(self.other(image))) / 2


def test_a_network_that_runs_twice_is_named_once_and_its_last_run_is_said():
    network, image = Twice(chain(), lambda image: image * 0.5).eval(), torch.rand(1, 3, 64, 64)
    with pytest.raises(ConversionError, match=r"those of network\.7 \(2 calls\)\. Convert"):
        convert(network, input_size=64)
    with pytest.warns(UserWarning, match=r"layer='network\.7': runs 2 times; the map is that of its last run"):
        heat = explain(network, image, method="layercam", layer="network.7", targets=1)
    own = explain(network.network, image * 0.5, method="layercam", layer="7", targets=1)
    torch.testing.assert_close(heat, own)
    mirrored = Twice(chain(), lambda image: image.flip(-1)).eval()
    with pytest.raises(ConfigError, match=r"runs 2 times; this is its last run"):
        explain(mirrored, image, method="layercam", layer="network.7")


class InAPlainList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = [nn.Conv2d(3, 8, 3), nn.ReLU()], nn.Linear(8, 5)

    def forward(self, image):
        for layer in self.layers:
            image = layer(image)
        return self.head(image.mean((2, 3)))


def test_layers_in_a_plain_list_are_told_to_stand_in_a_module_list():
    with pytest.raises(ConversionError, match=r"plain list.*nn\.ModuleList"):
        convert(InAPlainList(), input_size=16)


def test_input_that_does_not_fit_is_named_with_the_layer():
    with pytest.raises(ConversionError, match=r"\(2, 3, 8, 8\); at features\.\d+: .*too small.*input_size"):
        convert(MODELS.squeezenet1_1(num_classes=4), input_size=8)
    with pytest.raises(ConversionError, match=r"at 9: .*Give input_size \(now 32x32\) or example"):
        convert(chain(size=64), input_size=32)
    with pytest.raises(ConversionError, match=r"input_size"):
        convert(chain(), input_size=0)
    with pytest.raises(ConversionError, match=r"example.*float images"):
        convert(chain(), example=torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ConversionError, match=r"example.*float images"):
        convert(chain(), example=torch.zeros(3, 64, 64))
    with pytest.raises(ConversionError, match=r"\(2, 1, 64, 64\)"):
        convert(chain(), example=torch.zeros(2, 1, 64, 64))


def test_parameters_without_values_are_refused():
    with pytest.raises(ConversionError, match=r"no parameters"):
        convert(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), input_size=16)
    with pytest.raises(ConversionError, match=r"without values"):
        convert(chain().to("meta"), input_size=64)
    with pytest.raises(ConversionError, match=r"without values"):
        explain(chain().to("meta"), torch.rand(1, 3, 64, 64), method="gradcam")
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ConversionError, match=r"without values"):
        convert(lazy, input_size=16)
    broken = chain()
    with torch.no_grad():
        broken[0].weight.fill_(torch.nan)
    with pytest.raises(ConversionError, match=r"NaN or infinite"):
        convert(broken, input_size=64)


def test_weights_that_a_hook_computes_are_refused():
    pruned = chain()
    prune.l1_unstructured(pruned[4], "weight", 0.5)
    with pytest.raises(ConversionError, match=r"layer 4.*weight.*prune\.remove"):
        convert(pruned, input_size=64)
    prune.remove(pruned[4], "weight")
    assert convert(pruned, input_size=64, head_channels=6).certificate.cam_ready
    normed = chain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(normed[0])
    with pytest.raises(ConversionError, match=r"layer 0.*remove_weight_norm"):
        convert(normed, input_size=64)


@pytest.mark.parametrize("name", ["graph", "code", "meta", "to_folder", "recompile", "self", "in", "lambda"])
def test_layers_named_like_parts_of_the_generated_code_are_refused(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 4, 3))
            self.last = nn.Linear(4, 5)

        def forward(self, x):
            return self.last((self._modules[name](x) + 1).mean((2, 3)))

    with pytest.raises(ConversionError, match=f"layer {name}: .*Rename the layer"):
        convert(Named(), input_size=16)


@pytest.mark.parametrize("name", ["append", "extend", "x", "conv-1", "features", "pool", "cam_conv"])
def test_other_layer_names_are_free(name, tmp_path):
    layers = OrderedDict([(name, nn.Conv2d(3, 4, 3)), ("act", nn.ReLU())])

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            for key, layer in layers.items():
                self.add_module(key, layer)
            self.last = nn.Linear(4 * 30 * 30, 5)

        def forward(self, x):
            return self.last(self.act(self._modules[name](x)).flatten(1))

    net = convert(Named(), input_size=32, head_channels=6).eval()
    images = torch.randn(2, 3, 32, 32)
    check_identity(net, images)
    again = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    assert torch.equal(again(images), net(images))


BAD_OPTIONS = [
    ({"head": "fc"}, "head='fc'.*gap, direct, recast"),
    ({"pool": "avg"}, "pool='avg'.*gap, gmp, lse"),
    ({"recipe": "zhou2017"}, "recipe='zhou2017'.*zhou2016/vgg16-gap"),
    ({"recipe": "zhou2016/vgg16-gap"}, "is for VGG16"),
    ({"num_classes": 0}, "num_classes=0"),
    ({"num_classes": -3}, "num_classes=-3"),
    ({"dropout": 1.0}, r"dropout=1\.0"),
    ({"dropout": -0.1}, r"dropout=-0\.1"),
    ({"dropout": float("nan")}, "dropout=nan"),
    ({"map_stride": 8}, "map_stride"),
    ({"head_channels": 0}, "head_channels=0"),
    ({"head_channels": ()}, "head_channels="),
    ({"head_channels": (8, -1)}, "head_channels="),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConversionError, match=message):
        convert(chain(), input_size=64, **options)


# ---------------------------------------------------------------- against torch-cam
