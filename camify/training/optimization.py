"""The optimiser of a run: parameters in named groups, and how fast each of them learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..model import CAMNet

__all__ = ["build_optimizer", "check_options"]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be trained with.

    Raises:
        ConfigError: names the option.
    """
    for name, choices in (("optimizer", ("sgd", "adamw")), ("schedule", ("cosine", "step"))):
        if options[name] not in choices:
            raise ConfigError(f"{name}={options[name]!r} is unknown. Choose {' or '.join(choices)}.")
    for name in ("lr", "head_lr_factor", "bias_lr_factor"):
        if options[name] <= 0:
            raise ConfigError(f"{name}={options[name]} must be positive.")
    for name in ("momentum", "weight_decay", "warmup_epochs", "freeze_epochs", "label_smoothing"):
        if options[name] < 0:
            raise ConfigError(f"{name}={options[name]} must not be negative.")
    if options["nesterov"] and options["optimizer"] == "sgd" and options["momentum"] == 0:
        raise ConfigError("nesterov=True needs a momentum. Give momentum, or nesterov=False.")
    drops = options["lr_drops"]
    if any(not 0 < drop < 1 for drop in drops) or bool(drops) != (options["schedule"] == "step"):
        raise ConfigError(
            f"lr_drops={drops} with schedule={options['schedule']!r}: give schedule='step' and fractions of the"
            " training in (0, 1), or schedule='cosine' and none."
        )


def build_optimizer(model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """All parameters in groups named ``features`` and ``head``; biases apart where they learn in another way.

    Raises:
        ConfigError: a layer that is to learn at the head's rate does not exist.
    """
    groups: dict[str, dict[str, Any]] = {}
    apart = options["bias_lr_factor"] != 1 or not options["decay_biases"]
    fast = _fast_parameters(model, options["fast_layers"])
    head = {id(p) for p in model.parameter_groups()["head"]} if isinstance(model, CAMNet) else set()
    for name, parameter in model.named_parameters():
        in_head, bias = id(parameter) in head | fast, apart and name.endswith("bias")
        group = groups.setdefault(f"{'head' if in_head else 'features'}{' biases' if bias else ''}", {"params": []})
        group["params"].append(parameter)
        group["lr"] = options["lr"]
        group["lr"] *= options["head_lr_factor"] if in_head else 1.0
        group["lr"] *= options["bias_lr_factor"] if bias else 1.0
        group["weight_decay"] = 0.0 if bias and not options["decay_biases"] else options["weight_decay"]
    named = [{**groups[name], "name": name} for name in sorted(groups)]
    if options["optimizer"] == "sgd":
        return torch.optim.SGD(named, momentum=options["momentum"], nesterov=options["nesterov"])
    return torch.optim.AdamW(named)


def _fast_parameters(model: nn.Module, layers: list[str]) -> set[int]:
    features = model.features if isinstance(model, CAMNet) else model
    modules = dict(features.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        known = ", ".join(name for name, _ in features.named_children())
        raise ConfigError(f"fast_layers: the features have no layer {unknown[0]!r}. They have {known}.")
    return {id(p) for name in layers for p in modules[name].parameters()}
