"""Where a network comes from: a name, a name with weights, or a checkpoint folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ..checkpoint import MANIFEST, file_sha256
from ..errors import CheckpointError, ConversionError
from ..model import CAMNet
from ..preprocessing import Preprocessing
from .demo_network import TinyVGG
from .state_dicts import State, count_classes, match_keys, misfits, read_state
from .timm_models import timm_model
from .torchvision_models import build_torchvision, find_architecture, torchvision_names

__all__ = ["Source", "resolve"]

_FORMS = (
    "Known forms: torchvision/NAME, torchvision/NAME@none (random), torchvision/NAME@IMAGENET1K_V1,"
    " torchvision/NAME@FILE.pth, timm/NAME, timm/NAME.TAG, timm/NAME@none, timm/NAME@FILE.safetensors,"
    " FILE.pth, camify/tiny_vgg, or a folder written by save_pretrained()."
)
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pth.tar")
_TINY = Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # of the generated shapes


@dataclass(frozen=True)
class Source:
    """A network and what is known about it."""

    model: nn.Module
    name: str
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()  # what was done to weights that did not fit as they were
    preprocessing: Preprocessing | None = None  # what the weights expect
    licence: str | None = None  # of the weights, as far as their library says

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessing", Preprocessing.of(self.preprocessing))


def resolve(source: str, *, weights: bool = True) -> Source:
    """The network that a source string names.

    Args:
        source: ``"torchvision/vgg16"`` (pretrained), ``"torchvision/vgg16@none"`` (random weights),
            ``"...@NAME"`` (a member of the weights enum), ``"...@FILE"`` (weights: .pth, .pt, .ckpt,
            .bin or .safetensors), the same with ``timm/`` (``"timm/resnet18.a1_in1k"`` names a tag of timm's),
            a bare FILE whose tensors fit exactly one of torchvision's classifiers, ``"camify/tiny_vgg"``, or a
            folder written by ``save_pretrained``.
        weights: False builds the architecture only; nothing is loaded (but a bare FILE, to see what it is) or
            downloaded.

    Raises:
        ConversionError: nothing has that name.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    if source and Path(source).is_dir():
        model = CAMNet.from_pretrained(source)
        return Source(model, str(source), model.class_names, preprocessing=model.preprocessing, licence=model.licence)
    if source.endswith(_SUFFIXES) and (Path(source).is_file() or "@" not in source):
        return _bare_file(source)
    library, _, rest = source.partition("/")
    name, _, which = rest.partition("@")
    if library == "torchvision" and name:
        return _torchvision(name, which, weights)
    if library == "timm" and name:
        return _timm(name, which, weights)
    if library == "camify" and name == "tiny_vgg":
        return _from_file(source, TinyVGG, which if weights else "", preprocessing=_TINY)
    raise ConversionError(f"source {source!r}: no such network or folder. {_FORMS}")


def _torchvision(name: str, which: str, load: bool) -> Source:
    if name not in torchvision_names():
        near = difflib.get_close_matches(name, torchvision_names(), n=3)
        meant = f" Near: {', '.join(near)}." if near else ""
        raise ConversionError(f"source torchvision/{name}: torchvision has no such classifier.{meant} {_FORMS}")

    architecture = partial(build_torchvision, name)
    if not load or which == "none":
        return Source(architecture(), f"torchvision/{name}")
    if "." in which or "/" in which:
        return _as_published(_from_file(f"torchvision/{name}@{which}", architecture, which), name, which)
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
    source, notes = f"torchvision/{name}@{member.name}", list[str]()
    _load(network, dict(state), source, notes)
    names, licence = list(member.meta["categories"]), member.meta.get("license")
    return Source(network.eval(), source, names, tuple(notes), _expected(member), licence)


def _expected(member: Any) -> Preprocessing:
    """The preprocessing that weights of torchvision's expect."""
    transforms = member.transforms()
    return Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def _as_published(source: Source, name: str, file: str) -> Source:
    """A network of a file with the classes and preprocessing of torchvision's weights, where it is their file.

    Such a file has the beginning of its SHA-256 in its name (``resnet18-f37072fd.pth``), and that is checked.
    """
    for member in torchvision.models.get_model_weights(name):
        digest = re.search(r"-([0-9a-f]{8,})\.pth$", member.url)
        if digest is not None and Path(member.url).name == Path(file).name:
            if not file_sha256(Path(file)).startswith(digest[1]):
                raise CheckpointError(f"{file}: is not torchvision's file of that name, or damaged. Fetch it again.")
            categories = list(member.meta["categories"])
            names, licence = source.class_names or categories, member.meta.get("license")
            return replace(source, class_names=names, preprocessing=_expected(member), licence=licence)
    return source


def _timm(name: str, which: str, load: bool) -> Source:
    found = timm_model(name)
    if not load or which == "none":
        return Source(found.build(), f"timm/{name}")
    if not which:
        source = f"timm/{found.name}"
        network = found.load().eval()
        return Source(network, source, found.class_names, preprocessing=found.preprocessing, licence=found.licence)
    if not ("." in which or "/" in which):
        raise ConversionError(f"source timm/{name}@{which}: tags are written timm/NAME.TAG; after @ none or a file.")
    tagged = "." in name  # the file is said to be that of these weights, or trained from them
    return _from_file(
        f"timm/{name}@{which}",
        found.build,
        which,
        preprocessing=found.preprocessing if tagged else None,
        class_names=found.class_names if tagged else None,
    )


def _bare_file(file: str) -> Source:
    """The network of a weights file that names none."""
    if (Path(file).parent / MANIFEST).is_file():
        raise ConversionError(f"{file}: belongs to a checkpoint folder. Give the folder: {Path(file).parent}")
    notes: list[str] = []
    state, names = read_state(file, notes)
    name = find_architecture(state, file)
    notes.append(f"the file names no network; its tensors fit torchvision/{name} and no other of torchvision's")
    found = _with_weights(f"torchvision/{name}@{file}", partial(build_torchvision, name), state, names, notes)
    return _as_published(found, name, file)


def _from_file(
    source: str,
    architecture: Callable[..., nn.Module],
    file: str,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: list[str] | None = None,
) -> Source:
    if not file:
        return Source(architecture(), source, preprocessing=preprocessing)
    notes: list[str] = []
    state, names = read_state(file, notes)
    found = _with_weights(source, architecture, state, names, notes)
    if found.class_names is None and class_names is not None and _has_rows(found.model, len(class_names)):
        found = replace(found, class_names=class_names)
    return replace(found, preprocessing=preprocessing)


def _has_rows(model: nn.Module, count: int) -> bool:
    return len(next(reversed(model.state_dict().values()))) == count


def _with_weights(
    source: str, architecture: Callable[..., nn.Module], state: State, names: list[str] | None, notes: list[str]
) -> Source:
    model = architecture()
    classes = count_classes(state, model.state_dict())
    if classes is not None:
        model = architecture(num_classes=classes)
    _load(model, state, source, notes)
    return Source(model.eval(), source, names, tuple(notes))


def _load(model: nn.Module, state: State, source: str, notes: list[str]) -> None:
    target = model.state_dict()
    state = match_keys(state, target, notes)
    missing, unknown, misshapen = misfits(state, target)
    if not (missing or unknown or misshapen):
        model.load_state_dict(state, strict=True)
        return
    rows = [("key", "in the file", "in the network", "nearest key")]
    mixed = (key for keys in zip_longest(misshapen, missing, unknown) for key in keys if key is not None)
    for key in islice(mixed, 10):
        pool = [] if key in misshapen else missing if key in unknown else unknown
        nearest = difflib.get_close_matches(key[:200], pool[:2000], n=1) or ["-"]
        rows.append((_shown(key), _kind(state.get(key)), _kind(target.get(key)), _shown(nearest[0])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join(" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    counts = f"{len(missing)} missing, {len(unknown)} unknown, {len(misshapen)} of another shape or kind"
    more = len(missing) + len(unknown) + len(misshapen) - (len(rows) - 1)
    raise CheckpointError(
        f"{source}: the weights do not fit the network: {counts}{''.join(f'; {note}' for note in notes)}."
        f" Is the file from another architecture?\n{table}" + (f"\n... and {more} more" if more else "")
    )


def _shown(key: str) -> str:
    text = key if len(key) <= 80 else f"{key[:77]}..."
    return text if text.isprintable() else ascii(text)


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "-"
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'.replace('torch.', '')}"
