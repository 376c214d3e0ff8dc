"""Which of many evenly spaced thresholds a pixel reaches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["last_reached"]


def last_reached(values: NDArray[np.floating], edges: NDArray[np.floating]) -> NDArray[np.intp]:
    """Index of the last edge that each value in [0, 1] reaches, as ``searchsorted(edges, values, "right") - 1``.

    Args:
        values: any shape, float32 or float64.
        edges: sorted, beginning with 0 and one step apart but for rounding; all else above 1.
    """
    scale = 1 / float(edges[1])
    exact = values * values.dtype.type(scale)
    place = exact.astype(np.intp)
    # Only next to an edge may rounding have put a value on its wrong side.
    rounding = max(np.finfo(values.dtype).eps, np.finfo(edges.dtype).eps)
    apart = np.rint(exact)
    apart -= exact
    np.abs(apart, out=apart)
    unsure = np.nonzero(apart <= (scale + 1) * rounding)
    value, found = values[unsure], place[unsure]
    found = np.minimum(found, len(edges) - 2)
    found += edges[found + 1] <= value
    found -= edges[found] > value
    place[unsure] = found
    return place
