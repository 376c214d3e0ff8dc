"""Which of many evenly spaced thresholds a pixel reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Places", "Steps", "least_kind"]

Places = NDArray[np.signedinteger[Any]]
"""16 bits instead of 32, half the memory, where the numbers are small enough."""


def least_kind(most: int) -> type[np.int16] | type[np.int32] | type[np.int64]:
    """For whole numbers up to that: less memory, and NumPy sorts those of 16 bits by their digits.

    Example:
        >>> least_kind(32767).__name__, least_kind(32768).__name__
        ('int16', 'int32')
    """
    return np.int16 if most < 1 << 15 else np.int32 if most < 1 << 31 else np.int64


class Steps:
    """Thresholds from 0 to at most 1, in even steps but for rounding: which one a value in [0, 1] reaches last.

    The whole part of value times factor. For float32 values one factor may be right for all of them: the product and
    the place both grow with the value, and a place changes at its threshold alone, so that they are one everywhere
    where they are one for the nearest values on both sides of each threshold, which is tried. Else two factors, a few
    roundings below and above, put no value too high and none too low, and where their products differ the values are
    compared with their thresholds.

    Args:
        thresholds: float32 or float64, in order.

    Example:
        >>> steps = Steps(np.array([0, 1 / 3, 2 / 3]))
        >>> steps.last_reached(np.array([0.0, 0.3, 0.7, 1.0], dtype=np.float32))
        array([0, 0, 2, 2], dtype=int16)
    """

    def __init__(self, thresholds: NDArray[np.floating]) -> None:
        self.thresholds = thresholds
        self.last = len(thresholds) - 1
        self.kind = least_kind(len(thresholds))
        self.factor = self._factor() if self.last else None

    def _factor(self) -> float | None:
        above = self.thresholds[1:].astype(np.float32)
        above = np.where(above < self.thresholds[1:], np.nextafter(above, np.float32(2)), above)
        below = np.nextafter(above, np.float32(0))
        number = np.arange(1, len(above) + 1)
        factor = float((number / above.astype(np.float64)).max() + (number / below.astype(np.float64)).min()) / 2
        whole = np.empty((2, len(above)), self.kind)
        _product(np.stack([below, above]), factor, whole)
        return factor if np.array_equal(whole, [number - 1, number]) else None

    def last_reached(self, values: NDArray[np.floating]) -> Places:
        """The place of the last threshold that each value (..., H, W) reaches: ``searchsorted(..., "right") - 1``."""
        places = np.empty(values.shape, self.kind)
        if values.ndim <= 2:
            self._reach(values, places)
            return places
        image = (-1, *values.shape[-2:])
        for own, into in zip(values.reshape(image), places.reshape(image), strict=True):
            self._reach(own, into)  # one by one: what an image takes stays in the cache
        return places

    def _reach(self, values: NDArray[np.floating], into: Places) -> None:
        if self.factor is None or values.dtype != np.float32:
            self._compared(values.ravel(), into.reshape(-1))
        else:
            _product(values, self.factor, into)
            if self.factor >= self.last + 1:
                np.minimum(into, self.last, out=into)

    def _compared(self, values: NDArray[np.floating], into: Places) -> None:
        scale, kind = self.last / float(self.thresholds[-1] or 1), values.dtype.type
        slack = 4 * max(float(np.finfo(array.dtype).eps) for array in (values, self.thresholds))
        np.multiply(values, kind(scale * (1 + slack)), out=into, casting="unsafe")
        least = np.multiply(values, kind(scale * (1 - slack)), out=np.empty_like(into), casting="unsafe")
        unsure = np.flatnonzero(least != into)
        reached = np.minimum(into[unsure], self.last)
        into[unsure] = reached - (self.thresholds[reached] > values[unsure])


def _product(values: NDArray[np.float32], factor: float, into: Places) -> None:
    np.multiply(values, factor, out=into, dtype=np.float64, casting="unsafe")
