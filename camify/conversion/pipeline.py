"""Conversion: any classifier becomes a CAMNet, and proves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from ..eval_mode import full_precision
from ..graphs import FeaturesCopy, NetworkAnalysis, TracedAnalysis, analyze
from ..graphs.map_stride import set_map_stride
from ..model import CAMNet
from ..pooling import POOLS
from ..preprocessing import Preprocessing
from ..sources import Source, source_of
from ..task import Task
from .chance import note_of_chance
from .class_rows import check_names, draw_classifier, match_rows, put_rows, select_classes
from .geometry import apply_changes, cut_after
from .input_format import INPUT_FORMATS, adapt_input, describe_input
from .new_layers import Conv3x3, NewLayer, append_layers
from .plain_weights import with_plain_weights
from .proof import certify
from .published_recipes import default_convs, find_recipe
from .recast import Recast, recast_head
from .recipes import Recipe, settle_head

__all__ = ["HEADS", "convert"]

HEADS = ("gap", "direct", "recast")


class _Default(str):
    """A default, which can be told from the same word as the user's wish."""

    __slots__ = ()


_GAP = _Default("gap")


@full_precision()
def convert(
    model: nn.Module | str | Source,
    *,
    head: str | None = _GAP,
    num_classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    example: Tensor | None = None,
    pool: str | None = _GAP,
    map_stride: int | None = None,
    recipe: str | None = None,
    seed: int | None = None,
    head_channels: int | Sequence[int] | None = None,
    dropout: float | None = None,
    class_names: Sequence[str] | None = None,
    legacy_class_names: Sequence[str] | None = None,
    input_format: str = "rgb",
    task: str | Task | None = None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
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
        model: a network, or a source such as ``"torchvision/vgg16"`` (see ``camify.conversion.resolve``); what is known
            of the source's classes and preprocessing goes into the CAMNet.
        head: ``"gap"``, ``"direct"`` or ``"recast"``; a recipe's own where it has one.
        num_classes: None keeps the legacy's number.
        input_size: height and width at which the network is run and proven, pixels; None: what its weights expect,
            else 224. The CAMNet's preprocessing stays the weights' own.
        example: images (N, C, H, W) to run instead of noise.
        pool: ``"gap"``, ``"gmp"``, ``"lse"`` or ``"tap"``; a recipe's own where it has one. Only GAP has the identity.
        map_stride: pixels per cell of the map, smaller than the legacy's: strides become dilations, the weights stay.
        recipe: a published network by name (``camify.conversion.RECIPES``): where the features end, strides, new
            layers, their first weights, pooling and dropout. Options that contradict it are refused.
        seed: for the new layers; None draws from torch's global generator.
        head_channels: widths of the new 3x3 convolutions; None takes 1024, for an AlexNet 512 and 512.
        dropout: between pooling and classifier while training; None: the recipe's, else 0.
        class_names: the new classes in order, instead of ``num_classes``. Where the old classifier is kept
            (``"direct"`` on a head that is linear after pooling, ``"recast"``) and the legacy's names are known, the
            rows of classes that it has are kept bit for bit, in the new order; the others are drawn. Names match
            exactly, or else without regard to case and with space, ``_`` and ``-`` taken for the same, where that
            leaves one reading only. Where the legacy's names are not known, as many classes are taken for the same.
        legacy_class_names: the legacy's classes in order, where the source does not know them.
        input_format: what the classifier takes: ``"rgb"``, ``"bgr"``, ``"caffe"`` (BGR in 0..255 minus 104, 117, 123);
            the CAMNet takes RGB. ``"grayscale"``: the CAMNet takes one channel. See ``camify.conversion.input_format``.
        task: what the logits mean: ``"multiclass"``, ``"multilabel"`` or ``"binary"`` (one logit, with one class name
            or two: negative, positive). None: what is known of the weights, else what a last softmax or sigmoid says
            (which is taken off), else by the number of logits ``binary`` or ``multiclass``; an assumption is noted.
        preprocessing: what the weights expect, where the source does not know: a name of
            ``camify.preprocessing.NORMALIZATIONS`` (``"imagenet"``, ``"0..1"``, ``"0..255"``, ``"tf"``, ``"caffe"``),
            or some of the fields of ``Preprocessing``. It goes before what the source says.

    Raises:
        ConversionError: the network or an option cannot be used; says which layer, why and what to do.
    """
    source = source_of(model).prepared(preprocessing)
    source.require_gradients("it cannot be converted")
    size = input_size if input_size is not None else source.size
    source = _adapted(source, input_format, size, example)
    model, note_of_weights = with_plain_weights(source.model)
    if class_names is not None:
        check_names(class_names, "class_names")
    if _only_other_classes(source, head, class_names, map_stride, recipe, pool):
        return select_classes(model, class_names, seed=seed)  # type: ignore[arg-type]
    plan = find_recipe(recipe)
    head, pool = (None if option is _GAP else option for option in (head, pool))  # a default is nobody's wish
    head_options = {
        "head": head,
        "pool": pool,
        "dropout": dropout,
        "head_channels": head_channels,
        "map_stride": map_stride,
    }
    head, pool, dropout = settle_head(plan, head_options).values()
    _check_options(head, num_classes, pool, map_stride, dropout)
    if head == "recast":
        source.require_head("head='recast'")
    source.require_layers("it cannot be converted")
    analysis = _follow(plan, analyze(model, size, example))
    num_classes = _count_names(num_classes, class_names, task, analysis.logits.shape[1])
    analysis.notes += [*source.notes, *([note_of_weights] if note_of_weights else [])]
    names = None if source.headless else _legacy_names(source, legacy_class_names, analysis.logits.shape[1])
    wants_rows = names is not None and class_names is not None and len(class_names) == num_classes
    rows = match_rows(names, class_names) if wants_rows else None  # type: ignore[arg-type]
    kept_classes = None if rows is not None and _keeps_rows(analysis, head, pool) else num_classes
    if analysis.spread.chance and head == "recast":
        note_of_chance(analysis, analysis.copy_features().features, head_stays=True)
    recast = _recast(analysis, pool, kept_classes) if head == "recast" else None
    copied = _copy_features(analysis, recast, plan, map_stride)
    _check_features(source, copied.layers)
    if source.headless and num_classes is None:
        count = analysis.logits.shape[1]
        analysis.notes.append(f"The weights have no classes; the architecture's number of them is assumed: {count}.")
    filler = plan.classifier if plan is not None else "gaussian"
    with torch.random.fork_rng(enabled=seed is not None, devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        layers = _new_layers(plan, head, head_channels, copied.features)
        channels = analysis.feature_shape[0]
        features, new_layers = append_layers(copied.features, channels, layers)
        width = [channels, *(layer.channels for layer in layers if isinstance(layer, Conv3x3))][-1]
        keeps = not source.headless
        old_classifier = (
            recast.classifier if recast else _old_classifier(analysis, head, pool, kept_classes) if keeps else None
        )
        classifier = old_classifier or draw_classifier(width, num_classes or analysis.logits.shape[1], filler)
        renew = rows is not None and kept_classes is None and rows != list(range(classifier.out_features))
        new_classifier = (
            draw_classifier(classifier.in_features, len(rows), filler) if rows is not None and renew else None
        )
    net = CAMNet(features, classifier, pool=pool, dropout=dropout, head_layers=new_layers)
    net.to(analysis.images)
    for module in net.modules():
        module.training = copied.modes.get(module, model.training)
    if analysis.spread.chance:
        analysis.notes.append(note_of_chance(analysis, net.features, head_stays=bool(recast or old_classifier)))
    finer = map_stride is not None or bool(plan and plan.changes)
    net.certificate = certify(net, analysis, source.name, head, copied.layers, recast, finer=finer)
    drawn_layers = (
        name for name in new_layers if next(net.features.get_submodule(name).parameters(), None) is not None
    )
    net.untrained = (*drawn_layers, *(() if old_classifier else ("classifier",)))
    if rows is not None and new_classifier is not None:
        put_rows(net, new_classifier, rows, analysis.images)
    net.to(next(model.parameters()))
    kept_names = class_names if class_names is not None else names if num_classes is None else None
    net.class_names = None if kept_names is None else list(kept_names)
    net.preprocessing = source.preprocessing
    _settle_task(net, task, source, analysis)
    net.license, net.recipe = source.license, recipe
    return net


def _adapted(source: Source, input_format: str, input_size: int | tuple[int, int], example: Tensor | None) -> Source:
    """The source with its network as one that takes RGB or gray images, which is checked on noise."""
    if input_format not in INPUT_FORMATS:
        raise ConversionError(f"input_format={input_format!r} is unknown. Choose one of {', '.join(INPUT_FORMATS)}.")
    if input_format == "rgb":
        return source
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    height, width = size if example is None else (example.shape[-2], example.shape[-1])
    options, preprocessing, note = describe_input(input_format, (height, width), source.preprocessing)
    noise = torch.randn(2, options.get("channels", 3), height, width, generator=torch.Generator().manual_seed(0))
    model = adapt_input(source.model, example=noise, **options)
    return replace(source, model=model, preprocessing=preprocessing, notes=(*source.notes, note))


def _only_other_classes(
    source: Source, head: str | None, class_names: Sequence[str] | None, map_stride: int | None, recipe: str | None,
    pool: str | None,
) -> bool:  # fmt: skip
    """Whether a CAMNet is asked for other classes and nothing else: then only its last layer is worked on."""
    model = source.model
    both_named = isinstance(model, CAMNet) and source.class_names is not None and class_names is not None
    alone = head == "direct" and map_stride is None and recipe is None
    return both_named and alone and pool in (None, "gap", getattr(model, "pool_name", None))


def _settle_task(net: CAMNet, task: str | Task | None, source: Source, analysis: NetworkAnalysis) -> None:
    """The task as asked for, else as the source or the last activation says; what is assumed is noted."""
    known_task = source.task or analysis.task
    if task is None and known_task is not None and (known_task is Task.BINARY) == (net.num_classes == 1):
        task = known_task
    net.task = task
    if not net.task_is_known and net.certificate is not None:
        note = "Task multiclass assumed: one class per image. For several labels per image give task='multilabel'."
        net.certificate = replace(net.certificate, notes=(*net.certificate.notes, note))


def _count_names(
    num_classes: int | None, class_names: Sequence[str] | None, task: str | Task | None, logits: int
) -> int | None:
    """The number of logits that are wanted, or None; of one logit two names are its two sides."""
    if class_names is None:
        return num_classes
    one_logit = task == Task.BINARY or (task is None and logits == 1 and num_classes in (None, 1))
    if one_logit and len(class_names) in (1, 2):
        return 1
    if num_classes not in (None, len(class_names)):
        raise ConversionError(f"num_classes={num_classes}, but class_names has {len(class_names)}. Leave one out.")
    return len(class_names)


def _legacy_names(source: Source, given_names: Sequence[str] | None, classes: int) -> list[str] | None:
    """The names of the legacy's classes, where they are known."""
    if given_names is not None and len(given_names) != classes:
        raise ConversionError(f"legacy_class_names: {len(given_names)} names for a network of {classes} classes.")
    names = source.class_names if given_names is None else given_names
    return list(names) if names is not None and len(names) == classes else None


def _keeps_rows(analysis: NetworkAnalysis, head: str, pool: str) -> bool:
    """Whether the old classifier's rows are those of the new one."""
    return head == "recast" or (head == "direct" and pool == "gap" and analysis.kept_linear is not None)


def _check_features(source: Source, layers: Sequence[str]) -> None:
    """Refuse weights of the features alone that leave a layer of the features random."""
    random = [
        key for key in source.missing_head if any(key == layer or key.startswith(f"{layer}.") for layer in layers)
    ]
    if random:
        raise ConversionError(
            f"{source.name}: the weights lack {', '.join(random[:4])}, which the network uses before its last spatial"
            " map. Give a file that holds them."
        )


def _copy_features(
    analysis: NetworkAnalysis, recast: Recast | None, plan: Recipe | None, map_stride: int | None
) -> FeaturesCopy:
    """The features with the geometry that is wanted."""
    copied = recast.copy_features() if recast else analysis.copy_features()
    if plan is not None:
        copied = replace(copied, features=apply_changes(copied.features, plan.changes))
    if map_stride is not None:
        analysis.notes.append(set_map_stride(copied.features.eval(), map_stride, analysis.images))
    return copied


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and value is not True and int(value) >= 1


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
    if num_classes is not None and not _is_count(num_classes):
        raise ConversionError(f"num_classes={num_classes!r}: must be at least 1, and a whole number.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConversionError(f"dropout={dropout!r}: must be in [0, 1).")


def _follow(recipe: Recipe | None, analysis: NetworkAnalysis) -> NetworkAnalysis:
    """The analysis as a recipe cuts it; a network of another family is refused."""
    if recipe is None:
        return analysis
    if not isinstance(analysis, TracedAnalysis):
        raise ConversionError(f"recipe={recipe.name!r}: torch.fx cannot trace the network. Leave the recipe None.")
    recipe.check(analysis.network)
    if recipe.cut_after is not None:
        analysis = cut_after(analysis, recipe.cut_after)
    analysis.notes += recipe.notes()
    return analysis


def _recast(analysis: NetworkAnalysis, pool: str, num_classes: int | None) -> Recast | None:
    """The recast head; None where the old one is linear after pooling and is kept as it is."""
    if pool != "gap":
        raise ConversionError(f"head='recast' keeps the old head, which was not made for pool={pool!r}. Use 'gap'.")
    classes = analysis.logits.shape[1]
    if num_classes not in (None, classes):
        raise ConversionError(
            f"head='recast' keeps the {classes} classes; num_classes={num_classes} does not. To keep some of them, name"
            " them: class_names=, and legacy_class_names= where the source does not know its own."
        )
    return recast_head(analysis) if analysis.linear is None else None


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
    widths = tuple(head_channels) if isinstance(head_channels, list | tuple) else (head_channels,)
    if not widths or not all(map(_is_count, widths)):
        raise ConversionError(f"head_channels={head_channels!r}: every width must be at least 1, and a whole number.")
    return tuple(map(Conv3x3, widths))


def _old_classifier(analysis: NetworkAnalysis, head: str, pool: str, num_classes: int | None) -> nn.Linear | None:
    """The old linear head where it stays valid."""
    old = analysis.linear if head == "recast" else analysis.kept_linear
    stays = head != "gap" and pool == "gap" and old is not None and num_classes in (None, old.out_features)
    return old if stays else None
