"""Pictures to the real loggers, offline, read back from what they wrote."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from camify.drawing.encoding import encoded
from camify.errors import ConfigError
from camify.training import TrackioLogger
from camify.training.callbacks.image_loggers import TABLES, ImageLog, Offer, offer_confusions

# Other people's packages warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def picture():
    pixels = np.zeros((6, 9, 3), np.uint8)
    pixels[:3] = (250, 20, 30)
    pixels[:, :2, 2] = 200
    return Image.fromarray(pixels)


def same(found, picture):
    return np.array_equal(np.asarray(found.convert("RGB")), np.asarray(picture))


def offered(logger, picture):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("camify.training.callbacks.image_loggers.rank_zero_warn", pytest.fail)  # it takes pictures
        boxes = {"ground truth": [[1.0, 2.0, 5.0, 4.5]]}
        ImageLog().offer([logger], Offer("overlays/00_cat", encoded(picture, "png"), boxes), 7)


def test_tensorboard(picture, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    offered(logger, picture)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    (event,) = events.Images("overlays/00_cat")
    assert event.step == 7
    (tmp_path / "a.png").write_bytes(event.encoded_image_string)
    assert same(Image.open(tmp_path / "a.png"), picture)


@pytest.mark.slow
def test_weights_and_biases(picture, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(project="camify", save_dir=tmp_path, offline=True)
    offered(logger, picture)
    assert logger.experiment.summary["trainer/global_step"] == 7
    logger.experiment.finish()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/overlays/00_cat_*.png")
    assert same(Image.open(file), picture)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/files/media/metadata/boxes2D/overlays/*.json")
    (box,) = json.loads(file.read_text())["box_data"]
    assert box["position"] == {"minX": 1, "minY": 2, "maxX": 5, "maxY": 4.5}
    assert box["domain"] == "pixel"


def test_mlflow(picture, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("camify", tracking_uri=f"file:{tmp_path}/store")
    offered(logger, picture)
    (file,) = (tmp_path / "store").glob("*/*/artifacts/images/overlays*00_cat?step?7?*.png")
    assert same(Image.open(file), picture)


@pytest.mark.slow
def test_comet(picture, tmp_path):
    comet = pytest.importorskip("comet_ml")
    logger = CometLogger(project="camify", online=False)  # to Lightning this means: switched off
    logger._experiment = comet.OfflineExperiment(project_name="camify", offline_directory=str(tmp_path))
    offered(logger, picture)
    logger.experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        kept = [content for content in map(files.read, files.namelist()) if content.startswith(b"\x89PNG")]
    assert [same(Image.open(io.BytesIO(content)), picture) for content in kept] == [True]


def test_aim(picture, tmp_path):
    pytest.importorskip("aim")
    context = pytest.importorskip("aim.storage.context")
    adapters = pytest.importorskip("aim.pytorch_lightning")
    logger = adapters.AimLogger(repo=str(tmp_path), system_tracking_interval=None)
    offered(logger, picture)
    sequence = logger.experiment.get_image_sequence("overlays/00_cat", context.Context({}))
    ((step, (image, *_)),) = sequence.data.items()
    assert (step, same(image.to_pil_image(), picture)) == (7, True)


def test_csv_files_hold_no_pictures_and_that_is_no_failure(picture, tmp_path):
    offered(CSVLogger(tmp_path), picture)


class Unknown(CSVLogger.__mro__[1]):
    """A logger of a kind that camify does not know."""

    name, version = "mine", 0

    def log_metrics(self, metrics, step=None):
        """Nothing."""

    def log_hyperparams(self, params, *args, **kwargs):
        """Nothing."""


def test_who_takes_none_or_fails_is_named_once(picture, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("camify.training.callbacks.image_loggers.rank_zero_warn", said.append)
    broken = type("TensorBoardLogger", (Unknown,), {"experiment": property(lambda _: 1 / 0)})()
    log = ImageLog()
    for step in range(3):
        log.offer([Unknown(), broken][step > 0 :], Offer("overlays/00_cat", encoded(picture, "png")), step)
    assert len(said) == 2
    assert said[0].startswith("Unknown takes no pictures from camify: its pictures are on disk only.")
    assert said[1].startswith("TensorBoardLogger failed (ZeroDivisionError: division by zero)")


def test_trackio(picture, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    for module in [
        m for name, m in list(sys.modules.items()) if name.startswith("trackio") and hasattr(m, "TRACKIO_DIR")
    ]:
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)
        if hasattr(module, "MEDIA_DIR"):
            monkeypatch.setattr(module, "MEDIA_DIR", tmp_path / "media")
    logger = TrackioLogger("flowers", name="first")
    logger.log_hyperparams({"lr": 0.1, "head": "gap", "other": [1, 2]})
    logger.log_metrics({"val/acc": 0.75}, step=7)
    offered(logger, picture)
    logger.finalize("success")
    logs = trackio.SQLiteStorage.get_logs("flowers", "first")
    assert {row["step"] for row in logs} == {7}
    assert [row["val/acc"] for row in logs if "val/acc" in row] == [0.75]
    (file,) = tmp_path.rglob("*.png")
    assert same(Image.open(file), picture)
    assert (logger.name, logger.version) == ("flowers", "first")


def test_trackio_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="pip install trackio"):
        TrackioLogger()


# --- confusions -------------------------------------------------------------------------------------------


def test_a_confusion_matrix_to_loggers_that_show_one():
    pairs, names = [[0, 0, 5], [0, 1, 2], [1, 1, 3]], ["cat", "dog"]
    kinds = [type(name, (), {"experiment": MagicMock(), "log_table": MagicMock()}) for name in TABLES]
    loggers = [kind() for kind in kinds]
    offer_confusions([*loggers, object()], names, pairs, 9)
    wandb, comet = loggers
    (call,) = wandb.log_table.call_args_list
    assert call.kwargs["data"] == [["cat", "cat", 5], ["cat", "dog", 2], ["dog", "dog", 3]]
    (call,) = comet.experiment.log_confusion_matrix.call_args_list
    assert call.kwargs["matrix"] == [[5, 2], [0, 3]]
    wandb.log_table.side_effect = RuntimeError("no")
    with pytest.warns(UserWarning, match="WandbLogger has no confusion matrix: RuntimeError: no"):
        offer_confusions(loggers, names, pairs, 9)
