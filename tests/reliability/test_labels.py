"""Labels, images and data that cannot be trained on are refused by what is wrong with them, before a step is made."""

from __future__ import annotations

import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from camify.data import collate
from camify.errors import ConfigError, DataError, TrainingError

from ..training.conftest import SIZE, Blobs, SmallLegacy, tuner

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(tmp_path, train, val=None, callbacks=(), **options):
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=bool(callbacks), default_root_dir=tmp_path, num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    module = tuner(SmallLegacy(2), freeze_epochs=0, **options)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        trainer.fit(module, train, val if val is not None else loader(torch.tensor([0, 1] * 4)))
    finally:
        trained = trainer.global_step
    return trained, before, module


def loader(labels, images=None):
    images = torch.rand(len(labels), 3, SIZE, SIZE) if images is None else images
    return DataLoader(TensorDataset(images, labels), batch_size=4)


WRONG = {
    "two of two": (torch.tensor([0, 1, 2, 1]), "from 0 to 2"),
    "minus one": (torch.tensor([0, 1, -1, 1]), "from -1 to 1"),
    "minus hundred": (torch.tensor([0, -100, 1, 1]), "from -100 to 1"),
    "halves": (torch.tensor([0.5, 1.0, 0.0, 1.0]), "from 0 to 1"),
    "nan": (torch.tensor([0.0, float("nan"), 1.0, 1.0]), "do not fit task 'multiclass'"),
    "several labels": (
        torch.tensor([[1, 1], [0, 1], [1, 0], [0, 1]]),
        "several labels an image are of task multilabel",
    ),
    "too many columns": (torch.zeros(4, 3), "(4, 3)"),
    "no labels at all": (torch.zeros(4, 2), "add up to 1"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("split", ["train", "val"])
def test_wrong_labels_are_named(tmp_path, kind, split):
    labels, words = WRONG[kind]
    good = loader(torch.tensor([0, 1, 0, 1]))
    wrong = loader(labels)
    with pytest.raises(DataError, match=re.escape(words)):
        fit(tmp_path, *((wrong, good) if split == "train" else (good, wrong)))


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1, 0, 1]), torch.tensor([[0], [1], [0], [1]]), torch.tensor([0.0, 1.0, 0.0, 1.0]),
               torch.eye(2).repeat(2, 1), torch.tensor([[0.3, 0.7]] * 4)],
)  # fmt: skip
def test_labels_that_say_the_same_in_another_way_are_taken(tmp_path, labels):
    assert fit(tmp_path, loader(labels), loader(labels))[0] == 1


def test_an_empty_training_set_is_an_error(tmp_path):
    empty = DataLoader(TensorDataset(torch.zeros(0, 3, SIZE, SIZE), torch.zeros(0)), batch_size=4)
    with pytest.raises(TrainingError, match="Nothing was trained: the training data have no batch"):
        fit(tmp_path, empty)
    dropped = DataLoader(TensorDataset(torch.zeros(3, 3, SIZE, SIZE), torch.zeros(3)), batch_size=4, drop_last=True)
    with pytest.raises(TrainingError, match="drop_last"):
        fit(tmp_path, dropped)


def test_an_image_of_nan_in_validation_is_named_by_its_file(tmp_path):
    data = Blobs(8, 1)
    data.samples[5]["image"][1, 3, 3] = float("nan")
    val = DataLoader(data, batch_size=4, collate_fn=collate)
    with pytest.raises(DataError, match=re.escape(f"{data.samples[5]['path']}: the image holds NaN")):
        fit(tmp_path, loader(torch.tensor([0, 1, 0, 1])), val)
    images = torch.rand(4, 3, SIZE, SIZE)
    images[2] = float("inf")
    with pytest.raises(DataError, match="number 2 of its batch: the image holds NaN"):
        fit(tmp_path, loader(torch.tensor([0, 1, 0, 1])), loader(torch.tensor([0, 1, 0, 1]), images))


@pytest.mark.parametrize("callback", [ModelCheckpoint(monitor="val/accuracy"), EarlyStopping("val/nope")])
def test_a_figure_that_nothing_logs_is_named_before_the_first_step(tmp_path, callback):
    with pytest.raises(ConfigError, match=r"nothing logs that.*Logged are train/loss, val/loss, val/acc, val/max_box_"):
        fit(tmp_path, loader(torch.tensor([0, 1, 0, 1])), callbacks=[callback])


def test_figures_that_are_logged_can_be_followed(tmp_path):
    from camify.training.early_checks import logged_names

    module = tuner(SmallLegacy(2), freeze_epochs=0)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = DataLoader(Blobs(8, 1), batch_size=4, collate_fn=collate)
    trainer.fit(module, data, data)
    assert set(trainer.callback_metrics) <= set(logged_names(module))
