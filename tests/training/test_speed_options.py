"""Averaged weights, precision, memory format and compilation: what they give, not how fast they are."""

from __future__ import annotations

import json

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

import camify
from camify.cli.train import main
from camify.training import RunRecord
from tests.training.conftest import SIZE, BlobData, SmallLegacy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


def tuner(**options):
    torch.manual_seed(3)
    defaults = {"class_names": ["red", "green"], "input_size": SIZE, "head_channels": 8, "optimizer": "sgd", "lr": 0.02}
    return camify.CAMFineTuner(SmallLegacy(), **defaults | options)


class Average(pl.Callback):
    """The exponential average of all weights, step by step."""

    def __init__(self, decay):
        self.decay, self.state = decay, None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = {k: v.detach().double().clone() for k, v in module.model.state_dict().items()}
        if self.state is None:
            self.state = now
        else:
            self.state = {k: self.decay * old + (1 - self.decay) * now[k] for k, old in self.state.items()}


@pytest.mark.slow
def test_averaged_weights_are_validated_and_exported(make_trainer, tmp_path):
    module, average = tuner(), Average(0.8)
    kept = ModelCheckpoint(tmp_path, "best", None, save_on_train_epoch_end=True)
    trainer = make_trainer(
        average, EMAWeightAveraging(decay=0.8), RunRecord(quiet=True), camify.CAMOverlayLogger(num_images=1), kept,
        max_epochs=3, enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(module, BlobData())
    exported = camify.load(tmp_path / "export").state_dict()
    for key, value in average.state.items():
        if "num_batches" not in key:
            torch.testing.assert_close(exported[key].double(), value, rtol=1e-4, atol=1e-6)
    net, right = camify.load(tmp_path / "export"), 0
    with torch.no_grad():
        for batch in BlobData().val_dataloader():
            right += int((net(batch["image"]).argmax(1) == batch["label"]).sum())
    assert json.loads((tmp_path / "results.json").read_text())["history"][-1]["val/acc"] == pytest.approx(right / 20)
    assert "teacher" not in "".join(module.state_dict())


def test_averages_go_on_after_resuming(make_trainer, tmp_path):
    def trainer(epochs):
        kept = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, save_on_train_epoch_end=True)
        return make_trainer(EMAWeightAveraging(decay=0.8), kept, max_epochs=epochs, enable_checkpointing=True)

    whole, first, second = (
        tuner(schedule="step", lr_drops=[0.99]),
        tuner(schedule="step", lr_drops=[0.99]),
        tuner(schedule="step", lr_drops=[0.99]),
    )
    torch.manual_seed(1)
    trainer(3).fit(whole, BlobData())
    torch.manual_seed(1)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch == 1

    stopping = trainer(3)
    stopping.callbacks.insert(0, Stop())
    stopping.fit(first, BlobData())
    trainer(3).fit(second, BlobData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"channels_last": True}])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.slow
def test_half_precision_and_memory_format_learn_the_same(make_trainer, precision, options):
    module = tuner(optimizer="adamw", lr=0.005, freeze_epochs=0, box_weight=0.2, **options)
    torch.manual_seed(0)
    trainer = make_trainer(max_epochs=5, precision=precision, gradient_clip_val=1.0)
    trainer.fit(module, BlobData())
    assert trainer.callback_metrics["val/acc"] >= 0.9
    weight = module.model.features[0].weight
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last) == bool(options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_features_learn_the_same_and_are_saved_plain(make_trainer, tmp_path):
    states = []
    for compiled in (False, True):
        module = tuner(compile=compiled)
        torch.manual_seed(0)
        make_trainer(max_epochs=2).fit(module, BlobData())
        states.append(module.model.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)
    module.model.save_pretrained(tmp_path / "net")
    camify.load(tmp_path / "net")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_averaging_early_stopping_and_clipping_are_lightnings_own_in_a_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    options = {
        "trainer": {
            "max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(tmp_path / "run"), "gradient_clip_val": 1.0,
            "enable_progress_bar": False, "precision": "bf16-mixed",
            "callbacks": [
                {"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}},
                {"class_path": "EarlyStopping", "init_args": {"monitor": "val/max_box_acc", "mode": "max"}},
            ],
        },
        "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8},
        "data": {
            "class_path": "ShapesDataModule",
            "init_args": {"train_count": 12, "val_count": 6, "batch_size": 6},
        },
        "checkpoint": {"monitor": "val/max_box_acc"},
        "overlays": {"num_images": 1},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    main(["fit", "--config", str(path)])
    history = json.loads((tmp_path / "run" / "results.json").read_text())["history"]
    assert len(history) == 2
