"""Places among even thresholds, against NumPy's search, on both sides of every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from camify.metrics.functional import thresholds
from camify.metrics.functional.bins import Steps

COUNTS = [1, 2, 3, 7, 19, 100, 255, 364, 372, 1000, 2999, 32767, 32768]  # no factor fits 364 and 372 hundredths


def kinds(count: int) -> dict[str, np.ndarray]:
    single, double = thresholds(count).numpy(), np.arange(count) * (1 / count)
    return {"float32": single, "float64": double, "to 1": np.append(double, 1.0)}


@pytest.mark.parametrize("kind", ["float32", "float64", "to 1"])
@pytest.mark.parametrize("count", COUNTS)
def test_places_are_those_of_a_search(count, kind):
    edges = kinds(count)[kind]
    steps = Steps(edges)
    for dtype in (np.float32, np.float64):
        near = edges.astype(dtype)
        values = [near, *(np.nextafter(near, dtype(to)) for to in (0, 1)), np.random.default_rng(0).random(999, dtype)]
        values = np.concatenate([*values, np.array([0, 1], dtype)]).clip(0, 1)
        expected = np.searchsorted(edges.astype(np.float64), values.astype(np.float64), side="right") - 1
        np.testing.assert_array_equal(steps.last_reached(values), expected)
        images = np.tile(values, 6).reshape(2, 3, -1)[..., ::-1]  # not contiguous either
        np.testing.assert_array_equal(steps.last_reached(images), np.tile(expected, 6).reshape(2, 3, -1)[..., ::-1])


def test_both_ways_are_taken():
    """Or else the test above would say nothing of one of them."""
    assert Steps(kinds(1000)["to 1"]).factor is not None
    assert Steps(kinds(364)["to 1"]).factor is None
    assert Steps(kinds(100)["float32"]).factor is None
