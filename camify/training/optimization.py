"""The optimiser of a run: parameters in named groups, and how fast each of them learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..model import CAMNet

__all__ = ["build_optimizer", "check_options"]

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step", "one_cycle"),
    "task": (None, "multiclass", "multilabel", "binary"),
    "teacher": (None, "legacy"),
    "feature_cache": ("off", "memory", "disk"),
}
_POSITIVE = ("lr", "head_lr_factor", "bias_lr_factor", "feature_cache_gb")
_NOT_NEGATIVE = (
    "momentum",
    "weight_decay",
    "warmup_epochs",
    "freeze_epochs",
    "gradient_clip",
    "label_smoothing",
    "cutmix",
)
_PARAMETERS_PER_LAYER = 12  # of timm's own grouping of networks that bring none


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be trained with.

    Raises:
        ConfigError: names the option.
    """
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise ConfigError(f"{name}={options[name]!r} is unknown. Choose {' or '.join(map(str, choices))}.")
    for name in _POSITIVE:
        if options[name] <= 0:
            raise ConfigError(f"{name}={options[name]} must be positive.")
    for name in _NOT_NEGATIVE:
        if options[name] < 0:
            raise ConfigError(f"{name}={options[name]} must not be negative.")
    if not 0 <= options["hide_and_seek"] < 1 or not 0 < options["layer_decay"] <= 1:
        raise ConfigError(
            f"hide_and_seek={options['hide_and_seek']} must be in [0, 1), layer_decay={options['layer_decay']} in"
            " (0, 1]."
        )
    if options["nesterov"] and options["optimizer"] == "sgd" and options["momentum"] == 0:
        raise ConfigError("nesterov=True needs a momentum. Give momentum, or nesterov=False.")
    drops = options["lr_drops"]
    if any(not 0 < drop < 1 for drop in drops) or bool(drops) != (options["schedule"] == "step"):
        raise ConfigError(
            f"lr_drops={drops} with schedule={options['schedule']!r}: give schedule='step' and fractions of the"
            " training in (0, 1), or another schedule and none."
        )
    _check_together(options)


def _check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other."""
    changed = [name for name in ("cutmix", "hide_and_seek") if options[name]]
    if options["box_weight"] and options["cutmix"]:
        raise ConfigError("box_weight with cutmix: pasted patches hide objects whose boxes then are wrong. Drop one.")
    if options["feature_cache"] != "off":
        if changed:
            raise ConfigError(f"feature_cache with {changed[0]}: images change in every step. Leave one of them out.")
        if not options["freeze_epochs"]:
            raise ConfigError("feature_cache needs freeze_epochs: features that learn cannot be kept.")
    if options["cached_views"] is not None and (options["cached_views"] < 1 or options["feature_cache"] == "off"):
        raise ConfigError(
            f"cached_views={options['cached_views']} must be 1 or more, with feature_cache memory or disk."
        )
    needs_maps = [name for name in ("box_weight", "adl_layers", "clamp_weights") if options[name]]
    if options["head"] == "none" and (needs_maps or options["feature_cache"] != "off" or options["teacher"]):
        raise ConfigError("head='none' trains a network without maps: options of maps, cache and teacher do not apply.")


def build_optimizer(
    model: nn.Module, options: Mapping[str, Any], layers: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """All parameters in groups named ``features`` and ``head``; biases and layers apart where they learn otherwise.

    With ``layer_decay`` d the features' rate is d^(L - i) of its own in layer i of L (Bao et al. 2022, "BEiT", section
    4.1): timm's layers where ``layers`` says them, by the parameters' names, else groups of 12 parameters in order,
    which is how timm groups networks without a grouping.

    Raises:
        ConfigError: a layer that is to learn at the head's rate does not exist.
    """
    groups: dict[str, dict[str, Any]] = {}
    apart = options["bias_lr_factor"] != 1 or not options["decay_biases"]
    fast = _fast_parameters(model, options["fast_layers"])
    head = {id(p) for p in model.parameter_groups()["head"]} if isinstance(model, CAMNet) else set()
    slow = [name for name, p in model.named_parameters() if id(p) not in head | fast]
    scales = _scales(slow, options["layer_decay"], layers)
    for name, parameter in model.named_parameters():
        bias = apart and name.endswith("bias")
        role, scale = scales.get(name, ("head", 1.0))
        group = groups.setdefault(f"{role}{' biases' if bias else ''}", {"params": []})
        group["params"].append(parameter)
        group["lr"] = options["lr"] * scale
        group["lr"] *= options["head_lr_factor"] if role == "head" else 1.0
        group["lr"] *= options["bias_lr_factor"] if bias else 1.0
        group["weight_decay"] = 0.0 if bias and not options["decay_biases"] else options["weight_decay"]
    named = [{**groups[name], "name": name} for name in sorted(groups)]
    if options["optimizer"] == "sgd":
        return torch.optim.SGD(named, momentum=options["momentum"], nesterov=options["nesterov"])
    return torch.optim.AdamW(named)


def _scales(names: list[str], decay: float, layers: Mapping[str, int] | None) -> dict[str, tuple[str, float]]:
    """Group and factor of the rate of every parameter of the features."""
    if decay == 1:
        return dict.fromkeys(names, ("features", 1.0))
    known = {name: (layers or {}).get(name.removeprefix("features.")) for name in names}
    if None in known.values():
        known = {name: index // _PARAMETERS_PER_LAYER for index, name in enumerate(names)}
    order = sorted({layer for layer in known.values() if layer is not None})
    place = {layer: index for index, layer in enumerate(order)}
    return {
        name: (f"features {place[layer]:02d}", decay ** (len(order) - place[layer]))
        for name, layer in known.items()
        if layer is not None
    }


def _fast_parameters(model: nn.Module, layers: list[str]) -> set[int]:
    features = model.features if isinstance(model, CAMNet) else model
    modules = dict(features.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        known = ", ".join(name for name, _ in features.named_children())
        raise ConfigError(f"fast_layers: the features have no layer {unknown[0]!r}. They have {known}.")
    return {id(p) for name in layers for p in modules[name].parameters()}
