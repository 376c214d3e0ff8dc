"""Classifiers of torchvision: built by name, and found by the tensors of a weights file that names none."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError
from .state_dicts import State, count_classes, match_keys, misfits

__all__ = ["build_torchvision", "find_architecture", "torchvision_names"]

_CLASSES = 1000
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


def find_architecture(state: State, file: str) -> str:
    """The one classifier of torchvision that a state dict fits, after ``match_keys``, with any number of classes.

    Only networks with as many parameters as the file are built, and they without memory (on the meta device). All
    others are tried (once per process built, in seconds) only where none of these fits.

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


class _Weightless(TorchFunctionMode):
    """Parameters without memory; unlike in the meta device's own context, plans of sizes can be computed (RegNet)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Send what allocates parameters to the meta device."""
        options = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            options["device"] = "meta"
        return func(*args, **options)


@cache
def _skeleton(name: str, classes: int = _CLASSES) -> dict[str, Tensor]:
    """The state dict of a classifier, without values."""
    with _Weightless():
        state: dict[str, Tensor] = build_torchvision(name, num_classes=classes).state_dict()
    return state


def _may_fit(state: State, name: str) -> bool:
    """Whether all kernels and matrices but those to the classes have their like in the file."""
    wanted = [tuple(value.shape) for value in _skeleton(name).values() if value.dim() > 1 and len(value) != _CLASSES]
    return set(wanted) <= {tuple(value.shape) for value in state.values()}


def _fits(state: State, name: str) -> bool:
    target = _skeleton(name)
    classes = count_classes(state, target)
    target = target if classes is None else _skeleton(name, classes)
    return not any(misfits(match_keys(state, target), target))


def _nearest(state: State) -> list[tuple[str, int, int]]:
    """The three classifiers that share the most named tensors with the file: name, how many, of how many."""

    def shared(name: str) -> tuple[str, int, int]:
        target = _skeleton(name)
        found = match_keys(state, target)
        return name, len(target) - len(set(_flat(misfits(found, target))) & target.keys()), len(target)

    scores = [shared(name) for name in torchvision_names()]
    best = sorted((score for score in scores if score[1]), key=lambda score: (-score[1] / score[2], score[0]))
    return best[:3]


def _flat(lists: Iterable[list[str]]) -> list[str]:
    return [key for keys in lists for key in keys]
