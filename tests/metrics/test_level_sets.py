"""Boxes of all level sets against labelling every level on its own."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from camify.metrics.functional import LevelBoxes, level_set_boxes, level_sets

EIGHT, FOUR = np.ones((3, 3)), None


@pytest.fixture(autouse=True, params=["by meeting", "by level"])
def way(request, monkeypatch):
    """Few maxima are followed meeting by meeting, many level by level: every test sees both."""
    monkeypatch.setattr(level_sets, "_MANY", 1 << 30 if request.param == "by meeting" else 0)


def box_of(slices, grow=0):
    rows, columns = slices
    return columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow


def searched(level, count, holes):
    """(level, x0, y0, x1, y1) of every component, and of the rim of every hole, one level after the other."""
    found = []
    for number in range(count):
        labels, _ = scipy.ndimage.label(level >= number, structure=EIGHT)
        found += [(number, *box_of(slices)) for slices in scipy.ndimage.find_objects(labels)]
        if holes and number:
            labels, _ = scipy.ndimage.label(np.pad(level < number, 1, constant_values=True), structure=FOUR)
            inside = labels[1:-1, 1:-1]
            for label, slices in enumerate(scipy.ndimage.find_objects(inside), start=1):
                if slices is not None and label != labels[0, 0]:
                    found.append((number, *box_of(slices, grow=1)))
    return sorted(found)


def ours(heat, level, count, holes, **options):
    found = level_set_boxes(heat, level, count, holes=holes, **options)
    return sorted((int(number), *map(int, box)) for box, number in zip(found.boxes, found.levels, strict=True))


def kinds(rng, height, width):
    noise = rng.random((height, width)).astype(np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, 1.5)
    return [noise, smooth, (noise * 3).round() / 3, (noise > 0.5).astype(np.float32), np.zeros_like(noise)]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_every_box_of_every_level_is_found(seed, holes):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 26, 2)
    count = int(rng.integers(1, 24))
    for heat in kinds(rng, height, width):
        level = np.minimum((heat * count).astype(int), count - 1)
        assert ours(heat, level, count, holes) == searched(level, count, holes)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_every_small_plateau_picture(level):
    level = level.astype(int)
    assert ours(level.astype(np.float32), level, 4, holes=True) == searched(level, 4, holes=True)


@pytest.mark.parametrize("holes", [False, True])
def test_several_maps_at_once_have_the_boxes_of_each(holes):
    rng = np.random.default_rng(0)
    for count in (1, 2, 9):
        heats = np.stack([heat for _ in range(3) for heat in kinds(rng, *rng.integers(7, 8, 2))])
        level = np.minimum((heats * count).astype(int), count - 1)
        options = {} if holes else {"units": [level]}
        found = level_set_boxes(heats, level, count, holes=holes, **options)
        maps, numbers = np.divmod(found.levels, count)
        assert np.all(np.diff(found.levels) >= 0)
        for place, (heat, own) in enumerate(zip(heats, level, strict=True)):
            alone = level_set_boxes(heat, own, count, holes=holes, **({} if holes else {"units": [own]}))
            here = maps == place
            rows = [
                sorted(
                    zip(levels.tolist(), *item.boxes.T.tolist(), item.units.tolist(), item.holes.tolist(), strict=True)
                )
                for item, levels in (
                    (LevelBoxes(*(part[here] for part in found)), numbers[here]),
                    (alone, alone.levels),
                )
            ]
            assert rows[0] == rows[1]
            assert [row[:5] for row in rows[0]] == searched(own, count, holes)


def test_units_are_the_pixels_of_a_component_and_holes_are_counted():
    rng = np.random.default_rng(0)
    for heat in kinds(rng, 21, 17):
        level = np.minimum((heat * 8).astype(int), 7)
        found = level_set_boxes(heat, level, 8, units=[level])
        counted = sorted(zip(found.levels.tolist(), found.units.tolist(), found.holes.tolist(), strict=True))
        expected = []
        for number in range(8):
            labels, count = scipy.ndimage.label(level >= number, structure=EIGHT)
            for label in range(1, count + 1):
                around = np.pad(labels != label, 1, constant_values=True)
                expected.append((number, int((labels == label).sum()), scipy.ndimage.label(around, FOUR)[1] - 1))
        assert counted == sorted(expected)
        assert np.all(np.diff(found.levels) >= 0)


def test_a_unit_below_its_level_is_the_right_neighbors():
    level = np.array([[0, 2, 2, 0, 1]])
    found = level_set_boxes(level.astype(float), level, 3, units=[np.array([[2, 2, 0, 1, 0]])])
    rows = zip(found.levels.tolist(), map(tuple, found.boxes.tolist()), found.units.tolist(), strict=True)
    assert sorted(rows) == [
        (0, (0, 0, 5, 1), 5), (1, (1, 0, 3, 1), 2), (1, (4, 0, 5, 1), 1), (2, (1, 0, 3, 1), 2),
    ]  # fmt: skip


def test_more_maxima_times_levels_than_sixteen_bits_can_number():
    heat = np.random.default_rng(2).random((60, 60)).astype(np.float32)
    level = (heat * 200).astype(int)
    assert ours(heat, level, 200, holes=False) == searched(level, 200, holes=False)


def test_a_spiral_is_followed_to_its_end():
    """The longest way from a pixel to its maximum that a picture of this size allows."""
    level = np.zeros((61, 61), int)
    y = x = 0
    dy, dx, value = 0, 1, 0
    seen = set()
    while (y, x) not in seen:
        seen.add((y, x))
        value += 1
        level[y, x] = value
        ahead = [(y + k * dy, x + k * dx) for k in (1, 2)]
        if not all(0 <= a < 61 and 0 <= b < 61 for a, b in ahead[:1]) or ahead[1] in seen:
            dy, dx = dx, -dy
        y, x = y + dy, x + dx
        if not (0 <= y < 61 and 0 <= x < 61):
            break
    squeezed = np.minimum(level // 40, 30)
    assert ours(level.astype(np.float64), squeezed, 31, holes=True) == searched(squeezed, 31, holes=True)


def test_large_pictures_and_views():
    heat = np.random.default_rng(1).random((150, 90)).astype(np.float32).T
    level = (heat * 5).astype(int)
    assert ours(heat, level, 5, holes=True) == searched(level, 5, holes=True)
