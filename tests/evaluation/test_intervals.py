"""Figures and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camify.evaluation.intervals import figure, localization_figures
from camify.metrics.functional import bootstrap_interval, bootstrap_means


def test_means_of_resampled_images_by_hand():
    values = torch.rand(7, 3, 2)
    means = bootstrap_means(values, resamples=20, seed=3)
    generator = torch.Generator().manual_seed(3)
    for mean in means:
        drawn = torch.randint(7, (7,), generator=generator)
        torch.testing.assert_close(mean, values[drawn].double().mean(0))


def test_chunks_do_not_change_the_draw(monkeypatch):
    from camify.metrics.functional import baselines

    values = torch.rand(11, 5) > 0.5
    whole = bootstrap_means(values, resamples=30)
    monkeypatch.setattr(baselines, "_MOST_WEIGHTS", 40)
    monkeypatch.setattr(baselines, "_MOST_VALUES", 15)
    torch.testing.assert_close(bootstrap_means(values, resamples=30), whole)


def test_a_figure_is_that_of_the_known_values():
    values = torch.tensor([0.0, 1.0, float("nan"), 1.0])
    one = figure(values, seed=2)
    assert (one.value, one.count) == (pytest.approx(2 / 3), 3)
    assert (one.low, one.high) == bootstrap_interval(values, seed=2)
    assert np.isnan(figure(values[2:3]).value)
    assert figure(values[2:3]).count == 0


def rows_of(levels):
    return {
        "all": levels, "largest": levels, "pointing_15px": torch.zeros(len(levels)), "energy": torch.zeros(len(levels)),
    }  # fmt: skip


def test_every_resample_chooses_its_own_threshold_and_size():
    """What is over the center box: by hand, on the same resamples."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 4, (30, 100), generator=generator).to(torch.uint8)
    center = torch.randint(0, 4, (30, 400), generator=generator).to(torch.uint8)
    ranks = torch.randint(0, 7, (30,), generator=generator)
    found = localization_figures(rows_of(levels), rows_of(center), ranks, torch.ones(30, dtype=torch.bool), seed=5)
    draws, gains, firsts, seconds = torch.Generator().manual_seed(5), [], [], []
    for _ in range(1000):
        drawn = torch.randint(30, (30,), generator=draws)
        hits = (levels[drawn] >= 2).double().mean(0)
        gains.append(float(hits.max() - (center[drawn] >= 2).double().mean(0).max()))
        best = int(hits.argmax())
        firsts.append(float(((levels[drawn, best] >= 2) & (ranks[drawn] < 1)).double().mean()))
        seconds.append(np.mean([float((levels[drawn] > index).double().mean(0).max()) for index in range(3)]))
    for name, figures in (("over_center_box", gains), ("top1_loc", firsts), ("max_box_acc_v2", seconds)):
        wanted = np.quantile(figures, [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx(tuple(wanted), abs=1e-9), name
        assert found[name].low < found[name].high


def test_only_the_images_kept_count():
    levels = torch.zeros(4, 100, dtype=torch.uint8)
    levels[1:, 30] = 3
    kept = torch.tensor([False, True, True, True])
    found = localization_figures(rows_of(levels), rows_of(levels), torch.zeros(4), kept)
    assert found["max_box_acc_v1"].value == 1
    assert found["threshold"].value == pytest.approx(0.3)
    assert found["over_center_box"].value == 0
