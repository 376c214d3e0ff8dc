import pytest
import torch

from camify.training.schedule import lr_factor


def test_cosine_equals_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(51):
        assert lr_factor(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < 50:
            scheduler.step()


def test_warm_up_is_linear_and_starts_where_the_group_starts():
    peak = [lr_factor(step, 10_000, warmup=4, start=10) for step in range(10, 16)]
    assert peak == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], abs=1e-4)
    assert all(lr_factor(step, 10_000, warmup=4, start=10) == 0.0 for step in range(10))


def test_the_end_is_zero_and_stays_there():
    assert lr_factor(100, 100) == pytest.approx(0.0)
    assert lr_factor(140, 100) == pytest.approx(0.0)
