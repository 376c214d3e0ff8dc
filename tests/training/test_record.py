from __future__ import annotations

import contextlib
import io
import json
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import camify
from camify.training import RunRecord
from tests.training.conftest import SIZE, BlobData, SmallLegacy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


def new_legacy():
    torch.manual_seed(3)
    return SmallLegacy()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three epochs, for tests that only read it: its folder, its results and what it printed."""
    folder, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    module = camify.CAMFineTuner(
        new_legacy(), class_names=["red", "green"], input_size=SIZE, head_channels=8, optimizer="sgd", lr=0.02
    )
    best = ModelCheckpoint(folder, "best", "val/acc", mode="max", save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        callbacks=[camify.CAMOverlayLogger(num_images=2), RunRecord(), best], max_epochs=3, accelerator="cpu",
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        trainer.fit(module, BlobData())
    return folder, json.loads((folder / "results.json").read_text()), printed.getvalue()


def accuracy(network):
    right, count = 0, 0
    with torch.no_grad():
        for batch in BlobData().val_dataloader():
            right += int((network.eval()(batch["image"]).argmax(1) == batch["label"]).sum())
            count += len(batch["label"])
    return right / count


def test_the_exported_network_is_that_of_the_best_epoch(run):
    folder, results, _ = run
    loaded = camify.load(folder / "export")
    best = max(results["history"], key=lambda row: row["val/acc"])
    assert results["exported"]["epoch"] == best["epoch"]
    assert accuracy(loaded) == pytest.approx(best["val/acc"])
    assert loaded.results["val/acc"] == pytest.approx(best["val/acc"])
    assert loaded.class_names == ["red", "green"]
    assert loaded.preprocessing == BlobData().preprocessing


def test_the_legacy_accuracy_stands_beside(run):
    _, results, _ = run
    assert results["legacy"]["val/acc"] == pytest.approx(accuracy(new_legacy()))


def test_the_users_network_keeps_its_modes_and_weights(legacy, make_trainer):
    legacy.train()
    legacy.features[1].eval()
    modes, before = [m.training for m in legacy.modules()], {k: v.clone() for k, v in legacy.state_dict().items()}
    module = camify.CAMFineTuner(legacy, class_names=["red", "green"], input_size=SIZE, head_channels=4)
    make_trainer(RunRecord(quiet=True), max_epochs=1).fit(module, BlobData())
    assert modes == [m.training for m in legacy.modules()]
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())


def test_the_legacy_of_other_classes_is_not_compared(make_trainer, tmp_path):
    module = camify.CAMFineTuner(SmallLegacy(5), class_names=["red", "green"], input_size=SIZE, head_channels=4)
    assert module.legacy is None
    make_trainer(RunRecord(quiet=True), max_epochs=1).fit(module, BlobData())
    assert json.loads((tmp_path / "results.json").read_text())["legacy"]["val/acc"] is None


def test_figures_page_and_screens(run):
    folder, results, printed = run
    assert results["finished"]
    assert [row["epoch"] for row in results["history"]] == [0, 1, 2]
    page = (folder / "report.html").read_text()
    assert "data:image/webp" in page
    assert 'http-equiv="refresh"' not in page
    for words in ("kept", "dropped", "schedule", "epoch 0", "epoch 2", "camify explain", "center box"):
        assert words in printed


def test_a_failing_page_is_reported_once_and_training_goes_on(legacy, make_trainer, monkeypatch):
    def fail(report):
        raise ValueError("no page")

    monkeypatch.setattr("camify.training.callbacks.run_record.render_page", fail)
    module = camify.CAMFineTuner(legacy, class_names=["red", "green"], input_size=SIZE, head_channels=4)
    trainer = make_trainer(RunRecord(quiet=True), max_epochs=3)
    with pytest.warns(UserWarning, match="no page") as caught:
        trainer.fit(module, BlobData())
    assert len([warning for warning in caught if "no page" in str(warning.message)]) == 1
    assert trainer.current_epoch == 3
