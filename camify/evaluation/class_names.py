"""The classes of a network that is explained: how many, what they are called, which one is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import ConfigError, DataError
from ..methods import observe
from ..preprocessing import Preprocessing

__all__ = ["class_index", "count_classes", "numbered", "read_class_names"]


def count_classes(model: nn.Module, preprocessing: Preprocessing) -> int:
    """The number of classes, seen by running the network once."""
    image = torch.zeros(1, preprocessing.channels, preprocessing.height, preprocessing.width)
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


def read_class_names(file: str | Path, count: int | None = None) -> list[str]:
    """The lines of a text file (UTF-8): class names in the order of a network's logits.

    Raises:
        DataError: the file cannot be read, holds an empty line or a name twice, or not ``count`` names.
    """
    try:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as class names, a line each ({error}).") from error
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            wrong = f"{name!r} stands there twice" if name else "is empty"
            raise DataError(f"{file}, line {number}: {wrong}. Every class needs a name of its own.")
    if count is not None and len(names) != count:
        raise DataError(f"{file}: holds {len(names)} names, and the network has {count} classes.")
    return names
