"""Promise 8: a logger that raises, in whatever it is asked, is named once, and training goes on; so with pictures."""

from __future__ import annotations

import copy
import pickle
import re
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import camify
from camify.training.callbacks.image_loggers import WRITERS
from camify.training.callbacks.run_record import RunRecord
from camify.training.loggers import guard_loggers

from ..training.conftest import BlobData, SmallLegacy, tuner

METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize", "log_image")


class Down(CSVLogger):
    """A logger whose server went away: one of its methods raises from the beginning, or from the n-th call on."""

    def __init__(self, folder, method, good_calls=0):
        super().__init__(folder, name="", version="")
        self.method, self.calls, self.good_calls = method, 0, good_calls

    def _ask(self, name):
        if name == self.method:
            self.calls += 1
            if self.calls > self.good_calls:
                raise ConnectionError("the server is away\x1b[2J")

    def log_image(self, key, images, step=None, **options):
        self._ask("log_image")


def _asking(name):
    def method(self, *given, **options):
        self._ask(name)
        return getattr(CSVLogger, name)(self, *given, **options)

    return method


for _name in METHODS[:-1]:
    setattr(Down, _name, _asking(_name))


def fit(logger, tmp_path, **options):
    """Fit a small run with everything that speaks to loggers; what was warned of."""
    torch.manual_seed(3)
    module = tuner(SmallLegacy(), freeze_epochs=0)
    callbacks = [
        RunRecord(quiet=True, report=False), camify.CAMOverlayLogger(num_images=2, num_highlights=0),
        LearningRateMonitor("step"), ModelCheckpoint(tmp_path / "kept", save_last=True),
    ]  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=logger, callbacks=callbacks, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, log_every_n_steps=1, **options,
        )  # fmt: skip
        trainer.fit(module, BlobData())
    assert trainer.state.finished
    assert trainer.current_epoch == 2
    return trainer, [str(entry.message) for entry in caught]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.slow) if name not in ("log_image", "after_save_checkpoint") else name
        for name in METHODS
    ],
)
def test_a_logger_that_raises_is_named_once_and_training_goes_on(tmp_path, method):
    other = TensorBoardLogger(tmp_path / "tb", name="", version="")
    # camify offers pictures by the name of the logger's type: W&B's takes them by log_image.
    kind = type("WandbLogger", (Down,), {"__qualname__": "Down"}) if method == "log_image" else Down
    trainer, said = fit([kind(tmp_path / "csv", method), other], tmp_path)
    named = [text for text in said if f".{method} failed" in text]
    assert len(named) == 1, said
    assert named[0].startswith(
        rf"{kind.__name__}.{method} failed (ConnectionError: the server is away\x1b[2J). It is not called"
    )
    assert trainer.loggers[0].calls == 1, "and it is not asked again"
    assert list((tmp_path / "tb").glob("events.*")), "the other one has its figures"
    assert (tmp_path / "kept" / "last.ckpt").is_file()
    assert (tmp_path / "csv" / "export" / "camify.json").is_file() or (tmp_path / "export" / "camify.json").is_file()


def test_a_logger_that_fails_later_keeps_what_it_has(tmp_path):
    logger = Down(tmp_path / "csv", "log_metrics", good_calls=4)
    _, said = fit(logger, tmp_path)
    assert logger.calls == 5
    assert len([text for text in said if "Down.log_metrics" in text]) == 1
    assert len((tmp_path / "csv" / "metrics.csv").read_text().splitlines()) > 1


class Absent(CSVLogger):
    """It cannot even begin."""

    @property
    def experiment(self):
        raise ConnectionError("nobody answers")


def test_a_logger_that_cannot_begin_is_left_out(tmp_path):
    kept = CSVLogger(tmp_path / "kept", name="", version="")
    fit(Absent(tmp_path / "alone"), tmp_path / "alone")
    trainer, said = fit([Absent(tmp_path / "a"), kept], tmp_path)
    assert trainer.loggers == [kept]
    (text,) = [text for text in said if text.startswith("Absent failed")]
    assert "nobody answers" in text
    assert "left out" in text


def test_a_guarded_logger_is_still_what_it_was(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False)
    guard_loggers(trainer)
    before = dict(vars(logger))
    guard_loggers(trainer)
    assert vars(logger) == before, "guarding twice changes nothing"
    assert trainer.logger is logger
    assert type(logger) is TensorBoardLogger
    assert any(kind.__name__ in WRITERS for kind in type(logger).__mro__)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.experiment.add_scalar("b", 2.0, 1)
    logger.save()
    twin = copy.deepcopy(logger)
    assert twin.log_metrics.logger is twin
    assert pickle.loads(pickle.dumps(CSVLoggerGuarded(tmp_path))).log_metrics.method == "log_metrics"


def CSVLoggerGuarded(folder):
    trainer = pl.Trainer(logger=CSVLogger(folder), accelerator="cpu", enable_progress_bar=False)
    guard_loggers(trainer)
    return trainer.logger


def test_a_method_that_was_set_on_the_logger_itself_is_guarded_too(tmp_path):
    def away(*_, **__):
        raise ConnectionError("away")

    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics = away
    _, said = fit(logger, tmp_path)
    assert len([text for text in said if text.startswith("CSVLogger.log_metrics failed")]) == 1


def test_ctrl_c_within_a_logger_still_stops(tmp_path):
    class Stopping(CSVLogger):
        def log_metrics(self, metrics, step=None):
            raise KeyboardInterrupt

    trainer = pl.Trainer(logger=Stopping(tmp_path), accelerator="cpu", enable_progress_bar=False)
    guard_loggers(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.logger.log_metrics({})


def test_pictures_that_cannot_be_drawn_are_named_once(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("camify.training.callbacks.overlay_files.write_whole", fail)
    _, said = fit(CSVLogger(tmp_path, name="", version=""), tmp_path)
    assert len([text for text in said if re.match("Overlays are off from here on: OSError", text)]) == 1
    assert (tmp_path / "kept" / "last.ckpt").is_file()
