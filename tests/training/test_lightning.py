"""A CAMFineTuner in the hands of those who know Lightning: its callbacks, loaders, loops and subclasses."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from pytorch_lightning.tuner import Tuner
from torch import nn

import camify
from tests.training.conftest import tuner

pytestmark = pytest.mark.filterwarnings(  # Lightning's advice
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:SWA is currently only supported.*",
    "ignore:Swapping scheduler.*",
)  # fmt: skip


class Rates(pl.Callback):
    def __init__(self):
        self.rates = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for group in optimizer.param_groups:
            self.rates.setdefault(group.get("name", ""), []).append(group["lr"])


def test_averaged_weights_end_with_a_pass_that_trains_nothing(legacy, data, make_trainer):
    """Stochastic weight averaging goes over the data once more, for the statistics of batch norm."""
    trainer = make_trainer(StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1), max_epochs=3)
    trainer.fit(tuner(legacy, freeze_epochs=0), data)
    assert trainer.current_epoch == 4
    assert "val/acc" in trainer.callback_metrics


def test_moving_averages_are_what_is_validated(legacy, data, make_trainer):
    trainer = make_trainer(EMAWeightAveraging(decay=0.5), max_epochs=2)
    trainer.fit(tuner(legacy, freeze_epochs=0), data)
    assert "val/max_box_acc" in trainer.callback_metrics


def test_a_callback_may_put_weights_back_at_the_end_of_an_epoch(legacy, data, make_trainer):
    """The lottery ticket: what pruning leaves starts again from its first weights."""
    module = tuner(legacy, freeze_epochs=0)
    trainer = make_trainer(ModelPruning("l1_unstructured", amount=0.5), max_epochs=2)
    trainer.fit(module, data)
    assert trainer.current_epoch == 2


def test_rates_follow_the_batches_that_a_finder_has_chosen(legacy, data, make_trainer):
    data.batch_size = 16  # the finder leaves 4
    rates = Rates()
    data.train_dataloader = lambda: torch.utils.data.DataLoader(
        type(data).train_dataloader(data).dataset, batch_size=data.batch_size, collate_fn=camify.data.collate
    )
    finder = BatchSizeFinder(mode="power", steps_per_trial=1, max_trials=2, init_val=2)
    trainer = make_trainer(finder, rates, max_epochs=3)
    trainer.fit(tuner(legacy, freeze_epochs=0, warmup_epochs=0), data)
    head = rates.rates["head"][-trainer.num_training_batches * 3 :]
    assert len(head) == 3 * 48 // data.batch_size
    assert min(head) > 0
    assert head[-1] < 0.1 * head[0]  # the cosine ends with the run, not before


@pytest.mark.slow
def test_a_finder_may_change_the_batches_of_a_data_module_of_camify(make_trainer):
    data = camify.data.ShapesDataModule(train_count=24, val_count=12, batch_size=12)
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=2)  # from 2, so that the options of the run change
    module = camify.CAMFineTuner("camify/tiny_vgg@demo", head="direct", freeze_epochs=0)
    make_trainer(finder, max_epochs=1).fit(module, data)
    assert data.batch_size != 12


def test_the_same_trainer_goes_on_with_more_epochs(legacy, data, make_trainer):
    rates, module = Rates(), tuner(legacy, freeze_epochs=1, warmup_epochs=0)
    trainer = make_trainer(rates, max_epochs=1)
    trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data)
    assert trainer.current_epoch == 3
    features = rates.rates["features"]
    assert set(features[:6]) == {0.0}  # frozen in the first epoch alone
    assert min(features[6:]) > 0


def test_the_rate_that_a_finder_has_found_is_taken(legacy, data, make_trainer):
    rates, finder = Rates(), LearningRateFinder(num_training_steps=30, early_stop_threshold=None)
    module = tuner(legacy, freeze_epochs=0, warmup_epochs=0, head_lr_factor=1, lr=0.5)
    make_trainer(finder, rates, max_epochs=3).fit(module, data)
    found = finder.optimal_lr.suggestion()
    assert module.lr == module.hparams.lr == found != 0.5
    head = rates.rates["head"]  # of the run alone: while the finder tries, it has the callbacks to itself
    assert len(head) == 18
    assert head[0] == pytest.approx(found)
    assert head == sorted(head, reverse=True)


def test_so_is_that_of_a_tuner(legacy, data, make_trainer):
    rates, module = Rates(), tuner(legacy, freeze_epochs=0, warmup_epochs=0, head_lr_factor=1, lr=0.5)
    trainer = make_trainer(rates, max_epochs=3)
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=30, early_stop_threshold=None).suggestion()
    rates.rates.clear()
    trainer.fit(module, data)
    assert module.lr == found != 0.5
    assert rates.rates["head"][0] == pytest.approx(found)


def test_one_rate_is_not_looked_for_where_there_are_two(legacy, data, make_trainer):
    with pytest.raises(camify.ConfigError, match="one rate for all layers, and the head learns at head_lr_factor=10 "):
        make_trainer(LearningRateFinder(), max_epochs=1).fit(tuner(legacy, freeze_epochs=0), data)


class _OwnOptimizer(camify.CAMFineTuner):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": scheduler, "monitor": "val/loss"}]


class _OwnLoop(camify.CAMFineTuner):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        return loss


class _OwnLoss(camify.CAMFineTuner):
    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train/own", loss)
        return loss


@pytest.mark.parametrize("kind", [_OwnOptimizer, _OwnLoop, _OwnLoss])
def test_a_subclass_may_have_its_own(kind, legacy, data, make_trainer):
    names = ["red", "green"]
    module = kind(legacy, class_names=names, legacy_class_names=names, input_size=32, head="direct", lr=0.02)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer = make_trainer(camify.CAMOverlayLogger(num_images=2), max_epochs=2)
    trainer.fit(module, data)
    assert not torch.equal(before["classifier.weight"], module.model.classifier.weight)
    assert {"val/acc", "val/max_box_acc"} <= set(trainer.callback_metrics)
    assert module.plan is not None


@pytest.mark.parametrize("split", ["train", "val"])
def test_several_loaders_of_a_split_are_refused(split, legacy, data, make_trainer):
    one = getattr(data, f"{split}_dataloader")()
    setattr(data, f"{split}_dataloader", lambda: [one, one])
    name = {"train": "training", "val": "validation"}[split]
    with pytest.raises(camify.ConfigError, match=rf"2 loaders of {name} data.*ConcatDataset"):
        make_trainer(max_epochs=1).fit(tuner(legacy), data)


def test_several_loaders_of_a_test_are_refused(legacy, data, make_trainer):
    module = tuner(legacy)
    module.model.untrained = ()
    one = data.test_dataloader()
    data.test_dataloader = lambda: [one, one]
    with pytest.raises(camify.ConfigError, match="2 loaders of test data"):
        make_trainer().test(module, data)


def test_a_module_that_was_compiled_as_a_whole_is_refused(legacy, data, make_trainer):
    with pytest.raises(camify.ConfigError, match="compile=True"):
        make_trainer(max_epochs=1).fit(torch.compile(tuner(legacy)), data)
