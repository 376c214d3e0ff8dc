"""The options of a fine-tuning in their groups, with their defaults: what ``CAMFineTuner`` is told.

Every option has one name. It stands in its group (``optimization=OptimizationOptions(momentum=0.8)``, in a config
``model: {optimization: {momentum: 0.8}}``); ``CAMFineTuner`` and ``train.py`` also take it by its name alone
(``momentum=0.8``, ``--model.momentum 0.8``). To add one: give it a field, here, in the group that it belongs to.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

from ..conversion import FineTuning, Recipe, find_recipe, settle_fine_tuning, settle_head
from ..errors import ConfigError
from ..preprocessing import LARGEST_SIDE

__all__ = [
    "FLAT",
    "GROUPS",
    "GROUP_OF",
    "AugmentationOptions",
    "CacheOptions",
    "ConversionOptions",
    "FineTuningOptions",
    "LossOptions",
    "MetricsOptions",
    "OptimizationOptions",
    "put_into_groups",
]

_DROPOUT, _SMOOTHING = 0.5, 0.05
"""Of a new head, where no recipe says otherwise."""
_LINEAR_FACTOR = 30.0
"""``head_lr_factor`` of AdamW where the classifier alone is new."""

DECIDED_LATER: Any = None
"""Of an option that was not given: by the recipe, else by camify's defaults (``FineTuning``)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _refuse(complaints: Iterable[str]) -> None:
    """Refuse options by all that is wrong with them, not by the first alone."""
    text = " ".join(complaints)
    _require(not text, text)


def _choices(options: Any, **choices: tuple[str | None, ...]) -> Iterator[str]:
    """What is wrong with options that are one of several words."""
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value not in allowed:
            yield f"{name}={value!r} is unknown. Choose {' or '.join(map(str, filter(None, allowed)))}."


def _numbers(options: Any, **ranges: str) -> Iterator[str]:
    """What is wrong with options that are numbers: none at all, not finite, or out of their range."""
    plain = [option.name for option in fields(options) if type(option.default) in (int, float)]
    for name in dict.fromkeys((*ranges, *plain)):
        value = getattr(options, name)
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) and name in _OF_SIDES else [value]
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
            yield f"{name}={value!r} must be a number."
        elif not all(math.isfinite(one) and _RANGES[ranges.get(name, "")](one) for one in values):
            yield f"{name}={value} must {ranges.get(name, 'be finite')}."


_OF_SIDES = ("input_size", "head_channels")  # options that may be several numbers
_RANGES: Mapping[str, Callable[[float], bool]] = {
    "": math.isfinite,
    "be positive": lambda value: value > 0,
    "not be negative": lambda value: value >= 0,
    "be positive, or 0: not negative": lambda value: value >= 0,
    "be in [0, 1]": lambda value: 0 <= value <= 1,
    "be in [0, 1)": lambda value: 0 <= value < 1,
    "be in (0, 1]": lambda value: 0 < value <= 1,
    "be a whole number of at least 1": lambda value: value >= 1 and value == int(value),
    "be a whole number of at least 0": lambda value: value >= 0 and value == int(value),
    f"be whole numbers of 1 to {LARGEST_SIDE} pixels": lambda value: 1 <= value <= LARGEST_SIDE and value == int(value),
}


@dataclass(frozen=True)
class ConversionOptions:
    """How a legacy network becomes CAM-ready, and how its classifier starts; see ``camify.convert``.

    Args:
        head: ``"gap"`` (default), ``"direct"``, ``"recast"``, or ``"none"`` to train a legacy network as it is,
            without maps.
        pool: ``"gap"`` (default), ``"gmp"``, ``"lse"`` or ``"tap"`` (thresholded average, Bae et al. 2020).
        head_channels: widths of the new convolutions (``head="gap"``); None takes the published ones.
        dropout: between pooling and classifier; default 0.5, and 0 with ``head="recast"``.
        init: how the classifier starts: ``"random"`` (default), as the conversion draws it; ``"ridge"``: fitted in
            closed form, before the first step, to the legacy's logits where its classes are the data's, else to the
            labels (see ``camify.fit_head``); ``"recast"``: the old head at every position (``head="recast"``).
        map_stride: pixels per cell of a finer map (strides become dilations); None keeps the legacy's.
        input_size: side of the input at which the conversion is proven, pixels, or (height, width); None: what the
            weights expect, else 224.
        preprocessing: what the weights expect, where the source does not know: ``"imagenet"``, ``"0..1"``,
            ``"0..255"``, ``"tf"``, ``"caffe"``, or fields of ``Preprocessing`` (see ``camify.convert``).
        legacy_class_names: the legacy network's classes in order, where its source does not know them. Where nothing
            names them and there are as many as in the data, its accuracy on training labels is measured first, and it
            is believed to know the data's classes (as a teacher, for ``init="ridge"``, for kept rows) only where that
            is well above chance.

    Raises:
        ConfigError: ``init`` contradicts ``head``.
    """

    head: Literal["gap", "direct", "recast", "none"] = DECIDED_LATER
    pool: Literal["gap", "gmp", "lse", "tap"] = DECIDED_LATER
    head_channels: int | list[int] | None = None
    dropout: float = DECIDED_LATER
    init: Literal["random", "ridge", "recast"] = DECIDED_LATER
    map_stride: int | None = None
    input_size: int | tuple[int, int] | None = None
    preprocessing: str | dict[str, Any] | None = None
    legacy_class_names: list[str] | None = None

    def __post_init__(self) -> None:
        sides, count = f"be whole numbers of 1 to {LARGEST_SIDE} pixels", "be a whole number of at least 1"
        _refuse([
            *_choices(self, init=(None, "random", "ridge", "recast")),
            *_numbers(self, dropout="be in [0, 1)", input_size=sides, map_stride=count, head_channels=count),
        ])  # fmt: skip
        _require(
            self.init != "recast" or self.head in (None, "recast"),
            f"init='recast' keeps the old head, head={self.head!r} does not. Leave one of them out.",
        )
        _require(
            self.init != "random" or self.head != "recast",
            "head='recast' keeps the old head, init='random' does not. Leave one of them out.",
        )

    def settled(self, recipe: Recipe | None) -> ConversionOptions:
        """These options; where the recipe or camify's defaults decide, with what they say."""
        conversion_options = {name: getattr(self, name) for name in ("pool", "dropout", "head_channels", "map_stride")}
        settled = settle_head(recipe, {"head": "recast" if self.init == "recast" else self.head, **conversion_options})
        recast = settled["head"] == "recast"
        if conversion_options["dropout"] is None and recipe is None and settled["head"] in ("gap", "direct"):
            settled["dropout"] = _DROPOUT
        return replace(self, **settled, **({} if self.init else {"init": "recast" if recast else "random"}))


@dataclass(frozen=True)
class OptimizationOptions:
    """How the weights learn. Where an option is None the recipe decides, else the default named here.

    Args:
        optimizer: ``"adamw"`` (default) or ``"sgd"``.
        lr: peak learning rate of the legacy's features; default 1e-4, with ``"sgd"`` 1e-3.
        head_lr_factor: the new head learns this much faster; default 10, as in wsolevaluation; 30 where a classifier
            alone is new (``head="direct"``) and the optimizer is AdamW.
        fast_layers: layers of the features, by name, that learn at the head's rate; default none.
        bias_lr_factor: biases learn this much faster; default 1.
        layer_decay: the rate of each layer of the features is this factor of the next one's; 1 is off.
        momentum: of SGD; default 0.9.
        nesterov: Nesterov's momentum; default true.
        weight_decay: of all weights; default 0.01, with ``"sgd"`` 5e-4.
        decay_biases: whether biases decay as the weights do; default true.
        schedule: ``"cosine"`` (default), ``"step"`` or ``"one_cycle"`` (which has its own warm-up).
        lr_drops: with ``"step"``, the fractions of the training after which rates are tenfold less.
        warmup_epochs: linear rise of each group's learning rate after its start, before the schedule; default 0.5.
        freeze_epochs: epochs in which the features stay as they are and no gradient of them is computed. None decides
            when the run starts and says why: all epochs for pretrained features and at most 5,000 training images, on
            which a new head was as right as fine-tuning everything; else 1. See ``camify.training.plan``.
        gradient_clip: largest norm of a step's gradient, longer ones are scaled down to it; default 10, which few
            steps of networks with batch norm reach, while others diverge without it; 0 is off, as it is in published
            recipes. ``Trainer(gradient_clip_val=...)`` goes before.
        channels_last: weights in that memory format; what runs through them follows.
        compile: let ``torch.compile`` compile the features.

    Raises:
        ConfigError: names the option.
    """

    optimizer: Literal["sgd", "adamw"] = DECIDED_LATER
    lr: float = DECIDED_LATER
    head_lr_factor: float = DECIDED_LATER
    fast_layers: list[str] = DECIDED_LATER
    bias_lr_factor: float = DECIDED_LATER
    layer_decay: float = 1.0
    momentum: float = DECIDED_LATER
    nesterov: bool = DECIDED_LATER
    weight_decay: float = DECIDED_LATER
    decay_biases: bool = DECIDED_LATER
    schedule: Literal["cosine", "step", "one_cycle"] = DECIDED_LATER
    lr_drops: list[float] = DECIDED_LATER
    warmup_epochs: float = DECIDED_LATER
    freeze_epochs: int = DECIDED_LATER
    gradient_clip: float = DECIDED_LATER
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("lr", "head_lr_factor", "bias_lr_factor"), "be positive")
        rates |= dict.fromkeys(("weight_decay", "warmup_epochs", "gradient_clip"), "not be negative")
        whole = "be a whole number of at least 0"
        _refuse([
            *_choices(self, optimizer=(None, "sgd", "adamw"), schedule=(None, "cosine", "step", "one_cycle")),
            *_numbers(self, **rates, momentum="be in [0, 1)", layer_decay="be in (0, 1]", freeze_epochs=whole),
        ])  # fmt: skip
        _require(
            not (self.nesterov and self.optimizer == "sgd" and self.momentum == 0),
            "nesterov=True needs a momentum. Give momentum, or nesterov=False.",
        )

    def settled(self, recipe: Recipe | None, head: str = "gap") -> OptimizationOptions:
        """These options; where the recipe or camify's defaults decide, with what they say.

        ``freeze_epochs`` may stay None: then the run decides. ``head`` is the settled one.

        Raises:
            ConfigError: what was given and what was decided contradict each other.
        """
        given = vars(self)
        options = replace(self, **settle_fine_tuning(recipe, given))
        if given["head_lr_factor"] is None and recipe is None and head == "direct" and options.optimizer == "adamw":
            options = replace(options, head_lr_factor=_LINEAR_FACTOR)
        own = FineTuning()
        _require(
            options.optimizer == "sgd" or (options.momentum, options.nesterov) == (own.momentum, own.nesterov),
            f"momentum={options.momentum}, nesterov={options.nesterov}: they are of SGD, AdamW has none. Give"
            " optimizer='sgd' too, or leave them out.",
        )
        drops = options.lr_drops or []
        _require(
            all(0 < drop < 1 for drop in drops) and bool(drops) == (options.schedule == "step"),
            f"lr_drops={drops} with schedule={options.schedule!r}: give schedule='step' and fractions of the training"
            " in (0, 1), or another schedule and none.",
        )
        return options


MAP_TERMS = ("box_weight", "align_weight", "equivariance_weight")
"""The weights of the terms of the loss that look at maps."""


@dataclass(frozen=True)
class LossOptions:
    """What is learned: the meaning of labels and logits, and the terms of the loss.

    Args:
        task: ``"multiclass"``: labels (N,), cross-entropy, ``val/acc``; ``"multilabel"``: labels (N, K) in [0, 1],
            binary cross-entropy, ``val/map``; ``"binary"``: a network of one logit, labels (N,) of 0 and 1, binary
            cross-entropy, ``val/acc``; its class names are two: negative, positive. None: what the network says, else
            by the number of its logits. The checkpoint keeps it.
        allow_unknown_labels: -1 and NaN stand for labels that are not known (multilabel and binary); they count neither
            in the loss nor in the figures. Else they are refused.
        label_smoothing: of the cross-entropy, in [0, 1); default 0.05, with a recipe 0.
        class_weights: of the classes in the loss, or ``"balanced"``: each class counts the same.
        teacher: ``"legacy"``: the legacy network's logits are a second target (Hinton et al. 2015).
        teacher_weight: of that target in the loss, in [0, 1]; the labels have the rest.
        teacher_temperature: softens both distributions.
        box_weight: of the guidance by boxes or masks, for the training images that have them: one minus the share of
            the true class's positive evidence that lies on the object (Rao et al. 2023), evidence relative to the
            mean of all classes; 0 is off.
        align_weight: of the alignment of directions: the features of strong cells are to point where the true class's
            weights point, those of weak cells elsewhere (Kim et al. 2022, there 0.5); 0 is off.
        equivariance_weight: of the difference between the true class's map of the mirrored, smaller image and the
            mirrored map (Wang et al. 2020, there 1); one more forward of that size; 0 is off.
        equivariance_scale: sides of that image as a share of the image's, in (0, 1]; 1 mirrors only.

    Raises:
        ConfigError: names the option.
    """

    task: Literal["multiclass", "multilabel", "binary"] | None = None
    allow_unknown_labels: bool = False
    label_smoothing: float = DECIDED_LATER
    class_weights: list[float] | Literal["balanced"] | None = None
    teacher: Literal["legacy"] | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0
    box_weight: float = 0.0
    align_weight: float = 0.0
    equivariance_weight: float = 0.0
    equivariance_scale: float = 0.5

    def __post_init__(self) -> None:
        tasks, shares = (None, "multiclass", "multilabel", "binary"), {"teacher_weight": "be in [0, 1]"}
        ranges = {
            "label_smoothing": "be in [0, 1)",
            "teacher_temperature": "be positive",
            "equivariance_scale": "be in (0, 1]",
        } | dict.fromkeys(MAP_TERMS, "be positive, or 0: not negative")
        _refuse([*_choices(self, task=tasks, teacher=(None, "legacy")), *_numbers(self, **ranges, **shares)])
        weights = self.class_weights
        _require(
            not isinstance(weights, str) or weights == "balanced",
            f"class_weights={weights!r}: give a list of numbers, or 'balanced'.",
        )

    def settled(self, recipe: Recipe | None) -> LossOptions:
        """These options; where the recipe or camify's defaults decide, with what they say."""
        smoothing = self.label_smoothing
        return replace(
            self, label_smoothing=(_SMOOTHING if recipe is None else 0.0) if smoothing is None else smoothing
        )


@dataclass(frozen=True)
class AugmentationOptions:
    """What is changed in training, of images and of features, so that the maps cover more of the object.

    What the data module does to images (crops, flips, colors) is its own option.

    Args:
        hide_and_seek: probability that a cell of an image is hidden (Singh & Lee 2017, there 0.5); 0 is off.
        cutmix: both parameters of the Beta distribution of the pasted area (Yun et al. 2019, there 1); 0 is off.
        adl_layers: layers of the features behind which the most attended cells are dropped (Choe & Shim 2019).
        adl_drop_rate: how often they are dropped; else cells are weighed by their attention.
        adl_gamma: share of the largest attention from which on a cell is dropped.

    Raises:
        ConfigError: names the option.
    """

    hide_and_seek: float = 0.0
    cutmix: float = 0.0
    adl_layers: list[str] | None = None
    adl_drop_rate: float = 0.75
    adl_gamma: float = 0.9

    def __post_init__(self) -> None:
        shares = {"hide_and_seek": "be in [0, 1)", "adl_drop_rate": "be in [0, 1]", "adl_gamma": "be in [0, 1]"}
        _refuse(_numbers(self, cutmix="not be negative", **shares))


@dataclass(frozen=True)
class CacheOptions:
    """The features of frozen epochs, computed once and kept.

    Args:
        feature_cache: where they are kept: ``"memory"``, ``"disk"`` or ``"off"``. ``"auto"``: in memory, where the
            features stay frozen in all epochs, fit, and images change by nothing but being mirrored; each image is then
            kept with its mirror image, and every epoch draws one of the two.
        feature_cache_gb: the most that they may take, 10^9 bytes; on the CPU those of validation images as much again.
        cached_views: draws of the augmentation that are kept of every image; None: the augmentation has no chance.

    Raises:
        ConfigError: names the option.
    """

    feature_cache: Literal["auto", "off", "memory", "disk"] = "auto"
    feature_cache_gb: float = 4.0
    cached_views: int | None = None

    def __post_init__(self) -> None:
        cached = {"feature_cache_gb": "be positive", "cached_views": "be a whole number of at least 1"}
        _refuse([*_choices(self, feature_cache=("auto", "off", "memory", "disk")), *_numbers(self, **cached)])
        views = self.cached_views
        _require(
            views is None or self.feature_cache != "off",
            f"cached_views={views} needs feature_cache memory or disk.",
        )


@dataclass(frozen=True)
class MetricsOptions:
    """Which maps are measured in validation, and by what.

    Args:
        cam_metrics: CAM metrics of validation by name (``camify.training.CAM_METRICS``); None: the default ones (see
            ``CAMFineTuner``). Those of masked images cost a forward more, ``insertion_auc`` and ``deletion_auc`` 17.
        grid_mosaics: mosaics that ``grid_pointing`` looks at, four forwards each.
        normalizer: of the maps whose boxes are measured: ``"minmax"``, ``"max"``, ``"pas"`` or ``"ivr"`` (see
            ``camify.normalizers``).
        percentile: of ``"pas"`` and ``"ivr"``; None takes the published 90 and 45.
        clamp_weights: maps from the positive weights of the classifier only (Bae et al. 2020); logits stay.
    """

    cam_metrics: list[str] | None = None
    grid_mosaics: int = 16
    normalizer: Literal["minmax", "max", "pas", "ivr"] = "minmax"
    percentile: float | None = None
    clamp_weights: bool = False

    def __post_init__(self) -> None:
        _refuse(_numbers(self, grid_mosaics="be positive", percentile="be positive"))


@dataclass(frozen=True)
class FineTuningOptions:
    """All options of a fine-tuning, settled: no option waits for the recipe any more.

    Attributes:
        recipe: a published network by name, or None.
    """

    recipe: str | None = None
    conversion: ConversionOptions = field(default_factory=ConversionOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)

    def __post_init__(self) -> None:
        changed = [name for name in ("cutmix", "hide_and_seek") if getattr(self.augmentation, name)]
        cached = self.cache.feature_cache in ("memory", "disk")
        map_terms = [name for name in MAP_TERMS if getattr(self.loss, name)]
        _require(
            not (map_terms and self.augmentation.cutmix),
            f"{' and '.join(map_terms)} with cutmix: an image that holds a patch of another has not one object and one"
            " class, whose map could be judged. Leave one of them out.",
        )
        _require(
            not (cached and changed),
            f"feature_cache with {' and '.join(changed)}: images change in every step. Leave one of them out.",
        )
        _require(
            not (cached and self.loss.equivariance_weight),
            "equivariance_weight with feature_cache: it looks at the images once more, smaller and mirrored, and cached"
            " features have none. Leave one of them out.",
        )
        _require(
            not cached or self.optimization.freeze_epochs != 0,
            "feature_cache needs freeze_epochs: features that learn cannot be kept.",
        )
        of_maps = (map_terms, self.augmentation.adl_layers, self.metrics.clamp_weights, cached, self.loss.teacher)
        _require(
            self.conversion.head != "none" or not any(of_maps),
            "head='none' trains a network without maps: options of maps, cache and teacher do not apply.",
        )

    @classmethod
    def of(cls, recipe: str | None, groups: Mapping[str, Any], by_name: Mapping[str, Any]) -> FineTuningOptions:
        """The options of these groups and those given by their names alone, settled by the recipe.

        Args:
            recipe: of a published network, or None.
            groups: by name of the group its options, as their class or as a mapping.
            by_name: options by their own names (see ``put_into_groups``).

        Raises:
            ConfigError: an option is unknown, is given twice with two values, or cannot be.
            ConversionError: no recipe has that name, or an option contradicts it.
        """
        published = find_recipe(recipe)
        nested = {name: _options_of(name, group) for name, group in groups.items()}
        made_groups = _all_made(
            {name: partial(GROUPS[name], **g) for name, g in put_into_groups(by_name, nested).items()}
        )
        made_groups |= {name: made_groups[name].settled(published) for name in ("conversion", "loss")}
        made_groups["optimization"] = made_groups["optimization"].settled(published, made_groups["conversion"].head)
        return cls(recipe, **made_groups)

    def by_name(self) -> dict[str, Any]:
        """Every option by its own name, plain values."""
        return {name: value for group in GROUPS for name, value in asdict(getattr(self, group)).items()}


GROUPS: Mapping[str, type] = {
    "conversion": ConversionOptions,
    "optimization": OptimizationOptions,
    "loss": LossOptions,
    "augmentation": AugmentationOptions,
    "cache": CacheOptions,
    "metrics": MetricsOptions,
}
"""The groups by the names of ``CAMFineTuner``'s arguments."""

FLAT = (
    "head", "init", "input_size", "optimizer", "lr", "head_lr_factor", "weight_decay", "freeze_epochs", "task",
    "cam_metrics",
)  # fmt: skip
"""The options that people set most: arguments of ``CAMFineTuner`` of their own, beside their groups."""

GROUP_OF = {option.name: name for name, group in GROUPS.items() for option in fields(group)}
"""The group of every option."""

_DEFAULTS = {option.name: option.default for group in GROUPS.values() for option in fields(group)}


def put_into_groups(by_name: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options of these groups, and those that are given by their own names in the group of each.

    Of those in ``FLAT`` None says that it was not given.

    Raises:
        ConfigError: there is no such option or group, or it has two values: by its name, and in its group.
    """
    _refuse_unknown(by_name, GROUP_OF, "no option")
    _refuse_unknown(groups, GROUPS, "no group of options")
    for name, group in groups.items():
        _refuse_unknown(group, [option.name for option in fields(GROUPS[name])], f"in {name} no option")
    merged = {name: dict(options) for name, options in groups.items()}
    for name, value in by_name.items():
        if value is None and name in FLAT:
            continue
        options = merged.setdefault(GROUP_OF[name], {})
        other = options.get(name, _DEFAULTS[name])
        if other not in (value, _DEFAULTS[name]):
            raise ConfigError(f"{name} is given twice: {value!r}, and {other!r} in {GROUP_OF[name]}. Give one of them.")
        options[name] = value
    return merged


def _all_made(groups: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Every group; of several that cannot be made, what is wrong with all of them."""
    made_groups, complaints = {}, []
    for name, make in groups.items():
        try:
            made_groups[name] = make()
        except ConfigError as error:  # noqa: PERF203 - six at most
            complaints.append(str(error))
    _refuse(complaints)
    return made_groups


def _options_of(name: str, group: Any) -> dict[str, Any]:
    if isinstance(group, Mapping):
        return dict(group)
    kind = GROUPS[name]
    _require(isinstance(group, kind), f"{name}={group!r}: give {kind.__name__}, or a dict of its options.")
    return dict(vars(group))


def _refuse_unknown(given: Iterable[str], known: Collection[str], lacks: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"CAMFineTuner has {lacks} {name!r}.{f' Did you mean {close[0]}?' if close else ''}")
