"""Classifiers of torchvision: built by name, and found by the tensors of a weights file that names none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..checkpoint.folder import MANIFEST, file_sha256
from ..errors import CheckpointError, ConversionError
from ..preprocessing import Preprocessing
from ..task import Task
from .cached_files import published_digest, require_published, torch_cache_file
from .source import Source
from .state_dicts import State, count_classes, match_keys, misfits, read_state
from .weight_files import is_file_name, load_state, missing_head, network_of_file, network_with_weights

__all__ = [
    "Weightless",
    "build_torchvision",
    "find_architecture",
    "is_torchvision",
    "is_weights_file",
    "load_torchvision",
    "load_weights_file",
    "torchvision_names",
]

_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pth.tar")

_CLASSES = 1000
_ALLOCATING = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "relative_coords_table")


def torchvision_names() -> list[str]:
    """Names of torchvision's image classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def build_torchvision(name: str, **options: Any) -> nn.Module:
    """A classifier of torchvision with random weights."""
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}  # seconds of truncated-normal draws
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def is_torchvision(text: str) -> bool:
    """Whether a text names a network of torchvision."""
    return text.startswith("torchvision/") and text.partition("@")[0] != "torchvision/"


def load_torchvision(text: str, weights: bool) -> Source:
    """``torchvision/NAME`` with its own weights, or ``@none``, ``@NAME of weights``, ``@FILE``.

    Raises:
        ConversionError: torchvision has no such classifier or weights.
        CheckpointError: the weights cannot be had, are damaged or do not fit.
    """
    name, _, which = text.partition("/")[2].partition("@")
    if name not in torchvision_names():
        near = difflib.get_close_matches(name, torchvision_names(), n=3)
        meant = f" Near: {', '.join(near)}." if near else ""
        raise ConversionError(
            f"source torchvision/{name}: torchvision has no such classifier.{meant} Forms: torchvision/NAME,"
            " torchvision/NAME@none, torchvision/NAME@FILE.pth."
        )
    architecture = partial(build_torchvision, name)
    file = is_file_name(which)
    if which == "none" or not (weights or (file and Path(which).is_file())):
        return Source(architecture(), f"torchvision/{name}")
    if file:
        return _as_published(network_of_file(f"torchvision/{name}@{which}", architecture, which), name, which)
    choices = torchvision.models.get_model_weights(name)
    try:
        member = choices["DEFAULT" if which == "" else which]
    except KeyError:
        known = ", ".join(choices.__members__)
        raise ConversionError(f"source torchvision/{name}@{which}: no such weights. Known: none, {known}.") from None
    require_published(member.url)
    kept = torch_cache_file(member.url)
    there = kept.exists()
    try:
        state = member.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # of a download OSError and RuntimeError; of a file that was there any
        if there:
            problem = f"cannot be read as plain weights ({type(error).__name__})"
            raise CheckpointError(f"{kept}: {problem}. Delete it; it is fetched again then.") from error
        raise CheckpointError(
            f"torchvision/{name}@{member.name}: cannot download the weights from {member.url} ({error})."
            f" Put the file into {torch.hub.get_dir()}/checkpoints, or use torchvision/{name}@FILE or @none."
        ) from error
    options = {"aux_logits": True, "transform_input": True} if name in ("googlenet", "inception_v3") else {}
    network, notes = architecture(**options), list[str]()
    if member.meta["categories"] is None:  # VGG's IMAGENET1K_FEATURES: NaN stands in the head
        state = {key: value for key, value in state.items() if bool(value.isfinite().all())}
    missing = load_state(network, dict(state), f"torchvision/{name}@{member.name}", notes)
    source = Source(network.eval(), f"torchvision/{name}@{member.name}", notes=tuple(notes), missing_head=missing)
    return _described(source, member)


def is_weights_file(text: str) -> bool:
    """Whether a text can only name a file of weights."""
    return text.endswith(_SUFFIXES) and ("@" not in text or Path(text).is_file())


def load_weights_file(text: str, weights: bool) -> Source:  # noqa: ARG001 - the file has to be read to see what it is
    """The classifier of torchvision whose tensors, or whose features' tensors, a file holds that names none.

    Raises:
        ConversionError: the file is a part of a checkpoint folder.
        CheckpointError: it is missing, damaged, fits no network or several.
    """
    if (Path(text).parent / MANIFEST).is_file():
        raise ConversionError(f"{text}: belongs to a checkpoint folder. Give the folder: {Path(text).parent}")
    notes: list[str] = []
    state, names = read_state(text, notes)
    name = find_architecture(state, text)
    notes.append(f"the file names no network; its tensors fit torchvision/{name} and no other of torchvision's")
    loaded = network_with_weights(f"torchvision/{name}@{text}", partial(build_torchvision, name), state, names, notes)
    return _as_published(loaded, name, text)


def _as_published(source: Source, name: str, file: str) -> Source:
    """A network of a file with the classes and preprocessing of torchvision's weights, where it is their file.

    Such a file has the beginning of its SHA-256 in its name (``resnet18-f37072fd.pth``), and that is checked.
    """
    for member in torchvision.models.get_model_weights(name):
        digest = published_digest(Path(member.url).name)
        if digest is not None and Path(member.url).name == Path(file).name:
            if not file_sha256(Path(file)).startswith(digest):
                raise CheckpointError(f"{file}: is not torchvision's file of that name, or damaged. Fetch it again.")
            return _described(source, member)
    return source


def _described(source: Source, member: Any) -> Source:
    """A network of torchvision's weights with what torchvision says of them."""
    transforms, license_name = member.transforms(), member.meta.get("license")
    expected = Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))
    source = replace(source, preprocessing=expected, license=license_name)
    if source.headless:
        return source
    return replace(source, class_names=source.class_names or list(member.meta["categories"]), task=Task.MULTICLASS)


def find_architecture(state: State, file: str) -> str:
    """The one classifier of torchvision that a state dict fits, after ``match_keys``, with any number of classes.

    Where none fits, the one whose features it holds. Only networks with as many parameters as the file are built, and
    they without memory (on the meta device). All others are tried (once per process built, in seconds) only where none
    of these fits.

    Args:
        state: names -> tensors.
        file: how the error is to name it.

    Raises:
        CheckpointError: none fits (names the nearest), or several do (names them).
    """
    likely = _with_as_many_parameters(state)
    fitting = [name for name in likely if _fits(state, name)]
    rest = [] if fitting else [name for name in torchvision_names() if name not in likely]
    fitting += [name for name in rest if _may_fit(state, name) and _fits(state, name)]
    fitting = fitting or [name for name in torchvision_names() if _is_headless(state, name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"{file}: fits several networks: {', '.join(fitting)}. Name the right one: torchvision/{fitting[0]}@{file}"
        )
    near = _nearest(state)
    count = f"{len(state)} tensor{'s' * (len(state) != 1)}"
    nearest = ", ".join(f"{name} ({share} of {total} tensors fit)" for name, share, total in near) or "none"
    raise CheckpointError(
        f"{file}: its {count} fit none of torchvision's classifiers. Nearest: {nearest}. Name the network to see"
        f" what does not fit: torchvision/NAME@{file} or timm/NAME@{file}; or build it and pass it in Python."
    )


def _with_as_many_parameters(state: State) -> list[str]:
    """Classifiers whose published number of parameters is the file's, were its classes the published thousand."""
    total = sum(value.numel() for key, value in state.items() if not key.endswith(_BUFFERS))
    shapes = {tuple(value.shape[:2]) for value in state.values() if value.dim() > 1 and value[0, 0].numel() == 1}
    totals = {total - classes * (width + 1) + _CLASSES * (width + 1) for classes, width in shapes}
    return [name for name in torchvision_names() if _published_size(name) in totals]


@cache
def _published_size(name: str) -> int:
    weights = torchvision.models.get_model_weights(name)
    return int(next(iter(weights)).meta["num_params"])


class Weightless(TorchFunctionMode):
    """Parameters without memory; unlike in the meta device's own context, plans of sizes can be computed (RegNet)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Send what allocates parameters to the meta device."""
        options = dict(kwargs or {})
        if func in _ALLOCATING:
            options["device"] = "meta"
        return func(*args, **options)


@cache
def _skeleton(name: str, classes: int = _CLASSES) -> dict[str, Tensor]:
    """The state dict of a classifier, without values."""
    with Weightless():
        state: dict[str, Tensor] = build_torchvision(name, num_classes=classes).state_dict()
    return state


def _may_fit(state: State, name: str) -> bool:
    """Whether all kernels and matrices but those to the classes have their like in the file."""
    needed_shapes = [
        tuple(value.shape) for value in _skeleton(name).values() if value.dim() > 1 and len(value) != _CLASSES
    ]
    return set(needed_shapes) <= {tuple(value.shape) for value in state.values()}


def _fits(state: State, name: str) -> bool:
    target = _skeleton(name)
    classes = count_classes(state, target)
    target = target if classes is None else _skeleton(name, classes)
    return not any(misfits(match_keys(state, target), target))


def _is_headless(state: State, name: str) -> bool:
    target = _skeleton(name)
    if len(state) >= len(target):
        return False
    return bool(missing_head(match_keys(state, target), target))


def _nearest(state: State) -> list[tuple[str, int, int]]:
    """The three classifiers that share the most named tensors with the file: name, how many, of how many."""

    def shared(name: str) -> tuple[str, int, int]:
        target = _skeleton(name)
        matched = match_keys(state, target)
        return name, len(target) - len(set(_flat(misfits(matched, target))) & target.keys()), len(target)

    scores = [shared(name) for name in torchvision_names()]
    best = sorted((score for score in scores if score[1]), key=lambda score: (-score[1] / score[2], score[0]))
    return best[:3]


def _flat(lists: Iterable[list[str]]) -> list[str]:
    return [key for keys in lists for key in keys]
