"""From what the user has to what is trained: a legacy network is converted, options that were left out are settled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..checkpoint import CKPT_RECORD, SCHEMA_VERSION
from ..errors import ConfigError, ConversionError
from ..model import CAMNet
from ..modes import evaluating
from ..sources import Source, resolve
from ..surgery import convert, find_recipe, settle_fine_tuning, settle_head

__all__ = ["Prepared", "count_classes", "prepare", "record_of", "settle_options"]

_CONVERSION = ("recipe", "pool", "head_channels", "dropout", "map_stride", "input_size")
_INITS = ("random", "ridge", "recast")


@dataclass
class Prepared:
    """The network to train, what it came from, and the legacy network where its classes are the data's."""

    network: nn.Module
    source: str
    legacy: nn.Module | None = None
    layers: dict[str, int] | None = None
    """Number of the layer of every legacy parameter, by timm's grouping, where the legacy network has one."""


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
    found = model if isinstance(model, str) else type(model).__name__
    source = resolve(model) if isinstance(model, str) else Source.of(model)
    source.require_layers("it cannot be trained")
    model, legacy_names, notes, licence = source.model, source.class_names, source.notes, source.licence
    head, conversion = options["head"], {name: options[name] for name in _CONVERSION}
    if head in ("none", "recast"):
        source.require_head(f"head={head!r}")
    if head == "none" or (isinstance(model, CAMNet) and _has_classes(model, class_names)):
        return Prepared(model.train(), found)
    if isinstance(model, CAMNet):  # has its layers already; other classes need another classifier only
        head, conversion = "direct", {**conversion, "recipe": None}
    # what the legacy knew of the data's classes stays, row by row, where both are named and its head is kept
    net = convert(
        replace(source, notes=()), head=head, class_names=class_names, legacy_class_names=legacy_names, **conversion
    ).train()
    net.licence = net.licence or licence
    prepared = Prepared(net, found, layers=_timm_layers(model))
    if net.certificate is not None:
        net.certificate = net.certificate.named(found, notes)
        comparable = legacy_names is None or class_names is None or legacy_names == class_names
        if comparable and not source.headless and net.certificate.legacy_classes == net.num_classes:
            prepared.legacy = model
    return prepared


def record_of(network: nn.Module) -> dict[str, str]:
    """What a Lightning checkpoint says of a CAMNet beside its weights, as JSON; nothing of another network."""
    if not isinstance(network, CAMNet):
        return {}
    try:
        manifest = {"schema_version": SCHEMA_VERSION, **network.manifest()}
    except ConversionError as error:  # a layer of the user's own; saving goes on
        manifest = {"refused": str(error)}
    return {CKPT_RECORD: json.dumps(manifest)}


def count_classes(network: nn.Module, input_size: int) -> int:
    """Number of logits."""
    if isinstance(network, CAMNet):
        return network.num_classes
    parameter = next(network.parameters())
    with torch.no_grad(), evaluating(network):
        logits = network(torch.zeros(1, 3, input_size, input_size).to(parameter))
    return int(logits.shape[1])


def _timm_layers(model: Any) -> dict[str, int] | None:
    if not hasattr(model, "group_matcher"):
        return None
    from timm.models import group_parameters  # a network that has group_matcher came from timm

    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return layers


def _has_classes(net: CAMNet, names: list[str] | None) -> bool:
    """Whether a network's classes are these, in this order, as far as it is known."""
    return names is None or (len(names) == net.num_classes and net.class_names in (None, names))
