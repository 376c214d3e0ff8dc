"""Augmentation of a batch that makes a network use more than an object's most telling part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError

__all__ = ["attention_dropout", "drop_attention", "hide_patches"]

_CELLS = (1 / 14, 1 / 7, 11 / 56, 1 / 4)  # of the side: 16, 32, 44 and 56 pixels of 224


def hide_patches(images_NCHW: Tensor, probability: float) -> Tensor:
    """Each image with cells of a random grid set to 0, the mean of normalized images.

    Singh & Lee 2017, "Hide-and-Seek", section 3.1. Each image draws its grid: none, or cells of 1/14, 1/7, 11/56 or
    1/4 of the side (the authors' 0, 16, 32, 44, 56 pixels of 224); then each cell is hidden with ``probability``,
    theirs 0.5.
    """
    count, _, height, width = images_NCHW.shape
    keep = torch.ones(count, 1, height, width, dtype=images_NCHW.dtype)
    for mask, choice in zip(keep, torch.randint(len(_CELLS) + 1, (count,)).tolist(), strict=True):
        if choice == 0:
            continue
        rows, columns = (_cell_of(size, _CELLS[choice - 1]) for size in (height, width))
        hidden = torch.rand(int(rows[-1]) + 1, int(columns[-1]) + 1) < probability
        mask[0, hidden[rows[:, None], columns[None]]] = 0
    return images_NCHW * keep.to(images_NCHW.device)


def _cell_of(size: int, share: float) -> Tensor:
    """The cell of every pixel of a side."""
    return torch.arange(size) // max(1, round(size * share))


def attention_dropout(features_NCHW: Tensor, drop_rate: float = 0.75, gamma: float = 0.9) -> Tensor:
    """A feature map times its own attention, or, with probability ``drop_rate``, without its most attended cells.

    Choe & Shim 2019, "Attention-based Dropout Layer for Weakly Supervised Object Localization", section 3: the
    attention is the mean over channels; the importance map is its sigmoid; the drop mask is 0 where the attention
    exceeds ``gamma`` times the image's largest. One of the two is drawn per batch, as in the authors' code; no gradient
    flows through either.
    """
    attention = features_NCHW.detach().mean(1, keepdim=True)
    if float(torch.rand(())) >= drop_rate:
        return features_NCHW * attention.sigmoid()
    return features_NCHW * (attention <= gamma * attention.amax((2, 3), keepdim=True))


def drop_attention(features: nn.Module, layers: Sequence[str], drop_rate: float, gamma: float) -> list[RemovableHandle]:
    """Attention-based dropout behind the named layers, while these are in training mode, until the hooks are removed.

    Raises:
        ConfigError: there is no such layer, or it is not run as a step of its own, once per image.
    """
    for name in layers:
        _check_layer(features, name)
    hook = _hook(drop_rate, gamma)
    return [features.get_submodule(name).register_forward_hook(hook) for name in layers]


def _check_layer(features: nn.Module, name: str) -> None:
    modules = dict(features.named_modules())
    if isinstance(features, fx.GraphModule):  # runs its graph's layers; those that only hold others are not called
        steps = Counter(str(node.target) for node in features.graph.nodes if node.op == "call_module")
        usable = [step for step, count in steps.items() if count == 1]
    else:
        usable = [module for module in modules if module]
    if name not in usable:
        near = [step for step in usable if step.startswith(f"{name}.")] or usable
        what = "is not a step of its own, run once" if name in modules else "does not exist in the features"
        raise ConfigError(f"adl_layers: {name!r} {what}. Choose for instance {near[-1]!r}.")


def _hook(drop_rate: float, gamma: float) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:  # noqa: ARG001 - torch's signature
        return attention_dropout(output, drop_rate, gamma) if module.training else None

    return hook
