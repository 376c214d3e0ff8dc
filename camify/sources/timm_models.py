"""Networks of timm (Wightman 2019, "PyTorch Image Models"), which is an optional extra."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from ..errors import CheckpointError, ConfigError, ConversionError
from ..preprocessing import Preprocessing, sides_of
from ..task import Task
from .cached_files import require_hub_files, require_published
from .hub_files import CARD, license_of, read_weights
from .source import Source
from .weight_files import is_file_name, network_of_file, network_with_weights

__all__ = ["TimmModel", "is_timm", "load_timm", "load_timm_folder", "timm_model"]

_HUB_NAMES = ("model.safetensors", "pytorch_model.bin")
_CLASSES = 1000  # of a head where the weights have none
_SUBSET = "in1k"  # tags that end their training on ImageNet-1k, whose order of classes is torchvision's


def is_timm(text: str) -> bool:
    """Whether a text names a network of timm."""
    return text.startswith("timm/") and text.partition("@")[0] != "timm/"


_FOLDER_OPTIONS = ("img_size", "global_pool", "in_chans")


def load_timm_folder(folder: Path, text: str, config: Mapping[str, Any]) -> Source:
    """The network of a folder or repository that timm wrote (``save_for_hf``, ``push_to_hf_hub``).

    Args:
        folder: with config.json and safetensors.
        text: how the source is named.
        config: the content of config.json.

    Raises:
        ConversionError: timm is not installed, or has no such network.
        CheckpointError: the weights are missing, damaged or do not fit, or config.json is damaged.
    """
    where = folder / "config.json"
    of_weights = config.get("pretrained_cfg")
    of_weights = of_weights if isinstance(of_weights, Mapping) else config  # older files have the fields outside
    options = config.get("model_args") or {}
    if isinstance(options, Mapping):  # the tensors say how many classes there are
        options = {key: value for key, value in options.items() if key != "num_classes"}
    odd = (
        [str(key) for key in options if key not in _FOLDER_OPTIONS] if isinstance(options, Mapping) else ["model_args"]
    )
    if odd or not all(isinstance(value, str) or sides_of(value) for value in options.values()):
        raise CheckpointError(
            f"{where}: model_args {', '.join(odd or options)[:200]}: camify builds networks as timm has them. Build it"
            " in Python with timm.create_model, and pass it."
        )
    notes: list[str] = []
    build = TimmModel(_known_name(config["architecture"], where), False, None, None).build
    source = network_with_weights(text, partial(build, **options), read_weights(folder, notes), None, notes)
    try:
        sides, mean, std = (of_weights[field] for field in ("input_size", "mean", "std"))
        preprocessing = Preprocessing((sides[1], sides[2]), tuple(mean), tuple(std))
    except (KeyError, IndexError, TypeError, ConfigError) as error:
        notes.append(f"{where} does not say how images become its input ({error})")
        preprocessing = None
    names = of_weights.get("label_names") or config.get("label_names")
    classes = getattr(source.model, "num_classes", None)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        names = None
    return replace(
        source,
        notes=tuple(notes),
        preprocessing=preprocessing,
        class_names=None if source.headless else names,
        license=license_of(folder / CARD),
    )


def _imported(where: object) -> Any:
    """The library; ``where`` begins the message where it is missing.

    Raises:
        ConversionError: it cannot be imported.
    """
    try:
        import timm
    except ImportError as error:
        raise ConversionError(
            f"{where}: timm cannot be imported ({error}). Install it: pip install 'camify[timm]'"
        ) from error
    return timm


def _known_name(architecture: str, where: Path) -> str:
    """An architecture of timm.

    Raises:
        ConversionError: timm is not installed, or knows no such name.
    """
    timm = _imported(where)
    if not timm.is_model(architecture):
        raise ConversionError(f"{where}: architecture {architecture[:80]!r}: timm has no such network.")
    return architecture


def load_timm(text: str, weights: bool) -> Source:
    """``timm/NAME`` or ``timm/NAME.TAG`` with timm's weights, or ``@none``, ``@FILE``.

    Raises:
        ConversionError: timm is not installed, or has no such network.
        CheckpointError: the weights cannot be had, are damaged or do not fit.
    """
    name, _, which = text.partition("/")[2].partition("@")
    timm_network = timm_model(name)
    file = is_file_name(which)
    if which == "none" or not (weights or (file and Path(which).is_file())):
        return Source(timm_network.build(), f"timm/{name}")
    if not which:
        task = None if timm_network.class_names is None else Task.MULTICLASS
        network, source = timm_network.load().eval(), f"timm/{timm_network.name}"
        return Source(
            network, source, timm_network.class_names, (), timm_network.preprocessing, timm_network.license, task
        )
    if not file:
        raise ConversionError(f"source timm/{name}@{which}: tags are written timm/NAME.TAG; after @ none or a file.")
    tagged = "." in name  # the file is said to be that of these weights, or trained from them
    return network_of_file(
        f"timm/{name}@{which}",
        timm_network.build,
        which,
        preprocessing=timm_network.preprocessing if tagged else None,
        class_names=timm_network.class_names if tagged else None,
    )


@dataclass(frozen=True)
class TimmModel:
    """A network of timm by name, and what its weights were trained with.

    Attributes:
        name: as timm writes it, with the tag of the weights where there is one.
        preprocessing: of the weights, or None.
        class_names: of the weights, or None.
        has_classifier: whether the weights have one.
    """

    name: str
    pretrained: bool
    preprocessing: Preprocessing | None
    class_names: list[str] | None
    license: str | None = None
    has_classifier: bool = True

    def build(self, **options: Any) -> nn.Module:
        """The architecture with random weights; ``num_classes`` as in timm."""
        import timm

        if not self.has_classifier:
            options = {"num_classes": _CLASSES, **options}
        network: nn.Module = timm.create_model(self.name, pretrained=False, **options)
        return network

    def load(self) -> nn.Module:
        """The network with its weights, by timm's own loading: safetensors, or weights_only=True.

        Raises:
            CheckpointError: there are no such weights, or they cannot be had.
            ConversionError: they have no classifier; names those that have one.
        """
        import timm

        source = f"timm/{self.name}"
        if not self.pretrained:
            raise CheckpointError(f"{source}: timm has no weights for it. Use {source}@none or {source}@FILE.")
        if not self.has_classifier:
            architecture = self.name.partition(".")[0]
            others = [other for other in timm.list_pretrained(f"{architecture}.*") if other != self.name]
            other = ", ".join(others) or f"{architecture}@FILE"
            raise ConversionError(f"source {source}: these weights have no classifier. Try timm/{other}.")
        _require_whole(timm.get_pretrained_cfg(self.name))
        try:
            network: nn.Module = timm.create_model(self.name, pretrained=True)
        except Exception as error:  # the hub's client, safetensors and torch each raise their own kinds
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise CheckpointError(
                f"{source}: cannot have the weights from timm's hub ({type(error).__name__}: {first})."
                f" Try again with a network connection, put the file into the hub's cache, or use {source}@FILE"
                f" (its model.safetensors) or {source}@none."
            ) from error
        return network


def _require_whole(config: Any) -> None:
    """Check what the caches hold of the weights, where they hold it.

    Raises:
        CheckpointError: a file was changed; names it.
    """
    if config is not None and config.url:
        require_published(config.url)
    if config is not None and config.hf_hub_id:
        require_hub_files(config.hf_hub_id, (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_NAMES)


def timm_model(name: str) -> TimmModel:
    """The network that timm knows by ``name``: ``"resnet18"`` or, with a tag, ``"resnet18.a1_in1k"``.

    Raises:
        ConversionError: timm is not installed, or knows no such name.
    """
    timm = _imported(f"source timm/{name}")
    architecture, dot, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if not timm.is_model(architecture) or (dot and name not in tagged):
        pool = tagged if timm.is_model(architecture) else timm.list_models()
        near = ", ".join(difflib.get_close_matches(name, pool, n=4) or sorted(pool)[:4])
        raise ConversionError(f"source timm/{name}: timm has no such network. Near: {near}.")
    config = timm.get_pretrained_cfg(name)
    if config is None or not timm.is_model_pretrained(name):
        return TimmModel(name, pretrained=False, preprocessing=None, class_names=None)
    named = name if tag or not config.tag else f"{name}.{config.tag}"
    preprocessing = Preprocessing((config.input_size[1], config.input_size[2]), config.mean, config.std)
    return TimmModel(named, True, preprocessing, _class_names(config), config.license, bool(config.num_classes))


def _class_names(config: Any) -> list[str] | None:
    if config.label_names and len(config.label_names) == config.num_classes:
        return list(config.label_names)
    if config.num_classes != 1000 or _SUBSET not in (config.tag or ""):
        return None
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
