"""What converts: torchvision's classifiers and one CNN per family of timm, with every head, at their native size.

``pytest -m slow tests/conversion/test_coverage.py`` runs all of them (35 minutes on a core) and compares the
table of docs/guide/convert.md with what it found; the default run takes one small network per family, at small sizes.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import DenseNet, MaxVit, RegNet, get_model, get_model_weights, list_models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from camify import ConversionError, convert, export, inspect
from tests.conversion.networks import narrow_vgg

ROOT = Path(__file__).parents[2]
NAMES = list_models(module=torchvision.models)
HEADS = ("gap", "direct", "recast")

# Of timm's modules, those whose networks are convolutional, or hold convolutions to the end; the smallest of each.
# Where it is not the smallest, the smallest takes a minute or has no classifier.
TIMM = """
halonet_h1 mobileone_s0 convmixer_768_32 convnext_atto cpubone_nano csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvit_b0
efficientvit_m0 fasternet_t0 fastvit_t8 focalnet_tiny_srf ghostnet_050 hardcorenas_b hgnetv2_b0 hrnet_w18_small
iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small lowformer_b0 mambaout_femto
poolformerv2_s12 lcnet_035 mobilevit_xxs nasnetalarge nextvit_small nf_regnet_b0 pnasnet5large pvt_v2_b0 rdnet_tiny
regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42
legacy_seresnet18 shvit_s1 skresnet18 starnet_s050 swiftformer_xs tresnet_m vgg11 visformer_tiny ese_vovnet19b_slim_dw
legacy_xception xception41
""".split()  # noqa: SIM905

FAMILIES = {  # of torchvision, by how the names begin; the first that fits
    "AlexNet": "alexnet", "VGG": "vgg", "ResNet, ResNeXt, Wide ResNet": "res|wide", "SqueezeNet": "squeezenet",
    "DenseNet": "densenet", "GoogLeNet, Inception v3": "googlenet|inception", "MobileNet v2": "mobilenet_v2",
    "MobileNet v3": "mobilenet_v3", "MNASNet": "mnasnet", "ShuffleNet v2": "shufflenet", "EfficientNet v1, v2":
    "efficientnet", "RegNet": "regnet", "ConvNeXt": "convnext", "ViT": "vit", "Swin v1, v2": "swin", "MaxViT": "maxvit",
}  # fmt: skip
SMALL = {  # of each family one network and a size that are quick; built small where its smallest published one is not
    "AlexNet": (partial(get_model, "alexnet"), 96),
    "VGG": (partial(narrow_vgg, "vgg11"), 64),
    "ResNet, ResNeXt, Wide ResNet": (partial(get_model, "resnet18"), 96),
    "SqueezeNet": (partial(get_model, "squeezenet1_1"), 96),
    "DenseNet": (partial(DenseNet, 8, (2, 2), 8), 64),
    "GoogLeNet, Inception v3": (partial(get_model, "googlenet", init_weights=False), 96),
    "MobileNet v2": (partial(get_model, "mobilenet_v2", width_mult=0.25), 96),
    "MobileNet v3": (partial(get_model, "mobilenet_v3_small"), 96),
    "MNASNet": (partial(get_model, "mnasnet0_5"), 96),
    "ShuffleNet v2": (partial(get_model, "shufflenet_v2_x0_5"), 96),
    "EfficientNet v1, v2": (
        partial(EfficientNet, [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)], 0.1), 64,
    ),
    "RegNet": (
        partial(RegNet, BlockParams.from_init_params(depth=4, w_0=16, w_a=16.0, w_m=2.5, group_width=8, se_ratio=0.25)),
        64,
    ),
    "ConvNeXt": (partial(ConvNeXt, [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]), 64),
    "ViT": (partial(VisionTransformer, 64, 16, 2, 2, 32, 64), 64),
    "Swin v1, v2": (partial(SwinTransformer, [4, 4], 8, [2, 2], [2, 2], [4, 4]), 64),
    "MaxViT": (partial(MaxVit, (64, 64), 8, 4, [8, 16], [1, 1], 8, 0.1), 64),
}  # fmt: skip
SMALL_TIMM = {
    "resnet10t": 96, "lcnet_035": 64, "efficientnet_b0": 64, "convnext_atto": 64, "regnetx_002": 64, "pvt_v2_b0": 64,
    "starnet_s050": 64, "mambaout_femto": 64, "legacy_seresnet18": 64, "ghostnet_050": 64,
}  # fmt: skip

EXPORTED = {  # of each family a small published network, written in both formats
    "AlexNet": "alexnet", "VGG": "vgg11", "ResNet, ResNeXt, Wide ResNet": "resnet18", "SqueezeNet": "squeezenet1_1",
    "DenseNet": "densenet121", "GoogLeNet, Inception v3": "googlenet", "MobileNet v2": "mobilenet_v2",
    "MobileNet v3": "mobilenet_v3_small", "MNASNet": "mnasnet0_5", "ShuffleNet v2": "shufflenet_v2_x0_5",
    "EfficientNet v1, v2": "efficientnet_b0", "RegNet": "regnet_y_400mf", "ConvNeXt": "convnext_tiny",
    "ViT": "vit_b_16", "Swin v1, v2": "swin_t", "MaxViT": "maxvit_t",
}  # fmt: skip
FORMATS = {".onnx": "ONNX", ".pt2": "pt2"}

EXPORTS: dict[tuple[str, str], str] = {}
FOUND: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)


def family_of(name):
    return next(family for family, begins in FAMILIES.items() if re.match(begins, name))


def legacy_of(name, **options):
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    torch.manual_seed(0)
    legacy = get_model(name, weights=None, **options).eval()
    return awake(legacy)


def awake(legacy):
    """A network whose classifier answers: torchvision starts that of a ViT at zero."""
    if isinstance(legacy, VisionTransformer):
        nn.init.normal_(legacy.heads.head.weight, std=0.02)
    return legacy


def native_size(name):
    crops = [member.transforms().crop_size[0] for member in get_model_weights(name)]
    return min(crops)


def check(legacy, head, size):
    """Converts, has the identity, and learns up to its first convolution; the words for the table."""
    net = convert(legacy, head=head, input_size=size, head_channels=64 if head == "gap" else None, seed=0)
    certificate = net.certificate
    assert certificate.identity_error <= 1e-4
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    logits, maps = net.forward_with_maps(images)
    bias = 0 if net.classifier.bias is None else net.classifier.bias
    error = (maps.double().mean((2, 3)) + bias - logits).abs().max() / logits.abs().max()
    assert float(error.detach()) <= 1e-4
    logits.square().sum().backward()
    first = next(module for module in net.features.modules() if isinstance(module, nn.Conv2d))
    assert float(first.weight.grad.abs().max()) > 0, "the gradient reaches the first convolution"
    return certificate


def test_the_lists_are_complete():
    assert len(NAMES) >= 80
    assert {family_of(name) for name in NAMES} == set(FAMILIES)
    assert set(SMALL) == set(EXPORTED) == set(FAMILIES)
    assert len(TIMM) >= 60


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=pytest.mark.slow)
        if family not in ("VGG", "ResNet, ResNeXt, Wide ResNet", "SqueezeNet", "DenseNet", "ConvNeXt", "ViT")
        else family
        for family in SMALL
    ],
)
def test_one_small_network_of_every_family(family):
    build, side = SMALL[family]
    torch.manual_seed(0)
    legacy = awake(build(num_classes=5).eval())
    for head in HEADS:
        certificate = check(legacy, head, (side, side))
        assert min(certificate.map_size) >= (1 if head == "recast" else 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:timm", "ignore::FutureWarning:timm")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name
        in (
            "efficientnet_b0",
            "mambaout_femto",
            "ghostnet_050",
            "pvt_v2_b0",
            "regnetx_002",
            "convnext_atto",
            "legacy_seresnet18",
            "resnet10t",
        )
        else name
        for name in SMALL_TIMM
    ],
)
def test_some_small_families_of_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    legacy = timm.create_model(name, pretrained=False, num_classes=5).eval()
    for head in HEADS:
        check(legacy, head, (SMALL_TIMM[name],) * 2)


# ---------------------------------------------------------------- all of them


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_classifier_of_torchvision(name):
    legacy, size = legacy_of(name), (native_size(name),) * 2
    row = {"verdict": inspect(legacy, input_size=size).verdict}
    for head in HEADS:
        certificate = check(legacy, head, size)
        if head != "recast" or family_of(name) not in ("AlexNet", "VGG"):
            assert min(certificate.map_size) >= 7
        row[head] = "yes"
    FOUND[family_of(name)].append((name, row))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_every_family_of_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        legacy = timm.create_model(name, pretrained=False).eval()
        size = legacy.pretrained_cfg["input_size"][-2:]
        row = {"verdict": inspect(legacy, input_size=size).verdict}
        for head in HEADS:
            try:
                check(legacy, head, size)
                row[head] = "yes"
            except ConversionError as error:
                row[head] = str(error)
    FOUND["timm"].append((name, row))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("family", EXPORTED)
def test_every_family_exports(family, suffix, tmp_path):
    """With ``head="direct"``; at 128 px but for transformers. The export itself compares file and network."""
    name = EXPORTED[family]
    size = native_size(name) if family in ("ViT", "Swin v1, v2", "MaxViT") else 128
    net = convert(legacy_of(name), head="direct", input_size=size, seed=0).eval()
    exported = export(net, tmp_path / f"model{suffix}", input_size=size)
    assert exported.error <= 1e-4
    EXPORTS[family, suffix] = ", ".join({"batch": "N", "height": "H", "width": "W"}[axis] for axis in exported.dynamic)


def table():
    """The table of the documentation, in Markdown."""
    lines = [
        f"| family | networks | verdict | gap | direct | recast | {' | '.join(FORMATS.values())} |",
        f"|---|---:|---|---:|---:|---:|{'---|' * len(FORMATS)}",
    ]
    for family in [*FAMILIES, "timm"]:
        rows = [row for _, row in FOUND[family]]
        verdicts = [v for v in ("native", "foldable", "convertible") if any(row["verdict"] == v for row in rows)]
        counts = [sum(row[head] == "yes" for row in rows) for head in HEADS]
        label = f"timm, one CNN of each of {len(rows)} families" if family == "timm" else family
        cells = [label, str(len(rows)), ", ".join(verdicts), *(f"{count}" for count in counts)]
        cells += [EXPORTS.get((family, suffix), "") for suffix in FORMATS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.slow
def test_the_readme_shows_what_was_found():
    if sum(map(len, FOUND.values())) < len(NAMES) + len(TIMM) or len(EXPORTS) < len(EXPORTED) * len(FORMATS):
        pytest.skip("runs after all the others")
    print(table())
    converted = [all(row[head] == "yes" for head in ("gap", "direct")) for _, row in FOUND["timm"]]
    assert sum(converted) >= 0.95 * len(converted)
    assert table() in (ROOT / "docs" / "guide" / "convert.md").read_text(encoding="utf-8")
