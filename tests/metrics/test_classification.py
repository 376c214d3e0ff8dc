"""Confusion and calibration against torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix

from camify.metrics.functional import calibration_bins, confused_pairs, expected_calibration_error


@pytest.mark.parametrize("count", [2, 7, 200])
def test_pairs_are_the_confusion_matrix(count):
    labels, predicted = torch.randint(count, (2, 500))
    matrix = torch.zeros(count, count, dtype=torch.long)
    for true, guess, images in confused_pairs(labels, predicted).tolist():
        assert images > 0
        matrix[true, guess] = images
    assert (matrix == multiclass_confusion_matrix(predicted, labels, num_classes=count)).all()


def test_of_no_image():
    nothing = torch.zeros(0, dtype=torch.long)
    assert confused_pairs(nothing, nothing).shape == (0, 3)
    bins = calibration_bins(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert bins.sum() == 0
    assert expected_calibration_error(bins) != expected_calibration_error(bins), "NaN"


@pytest.mark.parametrize("bins", [2, 10, 15])
def test_calibration_error(bins):
    confidences = torch.cat([torch.rand(1000), torch.tensor([0.0, 0.5, 1.0, 0.1, 0.2])])
    right = torch.rand(1005) < confidences**2
    expected = binary_calibration_error(confidences, right.long(), n_bins=bins, norm="l1")
    parts = [calibration_bins(confidences[part], right[part], bins) for part in (slice(0, 300), slice(300, None))]
    assert expected_calibration_error(sum(parts)) == pytest.approx(float(expected), abs=1e-6)


def test_what_is_not_known_does_not_count():
    bins = calibration_bins(torch.tensor([0.9, torch.nan]), torch.tensor([True, True]))
    assert bins[:, 0].sum() == 1
