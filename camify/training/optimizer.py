"""The optimizer of a run: parameters in named groups, and how fast each of them learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .options import OptimizationOptions

__all__ = ["build_optimizer"]

_PARAMETERS_PER_LAYER = 12  # of timm's own grouping of networks that bring none


def build_optimizer(
    model: nn.Module,
    features: nn.Module,
    head: Sequence[nn.Parameter],
    options: OptimizationOptions,
    layers: Mapping[str, int] | None = None,
) -> torch.optim.Optimizer:
    """All parameters in groups named ``features`` and ``head``; biases and layers apart where they learn otherwise.

    With ``layer_decay`` d the features' rate is d^(L - i) of its own in layer i of L (Bao et al. 2022, "BEiT", section
    4.1): timm's layers where ``layers`` says them, by the parameters' names, else groups of 12 parameters in order,
    which is how timm groups networks without a grouping.

    Args:
        model: all that is trained.
        features: the part of it in which ``fast_layers`` are named.
        head: parameters that learn at the head's rate.
        options: settled ones.
        layers: number of the layer of every parameter of the features, where it is known.

    Raises:
        ConfigError: a layer that is to learn at the head's rate does not exist.
    """
    groups: dict[str, dict[str, Any]] = {}
    apart = options.bias_lr_factor != 1 or not options.decay_biases
    fast = {id(p) for p in head} | _fast_parameters(features, options.fast_layers)
    slow = [name for name, p in model.named_parameters() if id(p) not in fast]
    scales = _scales(slow, options.layer_decay, layers)
    for name, parameter in model.named_parameters():
        bias = apart and name.endswith("bias")
        role, scale = scales.get(name, ("head", 1.0))
        group = groups.setdefault(f"{role}{' biases' if bias else ''}", {"params": []})
        group["params"].append(parameter)
        group["lr"] = options.lr * scale
        group["lr"] *= options.head_lr_factor if role == "head" else 1.0
        group["lr"] *= options.bias_lr_factor if bias else 1.0
        group["weight_decay"] = 0.0 if bias and not options.decay_biases else options.weight_decay
    named_groups = [{**groups[name], "name": name} for name in sorted(groups)]
    if options.optimizer == "sgd":
        return torch.optim.SGD(named_groups, momentum=options.momentum, nesterov=options.nesterov)
    return torch.optim.AdamW(named_groups)


def _scales(names: list[str], decay: float, layers: Mapping[str, int] | None) -> dict[str, tuple[str, float]]:
    """Group and factor of the rate of every parameter of the features."""
    if decay == 1:
        return dict.fromkeys(names, ("features", 1.0))
    layer_of = {name: (layers or {}).get(name.removeprefix("features.")) for name in names}
    if None in layer_of.values():
        layer_of = {name: index // _PARAMETERS_PER_LAYER for index, name in enumerate(names)}
    order = sorted({layer for layer in layer_of.values() if layer is not None})
    place = {layer: index for index, layer in enumerate(order)}
    return {
        name: (f"features {place[layer]:02d}", decay ** (len(order) - place[layer]))
        for name, layer in layer_of.items()
        if layer is not None
    }


def _fast_parameters(features: nn.Module, layers: list[str]) -> set[int]:
    modules = dict(features.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        known = ", ".join(name for name, _ in features.named_children())
        raise ConfigError(f"fast_layers: the features have no layer {unknown[0]!r}. They have {known}.")
    return {id(p) for name in layers for p in modules[name].parameters()}
