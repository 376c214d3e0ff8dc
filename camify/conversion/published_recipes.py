"""The published recipes by name: the only table of networks in camify.

Zhou et al. 2016 ("Learning Deep Features for Discriminative Localization") and the prototxts released with it differ;
both are here, the latter as ``-released``. Choe et al. 2020 ("Evaluating Weakly Supervised Object Localization
Methods Right") is its code, clovaai/wsolevaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..errors import ConversionError
from .geometry import DropMaxPool, DropStrides, MaxPoolBefore, SetPadding
from .new_layers import Conv3x3, DropoutOnMap, MaxPoolOnMap
from .recipes import Family, FineTuning, Recipe

__all__ = ["RECIPES", "default_convs", "find_recipe"]

# ---------------------------------------------------------------- families

_ALEXNET = Family("AlexNet", "11 P 5 P 3 3 3 P")
_VGG16 = Family("VGG16", "3 3 P 3 3 P 3 3 3 P 3 3 3 P 3 3 3 P")
_BLOCKS = " ".join("1 3 1 1" + " 1 3 1" * (blocks - 1) for blocks in (3, 4, 6, 3))
_RESNET50 = Family("ResNet-50", f"7 P {_BLOCKS}", ("layer3", "layer4"))
_GOOGLENET = Family("GoogLeNet", modules=("inception3a", "inception4e", "inception5b"))
_INCEPTION_V3 = Family(
    "Inception-v3", modules=("Conv2d_1a_3x3.conv", "maxpool1", "maxpool2", "Mixed_5d", "Mixed_6a", "Mixed_6e")
)

# ---------------------------------------------------------------- Zhou et al. 2016

_PAPER = "Zhou et al. 2016, section 3.1"
_SOLVER = FineTuning(
    optimizer="sgd", lr=1e-3, head_lr_factor=1.0, bias_lr_factor=2.0, decay_biases=False, nesterov=False,
    weight_decay=5e-4, schedule="step", lr_drops=(0.25, 0.5, 0.75), warmup_epochs=0.0, freeze_epochs=0,
    gradient_clip=0.0, epochs=8, batch_size=64,
)  # fmt: skip
_SOLVER_SOURCE = (
    "zhoubolei/CAM models/solver_imagenet_googlenetCAM.prototxt: 160,000 steps of 64 ILSVRC images, tenfold less every"
    " 40,000; released for GoogLeNet only, taken for the others too"
)


def _zhou(family: Family, source: str, *layers: Conv3x3 | MaxPoolOnMap) -> Recipe:
    return Recipe(source, family, _SOLVER, _SOLVER_SOURCE, layers=layers)


_PAPER_CONV = Conv3x3(1024)
_ALEXNET_GAP = _zhou(_ALEXNET, f"{_PAPER}: after conv5, one convolution 3x3 of 1024 units; how it is drawn is not said",
                     _PAPER_CONV)  # fmt: skip
_STAR = "AlexNet*-GAP, two convolutions before GAP"
_STAR_CONV = Conv3x3(512, groups=2, weights="gaussian", bias=1.0)
_STAR_RELEASED = _zhou(
    _ALEXNET,
    "zhoubolei/CAM models/deploy_alexnetplusCAM_imagenet.prototxt: pool5 kept with stride 1, conv6 and conv7",
    MaxPoolOnMap(3, 1), _STAR_CONV, _STAR_CONV,
)  # fmt: skip
_GOOGLENET_GAP = replace(
    _zhou(_GOOGLENET, f"{_PAPER}: all after inception4e removed, one convolution 3x3 of 1024 units", _PAPER_CONV),
    cut_after="inception4e",
)

_ZHOU = {
    "zhou2016/alexnet-gap": _ALEXNET_GAP,
    "zhou2016/alexnet-star-gap": replace(
        _ALEXNET_GAP, source=f"{_PAPER}: {_STAR}; their widths are those released", layers=(Conv3x3(512), Conv3x3(512))
    ),
    "zhou2016/alexnet-star-gap-released": replace(_STAR_RELEASED, dropout=0.5),
    "zhou2016/alexnet-star-gap-places205": replace(
        _STAR_RELEASED,
        source="zhoubolei/CAM models/deploy_alexnetplusCAM_places205.prototxt: as for ILSVRC, no dropout",
    ),
    "zhou2016/vgg16-gap": _zhou(_VGG16, f"{_PAPER}: after conv5-3, one convolution 3x3 of 1024 units", _PAPER_CONV),
    "zhou2016/vgg16-gap-released": replace(
        _zhou(
            _VGG16,
            "zhoubolei/CAM models/deploy_vgg16CAM.prototxt: CAM_conv; how CAM_fc is drawn is not said",
            Conv3x3(1024, groups=2, weights="gaussian"),
        ),
        dropout=0.5,
    ),
    "zhou2016/googlenet-gap": _GOOGLENET_GAP,
    "zhou2016/googlenet-gmp": replace(
        _GOOGLENET_GAP, source=f"{_PAPER} and 3.2: GoogLeNet-GMP, as GoogLeNet-GAP with max-pooling", pool="gmp"
    ),
    "zhou2016/googlenet-gap-released": replace(
        _GOOGLENET_GAP,
        source="zhoubolei/CAM models/train_val_googlenetCAM.prototxt (and deploy_googlenetCAM_places205.prototxt)",
        layers=(Conv3x3(1024, groups=2, weights="gaussian", bias=1.0),),
        classifier="caffe_xavier",
    ),
}

# ---------------------------------------------------------------- Choe et al. 2020

_CODE = "Choe et al. 2020, clovaai/wsolevaluation"
# The code lowers the rate when it begins epoch 3, 6, ... (step 3) or 15, 30, ... (step 15), counted from 1.
_TEN_EPOCHS, _FIFTY_EPOCHS = (0.2, 0.5, 0.8), (0.28, 0.58, 0.88)
_CUB = FineTuning(
    optimizer="sgd", lr=1.268269e-5, head_lr_factor=10.0, weight_decay=5e-4, schedule="step", lr_drops=_FIFTY_EPOCHS,
    warmup_epochs=0.0, freeze_epochs=0, gradient_clip=0.0, epochs=50, batch_size=32,
)  # fmt: skip
_SEARCHED = "the authors' random search as quoted by other repositories (finallyupper/dual-cam): "

_VGG = Recipe(
    f"{_CODE} wsol/vgg.py: conv6 behind conv5_3",
    _VGG16,
    _CUB,
    _SEARCHED + "CUB; ILSVRC: lr 1.654502e-5 and OpenImages: lr 3.4052401e-4, both 10 epochs, drops at 0.2, 0.5, 0.8",
    layers=(Conv3x3(1024, weights="he_fan_out"),),
)
_RESNET = Recipe(
    f"{_CODE} wsol/resnet.py: layer4 without stride; the old fc stays with its classes",
    _RESNET50,
    replace(_CUB, lr=1.07117324e-3, weight_decay=1e-4, lr_drops=_TEN_EPOCHS, epochs=10, fast_layers=("layer4",)),
    _SEARCHED + "OpenImages",
    head="direct",
    changes=(DropStrides("layer4"),),
)
_PADDED = (SetPadding("Conv2d_1a_3x3.conv", 1), SetPadding("maxpool1", 1), SetPadding("maxpool2", 1))
_UNSTRIDED = DropStrides("Mixed_6a", pad=True)
_INCEPTION_CONV, _HALF = Conv3x3(1024, weights="xavier"), DropoutOnMap(0.5)
_INCEPTION = Recipe(
    f"{_CODE} wsol/inception.py: two convolutions behind Mixed_6e; its 1x1 convolution before GAP is the classifier",
    _INCEPTION_V3,
    replace(_CUB, lr=2.24844746e-3),
    _SEARCHED + "CUB at 28 x 28; ILSVRC: lr 3.606503e-4, 10 epochs, drops at 0.2, 0.5, 0.8",
    cut_after="Mixed_6e",
    changes=(*_PADDED, MaxPoolBefore("Mixed_6a", "maxpool3"), _UNSTRIDED),
    layers=(_HALF, _INCEPTION_CONV, _HALF, _INCEPTION_CONV, _HALF),
    classifier="xavier",
)

_CHOE = {
    "choe2020/vgg16": _VGG,
    "choe2020/vgg16-28": replace(
        _VGG,
        source=f"{_VGG.source}; pool4 removed",
        changes=(DropMaxPool(-1),),
        fine_tuning_source=f"{_VGG.fine_tuning_source}; found at 14 x 14",
    ),
    "choe2020/resnet50": _RESNET,
    "choe2020/resnet50-28": replace(
        _RESNET,
        source=f"{_CODE} wsol/resnet.py: layer3 and layer4 without stride; the old fc stays with its classes",
        changes=(DropStrides("layer3"), DropStrides("layer4")),
        fine_tuning=replace(_CUB, lr=2.3222617e-4, weight_decay=1e-4, fast_layers=("layer4",)),
        fine_tuning_source=_SEARCHED + "CUB; ILSVRC: lr 3.108411e-5, 10 epochs, drops at 0.2, 0.5, 0.8",
    ),
    "choe2020/inceptionv3": _INCEPTION,
    "choe2020/inceptionv3-28": replace(_INCEPTION, changes=(*_PADDED, _UNSTRIDED)),
}

RECIPES: dict[str, Recipe] = {name: replace(recipe, name=name) for name, recipe in {**_ZHOU, **_CHOE}.items()}
"""Every recipe by name, ``paper/network``."""

_ALEXNET_KERNELS = (11, 5, 3, 3, 3)


def find_recipe(name: str | None) -> Recipe | None:
    """The recipe of a name; None for None.

    Raises:
        ConversionError: no recipe has that name.
    """
    if name is not None and name not in RECIPES:
        raise ConversionError(f"recipe={name!r} is unknown. Choose one of {', '.join(RECIPES)}.")
    return None if name is None else RECIPES[name]


def default_convs(layers: Sequence[nn.Module]) -> tuple[int, ...]:
    """Widths of the new convolutions: 1024 as in VGG-GAP; two of 512 for an AlexNet, known by its kernels."""
    kernels = tuple(layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv2d))
    name = "zhou2016/alexnet-star-gap" if kernels == _ALEXNET_KERNELS else "zhou2016/vgg16-gap"
    return RECIPES[name].convs
