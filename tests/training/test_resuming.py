"""Killed, stopped and resumed runs are the runs that went through."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

import camify
from camify.cli.train import main
from tests.training.conftest import SIZE, BlobData, SmallLegacy

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*",
    "ignore:.*ended before the epoch ended.*",
)  # fmt: skip


def tuner(**options):
    torch.manual_seed(3)
    options = {
        "class_names": ["red", "green"],
        "input_size": SIZE,
        "head_channels": 8,
        "lr": 0.02,
        "dropout": 0.3,
    } | options
    return camify.CAMFineTuner(SmallLegacy(), **{"hide_and_seek": 0.3, **options})


class StopAt(pl.Callback):
    """Sends this process a signal after a batch."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def keeper(folder):
    return ModelCheckpoint(folder, "best", "val/acc", mode="max", save_last=True, save_on_train_epoch_end=True)


def equal(one, other):
    return [key for key in one if not torch.equal(one[key], other[key])]


WHOLE: dict[str, dict[str, torch.Tensor]] = {}
"""By kind of cache the weights of a run that went through."""


@pytest.mark.parametrize("cache", ["off", "memory"])
@pytest.mark.parametrize("step", [3, 6, 8, 15])  # of 6 an epoch: in a frozen epoch, at its end, unfreezing, after it
@pytest.mark.slow
def test_a_run_stopped_by_sigterm_goes_on_from_that_batch(make_trainer, tmp_path, step, cache):
    options = {"freeze_epochs": 1, "feature_cache": cache, "hide_and_seek": 0.0 if cache == "memory" else 0.3}
    if cache not in WHOLE:
        whole = tuner(**options)
        torch.manual_seed(9)
        make_trainer(max_epochs=3).fit(whole, BlobData())
        WHOLE[cache] = whole.model.state_dict()

    stopped = tuner(**options)
    torch.manual_seed(9)
    trainer = make_trainer(keeper(tmp_path), StopAt(step), max_epochs=3, enable_checkpointing=True)
    with pytest.raises(SystemExit):
        trainer.fit(stopped, BlobData())
    assert trainer.global_step == step
    resumed = tuner(**options)
    torch.manual_seed(123)  # what was drawn before does not matter
    trainer = make_trainer(keeper(tmp_path), max_epochs=3, enable_checkpointing=True)
    trainer.fit(resumed, BlobData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert trainer.global_step == 18
    assert equal(WHOLE[cache], resumed.model.state_dict()) == []


def test_a_run_resumed_between_epochs_is_the_same(make_trainer, tmp_path):
    whole, first = tuner(freeze_epochs=1), tuner(freeze_epochs=1)
    torch.manual_seed(9)
    make_trainer(max_epochs=3).fit(whole, BlobData())
    torch.manual_seed(9)
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    make_trainer(kept, max_epochs=3, enable_checkpointing=True).fit(first, BlobData())
    for name in ("epoch=0.ckpt", "epoch=1.ckpt"):
        resumed = tuner(freeze_epochs=1)
        again = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = make_trainer(again, max_epochs=3, enable_checkpointing=True)
        trainer.fit(resumed, BlobData(), ckpt_path=tmp_path / name, weights_only=True)
        assert equal(whole.model.state_dict(), resumed.model.state_dict()) == []


# ------------------------------------------------------------ the command line, in processes of their own


@pytest.fixture
def config(tmp_path):
    def write(name):
        options = {
            "seed_everything": 4,
            "trainer": {
                "max_epochs": 3, "accelerator": "cpu", "default_root_dir": str(tmp_path / name),
                "enable_progress_bar": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
            },
            "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8, "dropout": 0.2},
            "data": {
                "class_path": "ShapesDataModule",
                "init_args": {"train_count": 24, "val_count": 6, "batch_size": 6, "augment": "crop_flip"},
            },
            "overlays": {"num_images": 1},
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(options))
        return path

    return write


def killed_when(condition, path):
    """A run in a process of its own, killed by kill -9 when the condition holds."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # as here
    command = [sys.executable, "train.py", "fit", "--config", str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while not condition() and run.poll() is None:
            time.sleep(0.02)
        run.kill()
    assert run.returncode == -signal.SIGKILL


def pictures(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_kill_minus_9_in_the_frozen_epoch_then_resume(config, tmp_path, monkeypatch):
    """The child dies right after its first epoch, whose features were frozen; the resumed run frees them."""
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    main(["fit", "--config", str(config("whole"))])
    last = tmp_path / "killed" / "last.ckpt"
    killed_when(last.exists, config("killed"))
    assert not (tmp_path / "killed" / "export").exists(), "it died before the end"
    main(["fit", "--config", str(tmp_path / "killed" / "config.yaml"), "--ckpt_path", str(last)])
    whole, resumed = (camify.load(tmp_path / name / "export").state_dict() for name in ("whole", "killed"))
    assert equal(whole, resumed) == []
    found = pictures(tmp_path / "killed" / "overlays")
    assert {"epoch_000", "epoch_001", "epoch_002", "strips"} <= {name.split("/")[0] for name in found}
    assert found == pictures(tmp_path / "whole" / "overlays")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sigterm_leaves_with_143_and_another_configuration_is_refused(config, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    monkeypatch.setattr(camify.CAMFineTuner, "on_train_batch_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(config("stopped"))])
    assert left.value.code == 143
    monkeypatch.undo()
    assert "--ckpt_path" in capsys.readouterr().out
    last = tmp_path / "stopped" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    resume = ["fit", "--config", str(tmp_path / "stopped" / "config.yaml"), "--ckpt_path", str(last)]
    changes = ["--model.lr", "0.5", "--data.init_args.batch_size", "12", "--trainer.gradient_clip_val", "1"]
    with pytest.raises(SystemExit) as left:
        main([*resume, *changes])
    assert left.value.code == 2
    error = capsys.readouterr().err
    for words in ("data.batch_size: 6 then, 12 now", "model.lr: 0.0001 then, 0.5 now", "gradient_clip_val: None then"):
        assert words in error
    assert "model.weight_decay" not in error
    main([*resume, "--trainer.max_epochs", "1"])
    assert torch.load(last, weights_only=True)["global_step"] == 4


# ------------------------------------------------------------ NaN


class Poison(pl.Callback):
    """Makes one weight's gradient what it is given."""

    def __init__(self, value, step):
        self.value, self.step = value, step

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            module.model.classifier.weight.grad[0, 0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stop_before_the_step(data, make_trainer, tmp_path, value):
    module, states = tuner(), {}

    class Remember(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            states[trainer.global_step] = {k: v.clone() for k, v in module.model.state_dict().items()}

    trainer = make_trainer(Remember(), Poison(value, 8), keeper(tmp_path), max_epochs=3, enable_checkpointing=True)
    with pytest.raises(camify.errors.TrainingError) as error:
        trainer.fit(module, data)
    message = str(error.value)
    for words in ("Step 8 (epoch 1)", "head 0.", "features 0.", "precision 32-true", str(tmp_path / "last.ckpt")):
        assert words in message
    assert (
        equal(
            {k: v for k, v in states[8].items() if "num_batches" not in k and "running" not in k},
            module.model.state_dict(),
        )
        == []
    )
