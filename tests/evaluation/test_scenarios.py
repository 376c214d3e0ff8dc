"""Scenarios from boxes, and what is done to pictures."""

from __future__ import annotations

import pytest
import torch

from camify.evaluation.scenarios import (
    absent_classes,
    mirrored,
    scenario_of,
)
from camify.metrics.functional import shifted, step_of


@pytest.mark.parametrize(
    ("boxes", "scenario"),
    [
        (None, "boxes unknown"),
        ([], "boxes unknown"),
        ([[0, 0, 50, 50]], "single object"),
        ([[0, 0, 20, 24]], "small object"),  # 480 of 10,000 pixels
        ([[0, 0, 20, 25]], "single object"),  # exactly 5 %
        ([[0, 0, 5, 5], [50, 50, 60, 60]], "several instances"),
    ],
)
def test_boxes_tell_the_scenario(boxes, scenario):
    boxes = None if boxes is None else torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    assert scenario_of(boxes, 100, 100) == scenario


def test_the_absent_class_is_the_least_probable_of_those_not_there():
    logits = torch.tensor([[3.0, -2, 0, -1], [0, 1, 2, 3]])
    assert absent_classes(logits, [0, 3], [set(), {3}]).tolist() == [1, 0]
    assert absent_classes(logits, [0, 3], [{1}, {3, 0}]).tolist() == [3, 1]
    assert (
        absent_classes(logits, [1, 2], [{0, 1, 2, 3}] * 2).tolist()
        == absent_classes(logits, [1, 2], [set()] * 2).tolist()
    )
    two_sided = torch.tensor([[4.0, -4.0], [-1.0, 1.0]])  # of one logit
    assert absent_classes(two_sided, [0, 1], [set(), {0, 1}]).tolist() == [1, 0]


def test_mirroring_twice_changes_nothing():
    images = torch.rand(2, 3, 4, 5)
    assert torch.equal(mirrored(mirrored(images)), images)
    assert torch.equal(mirrored(images)[..., 0], images[..., -1])


def test_a_shifted_image_overlaps_with_itself():
    images = torch.rand(2, 3, 32, 48)
    moved = shifted(images)
    assert step_of(32, 48) == (4, 6)
    assert moved.shape == images.shape
    assert torch.equal(images[..., :-4, :-6], moved[..., 4:, 6:])
    assert torch.equal(moved[..., 4:, 0], images[..., : 32 - 4, 0])  # the edge is repeated


def test_a_shift_is_at_least_a_pixel():
    assert step_of(3, 3) == (1, 1)
