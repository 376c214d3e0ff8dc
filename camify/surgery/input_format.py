"""What a network expects of its input: size and normalisation as a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["preprocessing_of"]


def preprocessing_of(size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """A record as of ``camify.data.Preprocessing.to_dict()``, without importing Lightning with ``camify.data``.

    Args:
        size: side of the input, pixels.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
    """
    return {
        "size": int(size),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "aspect": "not kept",
        "range": "0..1",
    }
