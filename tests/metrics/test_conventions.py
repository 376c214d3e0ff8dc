"""What holds for every metric: states that add up over batches and processes, copies, precision, plots, examples."""

from __future__ import annotations

import copy
import pickle

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import camify.metrics
from camify.errors import DataError
from camify.metrics import functional
from camify.metrics.base import UnitIntervalMetric

from .two_processes import in_two_processes, needs_fork

COUNT = 12
NAMES = [name for name in camify.metrics.__all__ if name != "functional"]


def sample():
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    maps = nn.functional.interpolate(rand(COUNT, 1, 5, 5), (24, 30), mode="bilinear")[:, 0]
    others = (maps + 0.2 * rand(COUNT, 24, 30)).clamp(max=1)
    boxes = [torch.tensor([[2.0 + index, 3, 12 + index, 18], [0, 0, 9, 20.5]])[: index % 3] for index in range(COUNT)]
    labels = torch.randint(4, (COUNT,), generator=generator)
    masks = rand(COUNT, 24, 30) < 0.3
    return maps, others, boxes, labels, masks, rand(COUNT), rand(COUNT), rand(COUNT, 6), rand(COUNT, 4)


MAPS, OTHERS, BOXES, LABELS, MASKS, SCORES, MASKED, CURVES, LOGITS = sample()
CASES = {
    "ADCC": ({}, (SCORES, MASKED, MAPS, OTHERS)),
    "AverageDrop": ({}, (SCORES, MASKED)),
    "AverageIncrease": ({}, (SCORES, MASKED)),
    "Coherency": ({}, (MAPS, OTHERS)),
    "Complexity": ({}, (MAPS,)),
    "DeletionAUC": ({}, (CURVES,)),
    "EnergyPointingGame": ({}, (MAPS, BOXES)),
    "GridPointingGame": ({}, (MAPS, LABELS)),
    "InsertionAUC": ({}, (CURVES,)),
    "LocalizationAccuracy": ({}, (MAPS, BOXES, LOGITS, LABELS)),
    "MaxBoxAccuracy": ({"parity": "wsolevaluation"}, (MAPS, BOXES)),
    "PixelAveragePrecision": ({}, (MAPS, MASKS, ~MASKS & (MAPS > 0.9))),
    "PointingGame": ({"num_classes": 4}, (MAPS, BOXES, LABELS)),
}


def made(name):
    return getattr(camify.metrics, name)(**CASES[name][0])


def updated(name, part=slice(None)):
    metric = made(name)
    metric.update(*(one[part] for one in CASES[name][1]))
    return metric


def same(a, b):
    a, b = (one if isinstance(one, dict) else {"": one} for one in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, equal_nan=True)


def figures(found):
    found = found if isinstance(found, dict) else {"": found}
    return {name: one for name, one in found.items() if name not in ("count", "chance")}


def test_every_metric_has_a_case():
    assert sorted(CASES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_flags_and_figures(name):
    metric = updated(name)
    assert isinstance(metric, UnitIntervalMetric)
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    assert metric.higher_is_better is (name not in ("AverageDrop", "Complexity", "DeletionAUC"))
    for one in figures(metric.compute()).values():
        assert one.dtype == torch.float32
        seen = one[~one.isnan()]
        assert len(seen) or one.dim()
        assert ((seen >= 0) & (seen <= 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_states_are_whole_numbers_that_do_not_grow(name):
    metric = updated(name)
    sizes = {state: getattr(metric, state).shape for state in metric._defaults}
    metric.update(*CASES[name][1])
    for state, size in sizes.items():
        assert getattr(metric, state).dtype == torch.int64
        assert getattr(metric, state).shape == size
        assert metric._reductions[state](torch.tensor([[1, 2], [3, 4]])).tolist() == [4, 6]  # the sum over processes


@pytest.mark.parametrize("name", NAMES)
def test_nothing_gives_nan(name):
    metric = made(name)
    metric.update(*(one[:0] for one in CASES[name][1]))
    for one in figures(metric.compute()).values():
        assert one.isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_merged_halves_are_the_whole(name):
    whole = updated(name).compute()
    metric = made(name)
    for part in (slice(0, 1), slice(1, 8), slice(8, 8), slice(8, None)):
        metric.update(*(one[part] for one in CASES[name][1]))
    same(metric.compute(), whole)
    left, right = updated(name, slice(0, 7)), updated(name, slice(7, None))
    left.merge_state(right)
    same(left.compute(), whole)


@pytest.mark.parametrize("name", NAMES)
def test_forward_gives_the_batch(name):
    metric = made(name)
    for part in (slice(0, 5), slice(5, None)):
        same(metric(*(one[part] for one in CASES[name][1])), updated(name, part).compute())
    same(metric.compute(), updated(name).compute())


@pytest.mark.parametrize("name", NAMES)
def test_copies_pickles_reset_and_device_moves(name):
    metric = updated(name)
    whole = metric.compute()
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone(), metric.to("cpu")):
        same(other.compute(), whole)
    metric.reset()
    metric.update(*CASES[name][1])
    same(metric.compute(), whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_precision_of_the_model_around_it_changes_nothing(name, dtype):
    holder = nn.Module()
    holder.metric = made(name)
    metric = holder.to(dtype).metric
    metric.update(*CASES[name][1])
    same(metric.compute(), updated(name).compute())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_of_another_precision(name, dtype):
    parts = [
        one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in CASES[name][1]
    ]
    metric = made(name)
    metric.update(*parts)
    for one in figures(metric.compute()).values():
        assert bool(((one >= 0) & (one <= 1) | one.isnan()).all())


@pytest.mark.parametrize("name", NAMES)
def test_input_with_gradient_is_let_go(name):
    parts = [
        one.clone().requires_grad_() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for one in CASES[name][1]
    ]
    metric = made(name)
    metric.update(*parts)
    same(metric.compute(), updated(name).compute())


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_an_error_and_counts_nothing(name):
    bad = CASES[name][1][0].clone()
    bad[3] = float("nan")
    metric = made(name)
    with pytest.raises(DataError, match=name):
        metric.update(bad, *CASES[name][1][1:])
    assert all(int(getattr(metric, state).sum()) == 0 for state in metric._defaults)


@pytest.mark.parametrize("name", NAMES)
def test_figures_can_be_drawn(name):
    metric = updated(name)
    _, axes = plt.subplots()
    for shown in (None, metric.compute(), [metric.compute(), metric.compute()]):
        metric.plot(shown, ax=axes)
    assert axes.lines
    plt.close("all")


# --- several processes ------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_one_process_equals_two(tmp_path):
    for found in in_two_processes(lambda part: {name: updated(name, part).compute() for name in NAMES}, tmp_path):
        for name in NAMES:
            same(found[name], updated(name).compute())


# --- examples ---------------------------------------------------------------------------------------------


def test_every_function_says_what_it_is():
    for name in functional.__all__:
        assert getattr(functional, name).__doc__ or isinstance(getattr(functional, name), tuple), name


@pytest.mark.parametrize(
    "measure",
    [
        lambda nan: camify.metrics.EnergyPointingGame().update(nan, [torch.tensor([[0.0, 0.0, 2.0, 2.0]])]),
        lambda nan: camify.normalizers.normalize_maps(nan, "max"),
        lambda nan: camify.metrics.functional.deletion_curves(
            torch.nn.Flatten(), torch.zeros(1, 1, 4, 4), nan, torch.tensor([0]), steps=2
        ),
    ],
)
def test_maps_that_are_not_finite_are_refused_with_what_to_do(measure):
    with pytest.raises(camify.DataError, match=r"NaN.* Find the image that causes it"):
        measure(torch.full((1, 4, 4), torch.nan))
