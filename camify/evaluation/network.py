"""A network with the explanation methods that are asked of it: what its logits mean, and which rule cuts its boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..box_features import box_features
from ..boxes import DEFAULT_RULE, BoxRule
from ..errors import ConfigError, ConversionError
from ..maps import map_weight, upsample
from ..methods import AUGMENTATIONS, ForwardPass, Method, check_augmentations, make_methods, observe
from ..methods.cam import CAM
from ..methods.explanation import require_forward_only
from ..methods.feature_split import Split
from ..methods.forward_pass import unwrapped
from ..model import CAMNet
from ..preprocessing import Preprocessing
from ..ranks import ONE, Ranks
from ..sources import Source, resolve
from ..task import Classes, Task
from .class_names import read_class_names

__all__ = [
    "ExplainedNetwork", "box_maps", "box_rules", "explained_network", "find_networks", "placed_on", "shared_titles",
    "short_names", "usable_device",
]  # fmt: skip


@dataclass
class ExplainedNetwork:
    """A network that is explained or measured.

    Attributes:
        name: short; no other network of a comparison has it.
        source: what it was named as.
        model: the network.
        preprocessing: how an image becomes its input.
        methods: by name, those asked of it.
        classes: what its logits mean, and the names as far as they are known.
        class_count: K, number of classes; 2 of a network of one logit.
        layer: name of the module whose map is explained, or of several; None is the last spatial map.
        options: of the methods.
        augmentations: of the methods: what their maps are the mean over.
        notes: what has to be said about it.
        unserved: methods that it cannot serve, and why; filled when they are tried.
        parts: the network as it is cut at the layer, where something else runs a part of it.
    """

    name: str
    source: str
    model: nn.Module
    preprocessing: Preprocessing
    methods: dict[str, Method]
    classes: Classes
    class_count: int
    layer: str | Sequence[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    augmentations: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    unserved: dict[str, str] = field(default_factory=dict)
    parts: Split | None = None

    @property
    def titles(self) -> list[str]:
        """A name for each of the K classes, also where none is known."""
        return self.classes.titles(self.class_count)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many names it may have: one for each class; of one logit also its alone."""
        return (2, 1) if self.classes.task is Task.BINARY else (self.class_count,)

    def name_classes(self, file: str | Path | None) -> None:
        """Take the classes' names from a file, see ``read_class_names``; None leaves them.

        Raises:
            DataError: the file cannot be read, or holds another number of names.
        """
        if file is not None:
            self.classes = Classes(self.classes.task, tuple(read_class_names(file, self.class_counts)))

    @property
    def calibrated(self) -> list[str]:
        """The methods whose boxes the network's own rule cuts."""
        return [name for name, rule in box_rules(self.methods).items() if rule.source != "default"]

    @property
    def served(self) -> dict[str, Method]:
        """The methods that it has not refused."""
        return {name: method for name, method in self.methods.items() if name not in self.unserved}

    @contextmanager
    def observe(self, images: Tensor) -> Iterator[ForwardPass]:
        """One forward of images (N, C, H, W) for all methods; see ``camify.methods.observe``."""
        gradients = any(method.uses_gradients for method in self.served.values())
        images = images.to(next(self.model.parameters()))
        task, names = self.classes.task, self.classes.names
        with observe(
            self.model, images, self.layer, gradients=gradients, task=task, class_names=names, parts=self.parts
        ) as forward:
            yield forward

    def of_model(self, model: nn.Module) -> ExplainedNetwork:
        """The same methods on another network of the same layers."""
        methods = make_methods(model, list(self.served), self.layer, self.options, augmentations=self.augmentations)
        return replace(self, model=model, methods=methods, unserved={})

    def raw_maps(self, forward: ForwardPass, targets: Tensor) -> dict[str, Tensor]:
        """Raw maps (N, h, w), or (N, T, h, w), by method; one after the other: gradients of one class are taken once.

        A method that the network cannot serve is noted in ``unserved`` and is left out.
        """
        raw = {}
        for name, method in self.served.items():
            try:
                raw[name] = method.raw_maps(forward, targets)
            except ConversionError as error:  # noqa: PERF203 - one of several may be refused
                self.unserved[name] = str(error)
        return raw

    def heats(self, raw: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Raw maps by method as heat (N, H, W) in [0, 1]."""
        return {name: self.methods[name].heat(maps, size) for name, maps in raw.items()}

    def evidence(self, method: str, raw: Tensor, size: tuple[int, int]) -> Tensor:
        """Raw maps at image size (..., H, W); after the ReLU where the method has one."""
        return upsample(raw.relu() if self.methods[method].relu else raw, size)

    def boxes(
        self, forward: ForwardPass, raw: Mapping[str, Tensor], targets: Tensor, size: tuple[int, int]
    ) -> dict[str, list[Tensor]]:
        """By method the boxes (n, 4) of raw maps as its rule cuts them, xyxy pixels of that size."""
        rules = box_rules({name: self.methods[name] for name in raw})
        return {
            name: rule.boxes(box_maps(self.methods[name], rule, forward, raw[name], targets), size)
            for name, rule in rules.items()
        }

    def refusal(self, method: str) -> str:
        """In few words why the network has no map of a method."""
        return "needs conversion" if isinstance(self.methods[method], CAM) else "not supported"


def explained_network(
    source: Source,
    name: str,
    methods: Sequence[str],
    *,
    layer: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    task: str | Task | None = None,
    class_names: Sequence[str] | None = None,
    bits: int | None = None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
    augmentations: str | Sequence[str] | None = None,
) -> ExplainedNetwork:
    """A network with its methods; it is run once, to see its classes. What has to be assumed is said in its notes.

    Args:
        source: the network and what is known about it.
        name: short.
        methods: names, each one once.
        layer: name of the module whose map is explained, or of several; None is the last spatial map.
        options: of the methods.
        task: what the logits mean; None takes what the network says.
        class_names: in order; None takes the source's.
        bits: of gray files (see ``Preprocessing``); None takes the source's.
        preprocessing: as the user states it (see ``Source.prepared``); None takes the source's.
        augmentations: of the methods, see ``camify.explain``.

    Raises:
        ConfigError: a method, option, task or number of names cannot be.
        ConversionError: the network cannot be run.
    """
    if len(set(methods)) < len(methods):
        raise ConfigError(f"--method: {', '.join(methods)}: each one once.")
    source = source.prepared(preprocessing)
    task = task or source.task
    augmentations = check_augmentations(augmentations)
    made = make_methods(source.model, methods, layer, options, augmentations=augmentations)
    notes = list(source.notes)
    require_forward_only(source, made)
    preprocessing = source.assumed_preprocessing
    if source.preprocessing is None:
        size = " x ".join(map(str, (preprocessing.height, preprocessing.width)))
        notes.append(
            f"assumed: ImageNet's mean and deviation, {size} px, as the source does not say what it expects; if that is"
            " another, give --preprocessing"
        )
    if bits is not None:
        if preprocessing.bits not in (None, bits):
            notes.append(f"gray files are read with {bits} bits, as given; the network expects {preprocessing.bits}")
        preprocessing = replace(preprocessing, bits=bits)
    shape = (1, preprocessing.channels, preprocessing.height, preprocessing.width)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))  # of an empty one maps may be empty
    with observe(source.model, image.to(next(source.model.parameters())), task=task) as forward:
        classes, count, activation = forward.classes, forward.logits.shape[1], forward.split.activation
    names = class_names or source.class_names or classes.names
    logits = 1 if classes.task is Task.BINARY else count
    if names is not None and len(names) not in {logits, count}:
        raise ConfigError(f"class_names: {len(names)} names for the network's {count} classes.")
    inner = unwrapped(source.model)
    task_is_said = task is not None or activation is not None or (isinstance(inner, CAMNet) and inner.task_is_known)
    if classes.task is Task.MULTICLASS and not task_is_said:
        notes.append(
            "assumed: classes exclude each other (task multiclass), as the source does not say what its logits mean; if"
            " they do not, give --task multilabel"
        )
    label_free = [name for name, method in made.items() if not method.class_discriminative]
    if label_free:
        notes.append(f"the same map for every class: {', '.join(label_free)}")
    if augmentations:
        views = sum(AUGMENTATIONS[name] for name in augmentations)
        further = f"{views} further forward{'s' if views > 1 else ''}"
        notes.append(
            f"every map is the mean over the image and its views (augmentations: {', '.join(augmentations)}), {further}"
        )
    classes = Classes.of(classes.task, names, logits)
    return ExplainedNetwork(
        name, source.name, source.model, preprocessing, made, classes, count, layer, options or {},
        augmentations, notes,
    )  # fmt: skip


def find_networks(
    sources: Sequence[str], methods: Sequence[str], *, task: str | Task | None = None, bits: int | None = None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
    augmentations: str | Sequence[str] | None = None,
) -> list[ExplainedNetwork]:  # fmt: skip
    """The networks of source strings; ``preprocessing`` is for those that do not say what they expect.

    Raises:
        CamifyError: a source or method is unknown, or a source cannot be loaded.
    """
    networks = []
    for text, name in zip(sources, short_names(sources), strict=True):
        source = resolve(text).explained_by(methods)
        stated = preprocessing if source.preprocessing is None else None
        networks.append(
            explained_network(
                source, name, methods, task=task, bits=bits, preprocessing=stated, augmentations=augmentations
            )
        )
    return networks


@contextmanager
def placed_on(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    """The network on a device, and back where it was afterwards, also after an error; None leaves it where it is.

    Raises:
        ConfigError: its parts lie on several devices, or the device cannot be used.
    """
    homes = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    if device is None or not homes:
        yield
        return
    if len(homes) > 1:
        raise ConfigError(f"device={str(device)!r}: the network lies on {len(homes)} devices. Leave device None.")
    try:
        model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _unusable(device, error) from error
    try:
        yield
    finally:
        model.to(homes.pop())


def usable_device(device: str | torch.device, ranks: Ranks = ONE) -> torch.device:
    """A device that torch can use here; of several processes with ``cuda`` each takes the one of its number.

    Raises:
        ConfigError: there is none of that name, or it has no memory left for a single number; or several processes are
            to share one.
    """
    try:
        usable = torch.device(device)
        if usable.type == "cuda" and ranks.world_size > 1:
            if ":" in str(device):
                raise ConfigError(
                    f"device={str(device)!r}: {ranks.world_size} processes would share it. Give cuda, of which each"
                    " process takes its own, or start one process."
                )
            usable = torch.device("cuda", ranks.local_rank)
        float(torch.zeros(1, device=usable))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's ways to say no
        raise _unusable(device, error) from error
    return usable


def _unusable(device: str | torch.device, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:200]
    return ConfigError(f"device={str(device)!r} cannot be used here ({reason}). Choose cpu or cuda.")


# ---------------------------------------------------------------- boxes


def box_rules(methods: Mapping[str, Method], threshold: float | None = None) -> dict[str, BoxRule]:
    """By method the rule that cuts its boxes: of ``cam`` the network's own where it has one, else ``DEFAULT_RULE``.

    Args:
        methods: made for one network.
        threshold: instead of the rules' own; where there is none, of min-max normalized maps.
    """
    rules = {}
    for name, method in methods.items():
        own = method.model.box_rule if isinstance(method, CAM) and isinstance(method.model, CAMNet) else None
        if threshold is None:
            rules[name] = own or DEFAULT_RULE
        else:
            rules[name] = replace(own or BoxRule(source="default"), threshold=threshold, count=0, accuracy=None)
    return rules


def box_maps(
    method: Method, rule: BoxRule, forward: ForwardPass, raw: Tensor, targets: Tensor, features: Tensor | None = None
) -> Tensor:
    """The maps that a rule cuts, for targets (N,) or (N, T): the raw ones, of ``cam`` those that the rule asks for.

    Both are the mean over the views of the method's augmentations. A rule with ``flip`` has the mirrored image already:
    with the augmentation ``flip`` it counts once.

    ``features`` are the rule's (``camify.box_features``), where they are known; else they are computed.
    """
    model = method.model
    own = rule.clamp_weights or rule.flip or rule.map_stride is not None or rule.kind != "plain"
    if not (own and isinstance(method, CAM) and isinstance(model, CAMNet)):
        return raw.relu() if method.relu else raw
    if "flip" in method.augmentations:
        rule, features = replace(rule, flip=False), None if rule.flip else features
    weight = forward.classes.two_sided(model.classifier.weight.detach(), 0)  # first the classes, then what they share
    exclusive = model.task.exclusive
    weight = map_weight(weight, rule.kind, model.object_weight, exclusive=exclusive).to(forward.activations)

    def maps_of(seen: ForwardPass) -> Tensor:
        known = features if seen is forward else None
        if known is None:
            known = box_features(model, seen.images, rule, {None: seen.activations})
        maps = [rule.maps(known.to(weight), weight, one) for one in targets.reshape(len(targets), -1).unbind(1)]
        return maps[0] if targets.dim() == 1 else torch.stack(maps, dim=1)

    return method.averaged(forward, maps_of)


# ---------------------------------------------------------------- names


def short_names(sources: Sequence[str]) -> list[str]:
    """Short names: of a folder its own, of a source what stands before the weights; equal ones are numbered."""
    short = []
    for source in sources:
        head = source.partition("@")[0]
        library = head.split("/")[0] in ("torchvision", "timm", "camify") and not Path(source).exists()
        short.append(head.split("/", 1)[1] if library and "/" in head else Path(head).stem or head)
    return [
        name if short.count(name) == 1 else f"{name} ({short[: index + 1].count(name)})"
        for index, name in enumerate(short)
    ]


def shared_titles(networks: Sequence[ExplainedNetwork]) -> list[str]:
    """The classes that all networks share, in order; numbers where no network names them.

    Raises:
        ConfigError: two networks differ in number, names or order of their classes.
    """
    first, named = networks[0], None
    for other in networks:
        if other.class_count != first.class_count:
            raise ConfigError(
                f"{other.source}: has {other.class_count} classes, {first.source} has {first.class_count}."
                " Compare networks of the same classes."
            )
        if other.classes.names is None:
            continue
        if named is not None and other.titles != named.titles:
            index = next(i for i, (a, b) in enumerate(zip(named.titles, other.titles, strict=True)) if a != b)
            raise ConfigError(
                f"{other.source}: class {index} is {other.titles[index]!r}, that of {named.source}"
                f" {named.titles[index]!r}. Compare networks of the same classes in the same order."
            )
        named = named or other
    return (named or first).titles
