"""Recipes against hand-written lists of the published layers (Zhou et al. 2016 and its prototxts; wsolevaluation)."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from camify.conversion import RECIPES, convert
from camify.errors import ConversionError
from camify.model import CAMNet
from tests.conversion.networks import narrow_vgg

MODELS = torchvision.models


class NarrowBottleneck(Bottleneck):
    expansion = 2


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "resnet50":  # 1024 channels in front of the classifier instead of 2048
            return ResNet(NarrowBottleneck, [3, 4, 6, 3], num_classes=5, width_per_group=16)
        plain = {"vgg16", "googlenet", "inception_v3"}
        network = getattr(MODELS, name)(**({"init_weights": False} if name in plain else {}))
        if name in ("alexnet", "vgg16"):
            network.classifier = nn.Linear(256 * 36 if name == "alexnet" else 512 * 49, 5)
        else:
            network.fc = nn.Linear(network.fc.in_features, 5)
        return network


@functools.cache
def legacy(name: str) -> nn.Module:
    """A torchvision network of full depth, quickly drawn, with five classes."""
    network = meta(name).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    with torch.no_grad():
        for parameter in (p for p in network.parameters() if p.dim() > 1):
            bound = (6 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        for parameter in (p for n, p in network.named_parameters() if n.endswith("bias")):
            parameter.uniform_(-0.1, 0.1, generator=generator)
    return network.eval()


SIZES = {"alexnet": 128, "vgg16": 32, "resnet50": 64, "googlenet": 64, "inception_v3": 112}


@functools.cache
def converted(recipe: str) -> CAMNet:
    network = NETWORKS[recipe]
    return convert(legacy(network), recipe=recipe, input_size=SIZES[network], seed=0).eval()


def conv(before: int, after: int, groups: int, draw: str, bias: float = 0.0) -> list[tuple]:
    return [("conv", 3, 1, 1, before, after, groups, draw, bias), ("relu",)]


POOL5 = ("max_pool", 3, 1, 0)
STAR = [*conv(256, 512, 2, "gaussian", 1.0), *conv(512, 512, 2, "gaussian", 1.0)]
HALF = ("dropout", 0.5)
INCEPTION = [HALF, *conv(768, 1024, 1, "xavier"), HALF, *conv(1024, 1024, 1, "xavier"), HALF]

# recipe: network, last layer of the features, map at 224 px, new layers, pool, dropout behind it, the classifier
PUBLISHED = {
    "zhou2016/alexnet-gap": ("alexnet", "features.11", 13, conv(256, 1024, 1, "he_fan_in"), "gap", 0.0, "gaussian"),
    "zhou2016/alexnet-star-gap": (
        "alexnet", "features.11", 13,
        [*conv(256, 512, 1, "he_fan_in"), *conv(512, 512, 1, "he_fan_in")], "gap", 0.0, "gaussian",
    ),
    "zhou2016/alexnet-star-gap-released": ("alexnet", "features.11", 11, [POOL5, *STAR], "gap", 0.5, "gaussian"),
    "zhou2016/alexnet-star-gap-places205": ("alexnet", "features.11", 11, [POOL5, *STAR], "gap", 0.0, "gaussian"),
    "zhou2016/vgg16-gap": ("vgg16", "features.29", 14, conv(512, 1024, 1, "he_fan_in"), "gap", 0.0, "gaussian"),
    "zhou2016/vgg16-gap-released": ("vgg16", "features.29", 14, conv(512, 1024, 2, "gaussian"), "gap", 0.5, "gaussian"),
    "zhou2016/googlenet-gap": (
        "googlenet", "inception4e", 14, conv(832, 1024, 1, "he_fan_in"), "gap", 0.0, "gaussian",
    ),
    "zhou2016/googlenet-gmp": (
        "googlenet", "inception4e", 14, conv(832, 1024, 1, "he_fan_in"), "gmp", 0.0, "gaussian",
    ),
    "zhou2016/googlenet-gap-released": (
        "googlenet", "inception4e", 14, conv(832, 1024, 2, "gaussian", 1.0), "gap", 0.0, "caffe_xavier",
    ),
    "choe2020/vgg16": ("vgg16", "features.29", 14, conv(512, 1024, 1, "he_fan_out"), "gap", 0.0, "gaussian"),
    "choe2020/vgg16-28": ("vgg16", "features.29", 28, conv(512, 1024, 1, "he_fan_out"), "gap", 0.0, "gaussian"),
    "choe2020/resnet50": ("resnet50", "layer4", 14, [], "gap", 0.0, "kept"),
    "choe2020/resnet50-28": ("resnet50", "layer4", 28, [], "gap", 0.0, "kept"),
    "choe2020/inceptionv3": ("inception_v3", "Mixed_6e", 14, INCEPTION, "gap", 0.0, "xavier"),
    "choe2020/inceptionv3-28": ("inception_v3", "Mixed_6e", 28, INCEPTION, "gap", 0.0, "xavier"),
}  # fmt: skip
NETWORKS = {recipe: published[0] for recipe, published in PUBLISHED.items()}


def check_draw(weight: torch.Tensor, draw: str) -> None:
    """Standard deviation and largest value of new weights, from the formulas."""
    weight = weight.detach()
    fan_in = weight[0].numel()
    fan_out = weight.shape[0] * weight[0, 0].numel()
    std = {
        "gaussian": 0.01,
        "he_fan_in": (2 / fan_in) ** 0.5,
        "he_fan_out": (2 / fan_out) ** 0.5,
        "xavier": (2 / (fan_in + fan_out)) ** 0.5,
        "caffe_xavier": (1 / fan_in) ** 0.5,
    }[draw]
    assert float(weight.std()) == pytest.approx(std, rel=0.05)
    assert abs(float(weight.mean())) < 0.05 * std
    widest = float(weight.abs().max()) / std
    assert widest <= 3**0.5 + 1e-4 if "xavier" in draw else widest > 2.5, "uniform and normal differ in their tails"


def check_layer(layer: nn.Module, expected: tuple) -> None:
    kind, *numbers = expected
    if kind == "conv":
        size, stride, padding, before, after, groups, draw, bias = numbers
        assert (layer.kernel_size, layer.stride, layer.padding) == ((size, size), (stride, stride), (padding, padding))
        assert (layer.in_channels, layer.out_channels, layer.groups) == (before, after, groups)
        check_draw(layer.weight, draw)
        assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))
    elif kind == "max_pool":
        assert isinstance(layer, nn.MaxPool2d)
        assert [layer.kernel_size, layer.stride, layer.padding] == numbers
    elif kind == "dropout":
        assert isinstance(layer, nn.Dropout)
        assert [layer.p] == numbers
    else:
        assert isinstance(layer, nn.ReLU)


def map_size(net: CAMNet, size: int) -> tuple[int, ...]:
    """Of images of ``size`` pixels, computed without values."""
    features = copy.deepcopy(net.features).to("meta")
    return tuple(features(torch.empty(1, 3, size, size, device="meta")).shape[2:])


@pytest.mark.parametrize(
    ("recipe", "option", "says"), [("zhou2016/googlenet-gmp", "pool", "gmp"), ("choe2020/resnet50", "head", "direct")]
)
def test_a_default_that_was_written_is_told_from_one_that_was_not(recipe, option, says):
    network = MODELS.squeezenet1_1(num_classes=2)  # of no family: without the option the recipe is what refuses it
    with pytest.raises(ConversionError, match=f"says '{says}', but {option}='gap' was given"):
        convert(network, recipe=recipe, input_size=64, **{option: "gap"})
    with pytest.raises(ConversionError, match=r"is for .*: expected"):
        convert(network, recipe=recipe, input_size=64)
    default = inspect.signature(convert).parameters[option].default
    assert (default, repr(default)) == ("gap", "'gap'")


def test_every_recipe_has_its_list_and_its_sources():
    assert RECIPES.keys() == PUBLISHED.keys()
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert ("Zhou et al. 2016" in recipe.source) or ("zhoubolei/CAM" in recipe.source) or "Choe" in recipe.source
        assert recipe.fine_tuning_source
        assert recipe.fine_tuning.epochs
        assert recipe.fine_tuning.batch_size


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if "inception" in name else name for name in PUBLISHED],
)
@pytest.mark.slow
def test_a_recipe_is_the_published_network_layer_for_layer(name):
    _, end, cells, layers, pool, dropout, drawn = PUBLISHED[name]
    net = converted(name)
    new = [net.features.get_submodule(layer) for layer in net.head_layers]
    assert len(new) == len(layers)
    for layer, expected in zip(new, layers, strict=True):
        check_layer(layer, expected)
    assert (net.pool_name, net.dropout.p) == (pool, dropout)
    assert net.certificate.feature_layer == end
    assert map_size(net, 224) == (cells, cells)
    if drawn != "kept":
        check_draw(net.classifier.weight[:, :, None], drawn)
        assert not net.classifier.bias.any()
    assert any(name in note for note in net.certificate.notes)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("choe2020/vgg16", "choe2020/resnet50-28") or "alexnet" in name
        else pytest.param(name, marks=pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_kept_weights_stay_bit_for_bit_and_the_identity_holds(name):
    network = legacy(NETWORKS[name])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    net = converted(name)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    theirs = {key.removeprefix("features."): value for key, value in before.items()}
    kept = {k: v for k, v in net.features.state_dict().items() if not k.startswith(net.head_layers or ("-",))}
    assert kept
    assert all(torch.equal(value, theirs[key]) for key, value in kept.items())
    if RECIPES[name].pool == "gap":
        assert net.identity_error(torch.randn(1, 3, SIZES[NETWORKS[name]], SIZES[NETWORKS[name]])) < 1e-4
        assert net.certificate.cam_ready
    else:
        assert net.certificate.identity_error is None


@pytest.mark.parametrize(
    "name",
    [name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(PUBLISHED)],
)
def test_recipes_survive_their_checkpoint(name, tmp_path):
    net = converted(name)
    again = CAMNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    images = torch.randn(1, 3, SIZES[NETWORKS[name]], SIZES[NETWORKS[name]])
    ours = net.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in again.state_dict().items())
    with torch.no_grad():  # other addresses in memory, another order of additions
        assert torch.allclose(again(images), net(images), rtol=1e-4, atol=1e-5 * float(net(images).abs().max()))
    assert again.head_layers == net.head_layers
    assert again.dropout.p == net.dropout.p


# ---------------------------------------------------------------- what is changed in the features


def strides(network: nn.Module, layer: str) -> set[tuple[int, int]]:
    return {m.stride for m in network.get_submodule(layer).modules() if isinstance(m, nn.Conv2d)}


def test_resnet_strides_are_dropped_in_the_copy_without_dilation_and_the_old_fc_stays():
    network = legacy("resnet50")
    for name, free in (("choe2020/resnet50", ["layer4"]), ("choe2020/resnet50-28", ["layer3", "layer4"])):
        net = converted(name)
        for layer in ("layer2", "layer3", "layer4"):
            assert strides(network, layer) == {(1, 1), (2, 2)}, "the user's network stays as it is"
            assert strides(net.features, layer) == ({(1, 1)} if layer in free else {(1, 1), (2, 2)})
        assert {m.dilation for m in net.features.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
        assert torch.equal(net.classifier.weight, network.fc.weight)
        assert torch.equal(net.classifier.bias, network.fc.bias)
    other = convert(network, recipe="choe2020/resnet50", input_size=64, num_classes=3, seed=0)
    check_draw(other.classifier.weight[:, :, None], "gaussian")
    assert other.classifier.out_features == 3


def resnet_without_strides(network: nn.Module, layers: list[str]) -> nn.Module:
    """wsol/resnet.py by hand."""
    network = copy.deepcopy(network)
    for layer in layers:
        block = network.get_submodule(layer)[0]
        block.conv2.stride = block.downsample[0].stride = (1, 1)
    return network


@pytest.mark.parametrize("name", ["choe2020/resnet50", "choe2020/resnet50-28"])
def test_resnet_logits_are_those_of_the_network_built_by_hand(name):
    layers = ["layer4"] if name == "choe2020/resnet50" else ["layer3", "layer4"]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = resnet_without_strides(legacy("resnet50"), layers)(images)
        assert torch.allclose(converted(name)(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def inception_by_hand(network: nn.Module, images: torch.Tensor, large: bool) -> torch.Tensor:
    """The trunk of wsol/inception.py with torchvision's blocks, written again from the published description."""
    F = nn.functional
    net = copy.deepcopy(network)
    net.Conv2d_1a_3x3.conv.padding = (1, 1)
    for conv in (net.Mixed_6a.branch3x3.conv, net.Mixed_6a.branch3x3dbl_3.conv):
        conv.stride, conv.padding = (1, 1), (1, 1)
    x = net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(images)))
    x = F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
    x = net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x))
    x = F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
    x = net.Mixed_5d(net.Mixed_5c(net.Mixed_5b(x)))
    if not large:
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    a = net.Mixed_6a
    branch = a.branch3x3dbl_3(a.branch3x3dbl_2(a.branch3x3dbl_1(x)))
    x = torch.cat([a.branch3x3(x), branch, F.max_pool2d(x, 3, 1, padding=1)], 1)
    return net.Mixed_6e(net.Mixed_6d(net.Mixed_6c(net.Mixed_6b(x))))


@pytest.mark.parametrize("name", ["choe2020/inceptionv3", "choe2020/inceptionv3-28"])
@torch.no_grad()
@pytest.mark.slow
def test_inception_is_the_network_built_by_hand(name):
    net, images = converted(name), torch.randn(1, 3, 112, 112)
    x = inception_by_hand(legacy("inception_v3"), images, large=name.endswith("28"))
    for layer in (net.features.cam_conv1, net.features.cam_conv2):
        x = layer(x).relu()
    maps = nn.functional.conv2d(x, net.classifier.weight[:, :, None, None], net.classifier.bias)  # 1x1, then GAP
    expected = maps.mean((2, 3))
    assert torch.allclose(net(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    names = dict(net.features.named_modules())
    assert not any(name.startswith(("Mixed_7", "AuxLogits", "fc")) for name in names)
    assert ("maxpool3" in names) == (not name.endswith("28"))


def test_googlenet_ends_after_inception4e():
    names = {name.split(".")[0] for name, _ in converted("zhou2016/googlenet-gap").features.named_modules()}
    assert "inception4e" in names
    assert not names & {"maxpool4", "inception5a", "inception5b", "aux1", "aux2", "fc"}


def test_vgg_loses_pool5_and_in_28_pool4_too():
    pools = {
        name: sum(isinstance(layer, nn.MaxPool2d) for layer in converted(name).features)
        for name in ("zhou2016/vgg16-gap", "choe2020/vgg16", "choe2020/vgg16-28")
    }
    assert list(pools.values()) == [4, 4, 3]


def test_vgg16_at_full_size_has_14_by_14_cells():
    net = convert(narrow_vgg("vgg16"), recipe="zhou2016/vgg16-gap", input_size=224, num_classes=3, seed=0)
    assert net.certificate.map_size == (14, 14)
    assert net.certificate.cam_ready


def test_the_same_seed_draws_the_same_layers():
    first, second = converted("zhou2016/alexnet-gap"), legacy("alexnet")
    again = convert(second, recipe="zhou2016/alexnet-gap", input_size=128, seed=0)
    assert torch.equal(first.features.cam_conv.weight, again.features.cam_conv.weight)


@pytest.mark.slow
def test_dropout_between_new_layers_works_in_training_only():
    net = copy.deepcopy(converted("choe2020/inceptionv3"))
    images = torch.randn(2, 3, 112, 112)
    assert [layer for layer in net.head_layers if "dropout" in layer] == [
        "cam_dropout1",
        "cam_dropout2",
        "cam_dropout3",
    ]
    head = [net.features.get_submodule(layer) for layer in net.head_layers]
    for layer in head:
        layer.train()
    with torch.no_grad():
        assert not torch.equal(net(images), net(images))
        net.eval()
        assert torch.equal(net(images), net(images))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("recipe", "network", "message"),
    [
        ("zhou2016/vgg16-gap", "alexnet", r"is for VGG16: expected .*3 3 P 3 3 P.*found 11 P 5 P 3 3 3 P"),
        ("zhou2016/alexnet-gap", "vgg16", r"is for AlexNet: expected .*11 P 5 P.*found 3 3 P"),
        ("zhou2016/googlenet-gap", "alexnet", "is for GoogLeNet: expected the modules .*inception4e.*found features"),
        ("choe2020/inceptionv3", "googlenet", "is for Inception-v3: expected the modules .*Mixed_6e.*found conv1"),
        ("choe2020/resnet50", "vgg16", "is for ResNet-50: expected the modules layer3, layer4; found features"),
    ],
)
def test_a_recipe_on_another_network_is_refused(recipe, network, message):
    with pytest.raises(ConversionError, match=message):
        convert(legacy(network), recipe=recipe, input_size=SIZES[network])


def test_a_smaller_resnet_is_refused_by_its_layers():
    network = MODELS.resnet18(num_classes=3)
    with pytest.raises(ConversionError, match=r"is for ResNet-50: expected convolutions.*7 P 1 3 1 1.*found 7 P 3 3"):
        convert(network, recipe="choe2020/resnet50", input_size=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "zhou2016/vgg16"}, "recipe='zhou2016/vgg16' is unknown.*zhou2016/vgg16-gap"),
        ({"head": "direct"}, "says 'gap', but head='direct' was given"),
        ({"pool": "lse"}, "says 'gap', but pool='lse'"),
        ({"dropout": 0.5}, r"says 0\.0, but dropout=0\.5"),
        ({"head_channels": 512}, r"says \(1024,\), but head_channels=\(512,\)"),
        ({"map_stride": 8}, "has strides of its own, but map_stride=8"),
    ],
)
def test_options_that_contradict_the_recipe_are_refused(options, message):
    with pytest.raises(ConversionError, match=message):
        convert(legacy("alexnet"), input_size=128, **{"recipe": "zhou2016/alexnet-gap", **options})


def test_options_that_agree_with_the_recipe_are_welcome():
    net = convert(
        legacy("alexnet"), recipe="zhou2016/alexnet-star-gap-released", input_size=128,
        head="gap", pool="gap", dropout=0.5, head_channels=[512, 512],
    )  # fmt: skip
    assert net.dropout.p == 0.5


def test_groups_that_do_not_divide_the_channels_are_refused():
    widths = [4, "P", 4, "P", 4, 4, 3, "P"]
    layers, before = [], 3
    for size, width in zip([11, 0, 5, 0, 3, 3, 3, 0], widths, strict=True):
        if width == "P":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, width, size, padding=size // 2), nn.ReLU()]
            before = width
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ConversionError, match="3 channels, which 2 groups"):
        convert(network, recipe="zhou2016/alexnet-star-gap-released", input_size=64)
    assert convert(network, recipe="zhou2016/alexnet-gap", input_size=64).certificate.cam_ready
