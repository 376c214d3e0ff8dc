"""camify check, export of folders and runs, and pictures explained from exported files, by the command line."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint

import camify
from camify.cli.commands import main
from camify.conversion.readiness import check
from camify.errors import CheckpointError
from camify.training import RunRecord
from tests.foreign_code import RunsCode
from tests.training.conftest import SIZE as BLOB_SIZE
from tests.training.conftest import BlobData, SmallLegacy

QUIET = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


def command(capsys, *arguments):
    """Exit code and what was printed."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_folder_and_its_files_are_ready(folder, files, capsys):
    for path in (folder, files[".onnx"].path, files[".pt2"].path, files[".pt2", "pictures"].path):
        code, printed = command(capsys, "check", path)
        assert code == 0, printed
        assert "FAIL" not in printed
        assert "identity" in printed
        assert "4, named" in printed


def test_what_is_wrong_is_said_with_exit_code_1(folder, files, tmp_path, capsys):
    copied = shutil.copytree(folder, tmp_path / "model")
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    code, printed = command(capsys, "check", copied)
    assert code == 1
    assert "sha256" in printed
    for name in (".onnx", ".pt2"):
        cut = tmp_path / f"cut{name}"
        cut.write_bytes(files[name].path.read_bytes()[:-1000])
        code, printed = command(capsys, "check", cut)
        assert code == 1
        assert str(cut) in "".join(printed.split("\n"))
    assert command(capsys, "check", tmp_path / "nothing.pt2")[0] == 1


def test_legacy_checkpoints_are_told_whether_and_why(tmp_path, capsys):
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "native.pth")
    code, printed = command(capsys, "check", f"torchvision/resnet18@{tmp_path}/native.pth")
    assert (code, "FAIL" in printed) == (0, False)
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "legacy.pth")
    code, printed = command(capsys, "check", tmp_path / "legacy.pth")
    assert code == 1
    assert "convertible" in printed
    assert "camify convert" in printed


def test_a_pickle_is_refused_by_the_name_it_asks_for(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(2)}, "camify": RunsCode(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    code, printed = command(capsys, "check", tmp_path / "evil.ckpt")
    assert code == 1
    assert "posix.system" in printed
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- runs


class Interrupted(pl.Callback):
    """As Ctrl-C, in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(3)
    module = camify.CAMFineTuner(SmallLegacy(), class_names=["red", "green"], input_size=BLOB_SIZE, head_channels=8)
    saving = ModelCheckpoint(
        folder,
        "best",
        "val/acc",
        mode="max",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[RunRecord(report=False, quiet=True), saving, Interrupted()],
    )  # fmt: skip
    with pytest.raises(SystemExit):
        trainer.fit(module, BlobData())
    return folder


@QUIET
def test_an_interrupted_run_becomes_a_folder(interrupted, tmp_path, capsys):
    assert not (interrupted / "export").exists()
    out = tmp_path / "ready"
    code, printed = command(capsys, "export", interrupted, "--to", "folder", "--out", out)
    assert code == 0, printed
    net = camify.load(out)
    state = torch.load(interrupted / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in net.state_dict().items())
    assert net.class_names == ["red", "green"]
    assert net.preprocessing == BlobData().preprocessing
    history = json.loads((interrupted / "results.json").read_text())["history"]
    assert net.results["val/acc"] == history[0]["val/acc"]
    assert net.results["val/center_box_acc"] == history[0]["val/center_box_acc"]
    assert net.results["validation_images"] == 20
    assert net.box_rule is None, "chosen where a run ends; until then the default rule cuts"
    assert "center box" in (out / "README.md").read_text()
    assert command(capsys, "check", interrupted / "last.ckpt")[0] == 0


@QUIET
@pytest.mark.slow
def test_it_becomes_one_file_with_boxes_too(interrupted, capsys):
    code, printed = command(capsys, "export", interrupted / "last.ckpt", "--to", "pt2", "--boxes", "true")
    assert code == 0, printed
    path = interrupted / "model.pt2"
    assert "logits, maps, boxes" in printed
    code, printed = command(capsys, "export", interrupted, "--to", "pt2")
    assert (code, "exists" in printed) == (2, True)
    path.unlink()


def test_a_checkpoint_without_a_record_says_what_to_do(tmp_path, monkeypatch):
    few = ["alexnet", "resnet18", "squeezenet1_0", "squeezenet1_1"]  # building all of them takes seconds
    monkeypatch.setattr("camify.sources.torchvision_models.torchvision_names", lambda: few)
    torch.save({"state_dict": {"model.a": torch.zeros(2)}}, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=r"old\.ckpt: its 1 tensor fit none.*torchvision/NAME@"):
        camify.load(tmp_path / "old.ckpt")
    torch.save({"state_dict": torchvision.models.squeezenet1_1().state_dict()}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match=r"foreign\.ckpt.*camify convert"):
        camify.load(tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match=r"neither camify.json nor config.json nor a .ckpt"):
        camify.load(_empty(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.pth: does not exist"):
        camify.load(tmp_path / "model.pth")
    (tmp_path / "model.pth").touch()
    with pytest.raises(CheckpointError, match=r"model\.pth: names a legacy network.*camify convert"):
        camify.load(tmp_path / "model.pth")


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


# ---------------------------------------------------------------- pictures


def test_pictures_are_explained_by_the_maps_of_the_file(folder, files, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(photo)
    maps = {}
    for name, model in (("folder", folder), ("onnx", files[".onnx"].path), ("pt2", files[".pt2"].path),
                        ("pictures", files[".onnx", "pictures"].path)):  # fmt: skip
        code, printed = command(capsys, "explain", photo, "--model", model, "--topk", 2, "--out", tmp_path / name)
        assert code == 0, printed
        maps[name] = np.load(tmp_path / name / "photo.npy")
    scale = np.abs(maps["folder"]).max()
    for name, allowed in (("onnx", 1e-4), ("pt2", 1e-4), ("pictures", 0.05)):  # those are rounded to 8 bits
        np.testing.assert_allclose(maps[name], maps["folder"], atol=allowed * scale)
    code, printed = command(
        capsys, "explain", photo, "--model", files[".pt2"].path, "--method", "gradcam", "--out", tmp_path / "no"
    )
    assert code == 2
    assert "cam is what it can show" in printed


def test_a_file_of_other_people_is_refused(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/models/model.json", "{}")
    (finding,) = check(str(tmp_path / "other.pt2"))
    assert not finding.holds
    assert "Was it written by camify.export?" in finding.message
