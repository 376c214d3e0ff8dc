"""Which of many evenly spaced thresholds a pixel reaches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["last_reached"]


def last_reached(values: NDArray[np.floating], edges: NDArray[np.floating]) -> NDArray[np.int32]:
    """Index of the last edge that each value in [0, 1] reaches, as ``searchsorted(edges, values, "right") - 1``.

    Args:
        values: any shape, float32 or float64.
        edges: sorted, beginning with 0 and one step apart but for rounding; all else above 1.
    """
    flat = values.ravel()
    scale = 1 / float(edges[1])
    exact = flat * flat.dtype.type(scale)
    # Only next to an edge may rounding have put a value on its wrong side: there the two places differ.
    rounding = max(np.finfo(flat.dtype).eps, np.finfo(edges.dtype).eps)
    slack = flat.dtype.type((scale + 1) * rounding)
    place: NDArray[np.int32] = (exact + slack).astype(np.int32)
    exact -= slack
    unsure = np.flatnonzero(place != exact.astype(np.int32))
    reached = np.minimum(place[unsure], len(edges) - 2)
    place[unsure] = reached - (edges[reached] > flat[unsure])
    return place.reshape(values.shape)
