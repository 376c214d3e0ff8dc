"""Runs by epochs, steps and time, with and without a length of the data: freezing and rates are right in each."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from camify import CAMFineTuner
from camify.errors import ConfigError, TrainingError
from camify.training.callbacks.progress_bar import EpochProgressBar, use_epoch_progress_bar
from camify.training.run_length import RunLength
from camify.training.schedule import lr_factor

pytestmark = pytest.mark.filterwarnings(  # Lightning's advice on loaders, loggers and open ends
    "ignore:.*LeafSpec:FutureWarning",
    "ignore::lightning_fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*max_epochs:UserWarning",
    "ignore:.*overfit:UserWarning",
    "ignore:.*Trainer.*accumulate:UserWarning",
)
CLASSES, BATCH = 4, 4


class Stream(IterableDataset):
    """As WebDataset: nobody knows how much will come."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for number in range(self.count):
            yield torch.randn(3, 8, 8, generator=generator), number % CLASSES


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def tuner(**options):
    names = [f"class {number}" for number in range(CLASSES)]
    options = {
        "head": "direct",
        "input_size": 8,
        "optimizer": "sgd",
        "lr": 0.1,
        "nesterov": False,
        "freeze_epochs": 1,
    } | options
    return CAMFineTuner(network(), class_names=names, **options)


def loader(count, *, stream):
    data = Stream(count) if stream else TensorDataset(torch.randn(count, 3, 8, 8), torch.arange(count) % CLASSES)
    return DataLoader(data, batch_size=BATCH)


class Rates(pl.Callback):
    """The rates of every step, whether the features may learn in it, and by how much they have moved at the end."""

    def __init__(self):
        self.head, self.features, self.epochs, self.learns = [], [], [], []

    def on_train_start(self, trainer, pl_module):
        self.before = pl_module.model.features[0].weight.detach().clone()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rates = {group["name"]: group["lr"] / group["initial_lr"] for group in optimizer.param_groups}
        self.head.append(rates["head"])
        self.features.append(rates["features"])
        self.epochs.append(trainer.current_epoch)
        self.learns.append(pl_module.model.features[0].weight.requires_grad)

    def on_train_end(self, trainer, pl_module):
        self.moved = float((pl_module.model.features[0].weight.detach() - self.before).abs().max())


def fit(module, train, *, callbacks=(), **options):
    rates = Rates()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[rates, *callbacks], **options,
    )  # fmt: skip
    trainer.fit(module, train, loader(4, stream=False))
    return rates


def expected(step, *, total, epoch_steps, frozen=0, warmup_epochs=0.5):
    """Half a cosine, a linear rise of half an epoch after the start, nothing before it (README, schedules)."""
    start = frozen * epoch_steps
    if step < start:
        return 0.0
    rise = min(1.0, (step - start + 1) / (round(warmup_epochs * epoch_steps) + 1))
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


@pytest.mark.parametrize(
    ("options", "epoch_steps", "total"),
    [
        ({"max_epochs": 4}, 6, 24),
        ({"max_steps": 24}, 6, 24),
        ({"max_steps": 24, "max_epochs": 9}, 6, 24),
        ({"max_epochs": 4, "max_steps": 1000}, 6, 24),
        ({"max_epochs": -1, "max_steps": 24}, 6, 24),
        ({"max_epochs": 4, "limit_train_batches": 4}, 4, 16),
        ({"max_steps": 12, "limit_train_batches": 0.5}, 3, 12),
        ({"max_epochs": 4, "accumulate_grad_batches": 4}, 2, 8),
        ({"max_steps": 8, "accumulate_grad_batches": 4}, 2, 8),
        ({"max_epochs": 4, "val_check_interval": 2}, 6, 24),
        ({"max_epochs": 4, "overfit_batches": 2}, 2, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("frozen", [0, 1])
def test_the_schedule_is_that_of_the_steps_there_are(options, epoch_steps, total, frozen):
    rates = fit(tuner(freeze_epochs=frozen), loader(24, stream=False), **options)
    assert len(rates.head) == total
    for step in range(total):
        assert rates.head[step] == pytest.approx(expected(step, total=total, epoch_steps=epoch_steps))
        features = expected(step, total=total, epoch_steps=epoch_steps, frozen=frozen)
        assert rates.features[step] == pytest.approx(features)
        assert rates.learns[step] == (step >= frozen * epoch_steps)
    assert rates.moved > 1e-5


def test_accumulation_that_changes_counts_every_epoch_by_itself():
    changing = GradientAccumulationScheduler({0: 1, 1: 2, 3: 3})
    rates = fit(tuner(freeze_epochs=1), loader(24, stream=False), callbacks=[changing], max_epochs=5)
    assert [rates.epochs.count(epoch) for epoch in range(5)] == [6, 3, 3, 2, 2]
    for step in range(16):
        assert rates.head[step] == pytest.approx(lr_factor(step, 16, warmup=3))
        assert rates.features[step] == pytest.approx(lr_factor(step, 16, warmup=3, start=6))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_stream_with_epochs_shows_its_length_in_the_first(frozen):
    rates = fit(tuner(freeze_epochs=frozen), loader(24, stream=True), max_epochs=4)
    assert rates.epochs == [epoch for epoch in range(4) for _ in range(6)]
    assert rates.head[:6] == [1.0] * 6, "the schedule stands at its beginning"
    for step in range(6, 24):
        assert rates.head[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 24)))
    assert [rate > 0 for rate in rates.features] == [epoch >= frozen for epoch in rates.epochs]
    assert rates.moved > 1e-5


def test_a_stream_with_steps_knows_its_end():
    rates = fit(tuner(freeze_epochs=1), loader(24, stream=True), max_steps=24)
    for step in range(24):
        assert rates.head[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 24)))
    assert [rate > 0 for rate in rates.features] == [step >= 6 for step in range(24)]
    assert rates.moved > 1e-5


class StopAt(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 15


def test_a_run_without_end_keeps_its_rate():
    rates = fit(tuner(freeze_epochs=1), loader(24, stream=False), callbacks=[StopAt()], max_epochs=-1)
    assert rates.head == pytest.approx([*(step / 4 for step in range(1, 4)), *[1.0] * (len(rates.head) - 3)])
    assert [rate > 0 for rate in rates.features] == [step >= 6 for step in range(len(rates.features))]


def test_a_run_that_ends_by_the_clock_ends_its_schedule_too():
    rates = fit(tuner(freeze_epochs=0), loader(24, stream=False), max_epochs=-1, max_time={"seconds": 1})
    assert len(rates.head) > 10
    assert max(rates.head) > 0.9
    assert rates.head[-1] < 0.1
    assert rates.moved > 1e-5


@pytest.mark.parametrize("options", [{"schedule": "one_cycle"}, {"schedule": "step", "lr_drops": [0.5]}], ids=str)
def test_a_schedule_that_needs_an_end_is_refused_without_one(options):
    with pytest.raises(ConfigError, match=r"needs the number of steps.*no length.*max_steps"):
        fit(tuner(**options), loader(24, stream=True), max_epochs=2)
    assert len(fit(tuner(**options), loader(24, stream=True), max_steps=8).head) == 8


def test_a_run_that_ended_goes_on_with_more_epochs_at_their_rates(tmp_path):
    """The checkpoint of the last step holds the rate 0, with which the schedule of that length ended."""

    def trainer(epochs, *callbacks):
        return pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[*callbacks], max_epochs=epochs, default_root_dir=tmp_path,
        )  # fmt: skip

    data = loader(24, stream=False)
    first = trainer(2)
    first.fit(tuner(freeze_epochs=1), data, loader(4, stream=False))
    first.save_checkpoint(tmp_path / "last.ckpt")
    rates = Rates()
    trainer(4, rates).fit(
        tuner(freeze_epochs=1), data, loader(4, stream=False), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert rates.head == pytest.approx([expected(step, total=24, epoch_steps=6) for step in range(12, 24)])


class RateOf(pl.Callback):
    """Somebody's own scheduler that has gone wrong."""

    def __init__(self, name):
        self.name = name

    def on_train_batch_start(self, trainer, *_):
        for group in trainer.optimizers[0].param_groups:
            if group["name"].startswith(self.name):
                group["lr"] = 0.0


@pytest.mark.parametrize("name", ["features", "head"])
def test_a_rate_of_zero_in_a_whole_epoch_stops_by_name(name):
    with pytest.raises(TrainingError, match=rf"Epoch 1: the learning rate of {name} was 0 in all 6 steps"):
        fit(tuner(freeze_epochs=1), loader(24, stream=False), callbacks=[LateZero(name)], max_epochs=3)


class LateZero(RateOf):
    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch >= 1:
            super().on_train_batch_start(trainer)


class NoGradient(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()


def test_an_epoch_in_which_nothing_moved_stops_by_name():
    module = tuner(weight_decay=0.0, optimizer="sgd", momentum=0.0)
    with pytest.raises(TrainingError, match=r"Epoch 0: no parameter has moved in 6 steps"):
        fit(module, loader(24, stream=False), callbacks=[NoGradient()], max_epochs=2)


def test_the_progress_bar_does_not_count_to_minus_two():
    trainer = pl.Trainer(accelerator="cpu", logger=False, max_steps=14)
    use_epoch_progress_bar(trainer)
    (bar,) = [callback for callback in trainer.callbacks if isinstance(callback, EpochProgressBar)]
    bar._trainer = trainer
    assert bar._get_train_description(2).strip() == "Epoch 2"
    trainer.fit_loop.max_epochs = 4
    assert bar._get_train_description(2).strip() == "Epoch 2/3"


def test_a_run_length_in_words():
    assert RunLength(4, None, (8,), None).describe() == "4 epochs"
    assert RunLength(None, 32, (8,), None).describe() == "32 steps (epochs of 8)"
    assert RunLength(None, 32, (), None).describe() == "32 steps"
    assert RunLength(None, None, (8,), 90.0).describe() == "90 s"
    assert RunLength(1, 32, (8,), None).describe() == "1 epoch or 32 steps (epochs of 8) at most"
    assert RunLength(None, None, (8,), None).describe() == "no end: stop it with Ctrl-C"
