"""The classes of a network that is explained: how many, what they are called, which one is meant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..data import Preprocessing
from ..errors import ConfigError
from ..methods import observe

__all__ = ["class_index", "count_classes", "numbered"]


def count_classes(model: nn.Module, preprocessing: Preprocessing) -> int:
    """The number of classes, seen by running the network once."""
    image = torch.zeros(1, len(preprocessing.mean), preprocessing.size, preprocessing.size)
    with observe(model, image.to(next(model.parameters()))) as forward:
        return forward.logits.shape[1]


def numbered(count: int) -> list[str]:
    """Names of classes that have none."""
    return [f"class {index}" for index in range(count)]


def class_index(given: str, names: Sequence[str], option: str) -> int:
    """The class of a name, or of a number.

    Raises:
        ConfigError: there is none; says which there are.
    """
    if given in names:
        return list(names).index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise ConfigError(f"{option} {given!r}: no such class. Known: {', '.join(names[:10])}.")
