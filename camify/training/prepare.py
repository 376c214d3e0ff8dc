"""From what the user has to what is trained: a legacy network is converted."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..checkpoint.folder import CKPT_RECORD, SCHEMA_VERSION
from ..conversion import convert
from ..errors import ConfigError, ConversionError
from ..graphs import analyze
from ..methods.feature_split import LogitsOf
from ..model import CAMNet
from ..sources import Source, resolve
from ..task import Task
from .options import FineTuningOptions

__all__ = ["Prepared", "checkpoint_manifest", "prepare"]

_CONVERSION = ("pool", "head_channels", "dropout", "map_stride", "input_size")


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


def prepare(model: str | nn.Module, class_names: list[str] | None, options: FineTuningOptions) -> Prepared:
    """The network to train: converted where it is a legacy one, which is then kept for comparison."""
    model_name = model if isinstance(model, str) else type(model).__name__
    source = resolve(model) if isinstance(model, str) else Source.of(model)
    source.require_layers("it cannot be trained")
    source.require_gradients("it cannot be trained")
    conversion, task = options.conversion, options.loss.task
    source = source.prepared(conversion.preprocessing)
    if conversion.legacy_class_names is not None:
        source = replace(source, class_names=list(conversion.legacy_class_names))
    if conversion.head in ("none", "recast"):
        source.require_head(f"head={conversion.head!r}")
    if conversion.head == "none":
        count = _count_logits(source, conversion.input_size)
        return Prepared(source.model.train(), model_name, count, task or source.task)
    cam_net = source.cam_net if source.cam_ready else None
    if cam_net is not None and _has_classes(cam_net, class_names):
        return Prepared(cam_net.train(), model_name, cam_net.num_classes, task or cam_net.task)
    conversion_options = {name: getattr(conversion, name) for name in _CONVERSION}
    # A CAMNet has its layers already; other classes need another classifier only.
    head, recipe = (conversion.head, options.recipe) if cam_net is None else ("direct", None)
    # What the legacy knew of the data's classes stays, row by row, where both are named and its head is kept.
    net = convert(
        replace(source, notes=()), head=head, class_names=class_names, task=task, recipe=recipe, **conversion_options
    )
    prepared = Prepared(net.train(), model_name, net.num_classes, task or net.task, layers=_timm_layers(source.model))
    if net.certificate is not None:
        net.certificate = net.certificate.named(model_name, source.notes)
        both_named = source.class_names is not None and class_names is not None
        same = not both_named or source.class_names == class_names
        if same and not source.headless and net.certificate.legacy_classes == net.num_classes:
            prepared.legacy = LogitsOf.of(source.model)
            prepared.unproven_classes = not both_named and cam_net is None
    return prepared


def checkpoint_manifest(network: CAMNet) -> dict[str, str]:
    """What a Lightning checkpoint says of a CAMNet beside its weights, as JSON."""
    try:
        manifest = {"schema_version": SCHEMA_VERSION, **network.manifest()}
    except ConversionError as error:  # a layer of the user's own; saving goes on
        manifest = {"refused": str(error)}
    return {CKPT_RECORD: json.dumps(manifest)}


def _count_logits(source: Source, input_size: int | tuple[int, int] | None) -> int:
    """Number of logits of a network that is trained as it is.

    Raises:
        ConfigError: it ends in a softmax or sigmoid, behind which no loss can be taken.
    """
    analysis = analyze(source.model, input_size or source.size, None)
    if analysis.activation is not None:
        raise ConfigError(
            f"head='none': the network ends in a {analysis.activation}, and the loss needs what comes before it. Take"
            " that layer off, or convert the network with another head, which does so."
        )
    return analysis.logits.shape[1]


def _timm_layers(model: Any) -> dict[str, int] | None:
    if not hasattr(model, "group_matcher"):
        return None
    from timm.models import group_parameters  # a network that has group_matcher came from timm

    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return layers


def _has_classes(net: CAMNet, names: list[str] | None) -> bool:
    """Whether a network's classes are these, in this order, as far as it is known."""
    return names is None or (len(names) == net.num_classes and net.class_names in (None, names))
