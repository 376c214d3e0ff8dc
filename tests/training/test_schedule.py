import pytest
import torch

from camify.training.schedule import lr_factor, one_cycle_factor


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


@pytest.mark.parametrize("total", [10, 57, 400])
def test_one_cycle_equals_torchs_scheduler(total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert one_cycle_factor(step, total) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert one_cycle_factor(step + 30, total + 30, start=30) == pytest.approx(one_cycle_factor(step, total))
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    assert one_cycle_factor(29, total + 30, start=30) == 0.0
    assert one_cycle_factor(total + 5, total) == one_cycle_factor(total - 1, total)
