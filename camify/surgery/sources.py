"""Where a network comes from: a name, a name with weights, or a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from ..checkpoint import read_tensors
from ..errors import CheckpointError, ConversionError
from ..model import CAMNet
from .tiny_vgg import TinyVGG

__all__ = ["Source", "resolve"]

_FORMS = (
    "Known forms: torchvision/NAME, torchvision/NAME@none (random), torchvision/NAME@IMAGENET1K_V1,"
    " torchvision/NAME@FILE.pth, camify/tiny_vgg, or a folder written by save_pretrained()."
)


@dataclass(frozen=True)
class Source:
    """A network and what is known about it."""

    model: nn.Module
    name: str
    class_names: list[str] | None = None


def resolve(source: str, *, weights: bool = True) -> Source:
    """The network that a source string names.

    Args:
        source: ``"torchvision/vgg16"`` (pretrained), ``"torchvision/vgg16@none"`` (random weights),
            ``"...@NAME"`` (a member of the weights enum), ``"...@FILE"`` (a state dict: .pth, .pt or
            .safetensors), ``"camify/tiny_vgg"``, or a folder written by ``save_pretrained``.
        weights: False builds the architecture only; nothing is loaded or downloaded.

    Raises:
        ConversionError: nothing has that name.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    if source and Path(source).is_dir():
        model = CAMNet.from_pretrained(source)
        return Source(model, str(source), model.class_names)
    library, _, rest = source.partition("/")
    name, _, which = rest.partition("@")
    if library == "torchvision" and name:
        return _torchvision(name, which, weights)
    if library == "camify" and name == "tiny_vgg":
        return _from_file(source, TinyVGG, which if weights else "")
    raise ConversionError(f"source {source!r}: no such network or folder. {_FORMS}")


def _torchvision(name: str, which: str, load: bool) -> Source:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConversionError(f"source torchvision/{name}: torchvision has no such classifier. {_FORMS}")

    def architecture(**options: Any) -> nn.Module:
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # seconds of truncated-normal draws
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return network

    if not load or which == "none":
        return Source(architecture(), f"torchvision/{name}")
    if "." in which or "/" in which:
        return _from_file(f"torchvision/{name}@{which}", architecture, which)
    choices = torchvision.models.get_model_weights(name)
    try:
        member = choices["DEFAULT" if which == "" else which]
    except KeyError:
        known = ", ".join(choices.__members__)
        raise ConversionError(f"source torchvision/{name}@{which}: no such weights. Known: none, {known}.") from None
    try:
        state = member.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"torchvision/{name}@{member.name}: cannot download the weights from {member.url} ({error})."
            f" Put the file into {torch.hub.get_dir()}/checkpoints, or use torchvision/{name}@FILE or @none."
        ) from error
    options = {"aux_logits": True, "transform_input": True} if name in ("googlenet", "inception_v3") else {}
    network = architecture(**options)
    _load(network, state, f"torchvision/{name}@{member.name}")
    return Source(network.eval(), f"torchvision/{name}@{member.name}", list(member.meta["categories"]))


def _from_file(source: str, architecture: Callable[..., nn.Module], file: str) -> Source:
    if not file:
        return Source(architecture(), source)
    state, names = _read_state(Path(file))
    model = architecture()
    last = next(reversed(model.state_dict()))  # of the classifier: its length is the number of classes
    if last in state and state[last].dim() > 0 and len(state[last]) != len(model.state_dict()[last]):
        model = architecture(num_classes=len(state[last]))
    _load(model, state, source)
    return Source(model.eval(), source, names)


def _read_state(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """A state dict and, where the file names them, its classes."""
    if path.suffix == ".safetensors":
        state = read_tensors(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return state, _class_names(path, metadata.get("class_names", "null"))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
        raise CheckpointError(f"{path}: cannot be read as plain weights ({error}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: is not a state dict (names -> tensors). Save `model.state_dict()`.")
    return dict(state), None


def _class_names(path: Path, text: str) -> list[str] | None:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = text
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{path}: field class_names of the metadata is not a JSON list of names.")
    return names


def _load(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    ours = model.state_dict()
    wrong = [f"missing {key}" for key in ours if key not in state]
    wrong += [f"unknown {key}" for key in state if key not in ours]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in ours.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise CheckpointError(f"{source}: the weights do not fit the network: {'; '.join(wrong[:4])}{more}.")
    model.load_state_dict(state, strict=True)
