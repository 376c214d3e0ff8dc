"""Conversion: any classifier becomes a CAMNet, and proves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from ..model import CAMNet
from ..pooling import POOLS
from .anatomy import Anatomy
from .changes import apply_changes, cut_after
from .dilation import set_map_stride
from .examination import examine
from .new_layers import FILLERS, Conv3x3, NewLayer, append_layers
from .proof import certify
from .published import default_convs, find_recipe
from .recast import Recast, recast_head
from .recipes import Recipe, settle_head
from .sources import Source, resolve
from .traced import TracedAnatomy

__all__ = ["HEADS", "convert"]

HEADS = ("gap", "direct", "recast")


def convert(
    model: nn.Module | str | Source,
    *,
    head: str | None = "gap",
    num_classes: int | None = None,
    input_size: int | tuple[int, int] = 224,
    example: Tensor | None = None,
    pool: str | None = "gap",
    map_stride: int | None = None,
    recipe: str | None = None,
    seed: int | None = None,
    head_channels: int | Sequence[int] | None = None,
    dropout: float | None = None,
) -> CAMNet:
    """A CAM-ready copy of a classifier, with a certificate; the classifier itself stays as it is.

    ``head="gap"`` (Zhou et al. 2016, section 3.1) strips everything behind the last spatial map, the last
    max-pool included, and puts convolution 3x3 + ReLU -> global average pooling -> linear in its place.
    ``head="direct"`` puts GAP -> linear there. ``head="recast"`` keeps the old head: as one linear layer where it is
    linear after pooling (as ``direct`` does too while the classes stay), else as layers that run at every position.
    The logits are the legacy's where it is linear after pooling, at every size; where it flattens, at
    ``input_size``; where it pools before a non-linearity, the certificate says how far they are off. No hook of the
    classifier runs, and none is copied.

    Args:
        model: a network, or a source such as ``"torchvision/vgg16"`` (see ``camify.surgery.resolve``); what is known
            of the source's classes and preprocessing goes into the CAMNet.
        head: ``"gap"``, ``"direct"`` or ``"recast"``; a recipe's own where it has one.
        num_classes: None keeps the legacy's number.
        input_size: height and width at which the network is run and proven, pixels.
        example: images (N, C, H, W) to run instead of noise.
        pool: ``"gap"``, ``"gmp"`` or ``"lse"``; a recipe's own where it has one. Only GAP has the identity.
        map_stride: pixels per cell of the map, smaller than the legacy's: strides become dilations, the weights stay.
        recipe: a published network by name (``camify.surgery.RECIPES``): where the features end, strides, new layers,
            their first weights, pooling and dropout. Options that contradict it are refused.
        seed: for the new layers; None draws from torch's global generator.
        head_channels: widths of the new 3x3 convolutions; None takes 1024, for an AlexNet 512 and 512.
        dropout: between pooling and classifier while training; None: the recipe's, else 0.

    Raises:
        ConversionError: the network or an option cannot be used; says which layer, why and what to do.
    """
    source = _source_of(model)
    model = source.model
    plan = find_recipe(recipe)
    if plan is not None:  # the defaults are nobody's wish
        head, pool = (None if option == "gap" else option for option in (head, pool))
    given = {"head": head, "pool": pool, "dropout": dropout, "head_channels": head_channels, "map_stride": map_stride}
    head, pool, dropout = settle_head(plan, given).values()
    _check_options(head, num_classes, pool, map_stride, dropout)
    anatomy = examine(model, input_size, example)
    anatomy.notes += source.notes
    if plan is not None:
        anatomy = _follow(plan, anatomy)
    recast = _recast(anatomy, pool, num_classes) if head == "recast" else None
    copied = recast.copy_features() if recast else anatomy.copy_features()
    features, modes, kept = copied.features, copied.modes, copied.layers
    if plan is not None:
        features = apply_changes(features, plan.changes)
    if map_stride is not None:
        anatomy.notes.append(set_map_stride(features.eval(), map_stride, anatomy.images))
    with torch.random.fork_rng(enabled=seed is not None, devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        layers = _new_layers(plan, head, head_channels, features)
        channels = anatomy.feature_shape[0]
        features, new = append_layers(features, channels, layers)
        width = [channels, *(layer.channels for layer in layers if isinstance(layer, Conv3x3))][-1]
        filler = plan.classifier if plan is not None else "gaussian"
        classifier = recast.classifier if recast else _classifier(anatomy, head, pool, width, num_classes, filler)
    net = CAMNet(features, classifier, pool=pool, dropout=dropout, head_layers=new)
    net.to(anatomy.images)
    for module in net.modules():
        module.training = modes.get(module, model.training)
    finer = map_stride is not None or bool(plan and plan.changes)
    net.certificate = certify(net, anatomy, source.name, head, kept, recast, finer=finer)
    net.to(next(model.parameters()))
    names = source.class_names
    if names is not None and len(names) == net.num_classes and num_classes is None:
        net.class_names = list(names)
    if source.preprocessing is not None:
        net.preprocessing = dict(source.preprocessing)
    return net


def _source_of(model: nn.Module | str | Source) -> Source:
    if isinstance(model, Source):
        return model
    if isinstance(model, str):
        return resolve(model)
    if isinstance(model, CAMNet):  # converted before: what it knows of its input and classes stays
        return Source(model, type(model).__name__, model.class_names, preprocessing=model.preprocessing)
    return Source(model, type(model).__name__)


def _check_options(
    head: str,
    num_classes: int | None,
    pool: str,
    map_stride: int | None,
    dropout: float,
) -> None:
    if head not in HEADS:
        raise ConversionError(f"head={head!r} is unknown. Choose one of {', '.join(HEADS)}.")
    if pool not in POOLS:
        raise ConversionError(f"pool={pool!r} is unknown. Choose one of {', '.join(POOLS)}.")
    if map_stride is not None and head == "recast":
        raise ConversionError(
            "map_stride: a recast head belongs to the old stride. Leave it None, or give a larger input_size."
        )
    if num_classes is not None and num_classes < 1:
        raise ConversionError(f"num_classes={num_classes}: must be at least 1.")
    if not 0 <= dropout < 1:
        raise ConversionError(f"dropout={dropout}: must be in [0, 1).")


def _follow(recipe: Recipe, anatomy: Anatomy) -> Anatomy:
    """The anatomy as a recipe cuts it; a network of another family is refused."""
    if not isinstance(anatomy, TracedAnatomy):
        raise ConversionError(f"recipe={recipe.name!r}: torch.fx cannot trace the network. Leave the recipe None.")
    recipe.check(anatomy.network)
    if recipe.cut_after is not None:
        anatomy = cut_after(anatomy, recipe.cut_after)
    anatomy.notes += recipe.notes()
    return anatomy


def _recast(anatomy: Anatomy, pool: str, num_classes: int | None) -> Recast | None:
    """The recast head; None where the old one is linear after pooling and is kept as it is."""
    if pool != "gap":
        raise ConversionError(f"head='recast' keeps the old head, which was not made for pool={pool!r}. Use 'gap'.")
    classes = anatomy.logits.shape[1]
    if num_classes not in (None, classes):
        raise ConversionError(f"head='recast' keeps the {classes} classes; num_classes={num_classes} does not.")
    return recast_head(anatomy) if anatomy.linear is None else None


def _new_layers(
    recipe: Recipe | None, head: str, head_channels: int | Sequence[int] | None, features: nn.Module
) -> tuple[NewLayer, ...]:
    """What comes behind the features: as published, or convolutions of the given or usual widths."""
    if recipe is not None:
        return recipe.layers
    if head != "gap":
        return ()
    if head_channels is None:
        return tuple(map(Conv3x3, default_convs(list(features.modules()))))
    widths = (head_channels,) if isinstance(head_channels, int) else tuple(head_channels)
    if not widths or min(widths) < 1:
        raise ConversionError(f"head_channels={head_channels}: every width must be at least 1.")
    return tuple(map(Conv3x3, widths))


def _classifier(
    anatomy: Anatomy, head: str, pool: str, channels: int, num_classes: int | None, filler: str
) -> nn.Linear:
    """The old linear head where it stays valid, else a new one; ``"gaussian"`` is how wsolevaluation draws it."""
    old = anatomy.linear if head == "recast" else anatomy.kept_linear
    if head != "gap" and pool == "gap" and old is not None and num_classes in (None, old.out_features):
        return old
    classifier = nn.Linear(channels, num_classes or anatomy.logits.shape[1])
    FILLERS[filler](classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier
