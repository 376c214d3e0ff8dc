"""From what the user has to what is trained: a legacy network is converted, options that were left out are settled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..anatomy import LogitsOf, examine
from ..checkpoint import CKPT_RECORD, SCHEMA_VERSION
from ..errors import ConfigError, ConversionError
from ..model import CAMNet
from ..sources import Source, resolve
from ..surgery import convert, find_recipe, settle_fine_tuning, settle_head
from ..task import Task

__all__ = ["Prepared", "checkpoint_manifest", "prepare", "settle_options"]

_CONVERSION = ("recipe", "pool", "head_channels", "dropout", "map_stride", "input_size")
_INITS = ("random", "ridge", "recast")


@dataclass
class Prepared:
    """The network to train, and what it came from.

    Attributes:
        network: converted where it was a legacy one.
        source: as it is named.
        num_classes: of its logits.
        task: as asked for, else what the network says.
        legacy: the legacy network, giving logits, where its classes are the data's or may be.
        unproven_classes: they may be, as it has as many; nothing names them. Measure before it is believed.
        layers: number of the layer of every legacy parameter, by timm's grouping, where the legacy network has one.
    """

    network: nn.Module
    source: str
    num_classes: int
    task: str | Task | None = None
    legacy: nn.Module | None = None
    unproven_classes: bool = False
    layers: dict[str, int] | None = None


def settle_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the start, the head and of fine-tuning that are None, settled by the recipe or the defaults.

    Raises:
        ConfigError: ``init`` is unknown or contradicts ``head``.
        ConversionError: no recipe has that name, or an option contradicts it.
    """
    recipe, init, head = find_recipe(options["recipe"]), options["init"], options["head"]
    if init not in (None, *_INITS):
        raise ConfigError(f"init={init!r} is unknown. Choose {', '.join(_INITS)}.")
    if init == "recast" and head not in (None, "recast"):
        raise ConfigError(f"init='recast' keeps the old head, head={head!r} does not. Leave one of them out.")
    if init == "random" and head == "recast":
        raise ConfigError("head='recast' keeps the old head, init='random' does not. Leave one of them out.")
    names = ("pool", "dropout", "head_channels", "map_stride")
    given = {"head": "recast" if init == "recast" else head, **{name: options[name] for name in names}}
    settled = settle_head(recipe, given)
    default = "recast" if settled["head"] == "recast" else "random"
    return {"init": init or default, **settled, **settle_fine_tuning(recipe, options)}


def prepare(model: str | nn.Module, class_names: list[str] | None, options: Mapping[str, Any]) -> Prepared:
    """The network to train: converted where it is a legacy one, which is then kept for comparison."""
    named = model if isinstance(model, str) else type(model).__name__
    source = resolve(model) if isinstance(model, str) else Source.of(model)
    source.require_layers("it cannot be trained")
    if options["legacy_class_names"] is not None:
        source = replace(source, class_names=list(options["legacy_class_names"]))
    legacy, head, task = source.model, options["head"], options["task"]
    if head in ("none", "recast"):
        source.require_head(f"head={head!r}")
    if head == "none":
        return Prepared(
            legacy.train(), named, _count_logits(legacy, options["input_size"], source), task or source.task
        )
    if isinstance(legacy, CAMNet) and _has_classes(legacy, class_names):
        return Prepared(legacy.train(), named, legacy.num_classes, task or legacy.task)
    conversion = {name: options[name] for name in _CONVERSION}
    if isinstance(legacy, CAMNet):  # has its layers already; other classes need another classifier only
        head, conversion = "direct", {**conversion, "recipe": None}
    # what the legacy knew of the data's classes stays, row by row, where both are named and its head is kept
    net = convert(replace(source, notes=()), head=head, class_names=class_names, task=task, **conversion).train()
    prepared = Prepared(net, named, net.num_classes, task or net.task, layers=_timm_layers(legacy))
    if net.certificate is not None:
        net.certificate = net.certificate.named(named, source.notes)
        known = source.class_names is not None and class_names is not None
        same = not known or source.class_names == class_names
        if same and not source.headless and net.certificate.legacy_classes == net.num_classes:
            prepared.legacy, prepared.unproven_classes = (
                LogitsOf.of(legacy),
                not known and not isinstance(legacy, CAMNet),
            )
    return prepared


def checkpoint_manifest(network: CAMNet) -> dict[str, str]:
    """What a Lightning checkpoint says of a CAMNet beside its weights, as JSON."""
    try:
        manifest = {"schema_version": SCHEMA_VERSION, **network.manifest()}
    except ConversionError as error:  # a layer of the user's own; saving goes on
        manifest = {"refused": str(error)}
    return {CKPT_RECORD: json.dumps(manifest)}


def _count_logits(network: nn.Module, input_size: int | tuple[int, int] | None, source: Source) -> int:
    """Number of logits of a network that is trained as it is.

    Raises:
        ConfigError: it ends in a softmax or sigmoid, behind which no loss can be taken.
    """
    size = input_size or (224 if source.preprocessing is None else source.preprocessing.size)
    anatomy = examine(network, size, None)
    if anatomy.activation is not None:
        raise ConfigError(
            f"head='none': the network ends in a {anatomy.activation}, and the loss needs what comes before it. Take"
            " that layer off, or convert the network with another head, which does so."
        )
    return anatomy.logits.shape[1]


def _timm_layers(model: Any) -> dict[str, int] | None:
    if not hasattr(model, "group_matcher"):
        return None
    from timm.models import group_parameters  # a network that has group_matcher came from timm

    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return layers


def _has_classes(net: CAMNet, names: list[str] | None) -> bool:
    """Whether a network's classes are these, in this order, as far as it is known."""
    return names is None or (len(names) == net.num_classes and net.class_names in (None, names))
