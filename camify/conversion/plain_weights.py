"""Weights that a parametrization computes at every forward, made plain ones: files of networks hold plain layers."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..eval_mode import eval_mode

__all__ = ["with_plain_weights"]

_NAMED = 4  # layers in a note


@torch.no_grad()
def with_plain_weights(model: nn.Module) -> tuple[nn.Module, str]:
    """A network whose layers hold the values of their computed weights, and a note; itself where none is computed.

    Those of ``torch.nn.utils.parametrizations`` (weight norm, spectral norm, orthogonal) and of one's own. The network
    that is given stays as it is: the layers of a copy are changed.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> plain, _ = with_plain_weights(nn.Sequential(layer))
        >>> type(plain[0]).__name__, bool((plain[0].weight == layer.weight).all())
        ('Linear', True)
    """
    if not any(parametrize.is_parametrized(layer) for layer in model.modules()):
        return model, ""
    model = copy.deepcopy(model)
    kinds = dict[str, str]()
    with eval_mode(model):  # spectral norm counts its forwards in training
        for name, layer in model.named_modules():
            if parametrize.is_parametrized(layer):
                kinds[name] = _made_plain(layer)
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(kinds.items())[:_NAMED])
    more = f" and {len(kinds) - _NAMED} more" if len(kinds) > _NAMED else ""
    return (
        model,
        f"Weights that were computed at every forward are plain ones in the copy, of the same values: {shown}{more}.",
    )


def _made_plain(layer: nn.Module) -> str:
    """Put the values in the place of the computed tensors of a layer, in place; how they were computed.

    ``parametrize.remove_parametrizations`` would change the class, which the copy shares with its original.
    """
    steps = dict(layer.parametrizations.items())  # type: ignore[operator,union-attr]
    values = {name: getattr(layer, name).detach().clone() for name in steps}
    trainable = {name: any(parameter.requires_grad for parameter in own.parameters()) for name, own in steps.items()}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value, requires_grad=trainable[name]))
    return ", ".join(dict.fromkeys(type(own[0]).__name__.strip("_") for own in steps.values()))
