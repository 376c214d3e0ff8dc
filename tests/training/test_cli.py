"""The training command line, from configuration file to run folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
import yaml

import camify
from camify.cli.train import main

pytestmark = pytest.mark.filterwarnings("ignore")  # the command line sets its own filters; these runs print them


@pytest.fixture(autouse=True)
def _no_run_folder(monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)


def write_config(folder):
    """A configuration, whose run goes into ``folder/run``."""
    options = {
        "trainer": {
            "max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False, "log_every_n_steps": 1,
        },
        "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8},
        "data": {
            "class_path": "ShapesDataModule",
            "init_args": {"train_count": 24, "val_count": 12, "test_count": 12, "batch_size": 12},
        },
        "overlays": {"num_images": 2},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    return str(path)


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a configuration and of its finished run, which tests may add to and not change."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.delenv("CAMIFY_RUN_FOLDER", raising=False)
        run("fit", "--config", write_config(folder))
    return folder


def run(*arguments):
    main(list(arguments))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("camify: error: ")
    return error


def test_a_run_leaves_its_whole_folder_and_a_second_one_another(finished):
    folder = finished / "run"
    expected = {"config.yaml", "results.json", "report.html", "overlays", "export"}
    assert expected | {"best.ckpt", "last.ckpt", "metrics.csv"} <= {entry.name for entry in folder.iterdir()}
    assert any(entry.name.startswith("events.") for entry in folder.iterdir())
    assert json.loads((folder / "results.json").read_text())["finished"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run("fit", "--config", str(finished / "config.yaml"))
    assert (finished / "run-2" / "export" / "camify.json").is_file()
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "CAMIFY_RUN_FOLDER" not in os.environ


@pytest.mark.slow
def test_one_batch_is_not_all_of_them(config):
    """In a process where camify comes before Lightning: the order of a union's types depends on who asked first."""
    code = "from camify.cli.train import main; import sys; main(sys.argv[1:])"
    words = ["fit", "--config", config, "--trainer.limit_train_batches", "1", "--print_config"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    limit = yaml.safe_load(done.stdout)["trainer"]["limit_train_batches"]
    assert isinstance(limit, int)
    assert limit == 1


@pytest.mark.slow
def test_the_written_configuration_resumes_the_run(config, tmp_path):
    run("fit", "--config", config)
    folder = tmp_path / "run"
    resume = ("--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "last.ckpt"))
    run("fit", *resume, "--trainer.max_epochs", "2", "--overlays.method", "[cam, gradcam++]")
    assert not (tmp_path / "run-2").exists()
    assert [row["epoch"] for row in json.loads((folder / "results.json").read_text())["history"]] == [0, 1]
    assert (folder / "overlays" / "epoch_000").is_dir()
    assert (folder / "overlays" / "epoch_001" / "gradcam_plus_plus").is_dir()
    assert 'data-method="gradcam++"' in (folder / "report.html").read_text()
    assert (folder / "metrics-1.csv").is_file(), "the figures of the first part are kept"


@pytest.mark.slow
def test_validate_and_test_write_nothing_and_predict_a_table(finished, capsys):
    config, folder = str(finished / "config.yaml"), finished / "run"
    before = sorted(finished.rglob("*"))
    best = str(folder / "best.ckpt")
    for command in ("validate", "test"):
        run(command, "--config", config, "--ckpt_path", best)
    assert sorted(finished.rglob("*")) == before
    assert "test/max_box_acc" in capsys.readouterr().out
    for _ in range(2):
        run("predict", "--config", config, "--ckpt_path", best)
    assert {path.name for path in folder.glob("predictions*")} == {"predictions.csv", "predictions-2.csv"}
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    data = camify.data.ShapesDataModule(test_count=12, train_count=1, val_count=1)
    data.setup("test")
    net = camify.load(folder / "export")
    for row, sample in zip(rows, data.splits["test"], strict=True):
        with torch.no_grad():
            probabilities = net(sample["image"][None]).softmax(1)[0]
        assert row["image"] == sample["path"]
        assert row["class"] == net.class_names[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-4)


@pytest.mark.slow
def test_a_checkpoint_folder_can_be_trained_on(finished, config, tmp_path):
    run("fit", "--config", config, "--model.model", str(finished / "run" / "export"))
    first, second = (camify.load(folder / "run" / "export") for folder in (finished, tmp_path))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_head_none_makes_a_legacy_file_that_converts(config, tmp_path):
    run("fit", "--config", config, "--model.head", "none")
    file = tmp_path / "run" / "legacy.safetensors"
    net = camify.convert(f"camify/tiny_vgg@{file}", head="direct", input_size=96)
    assert net.class_names == list(camify.data.shape_renderer.CLASS_NAMES)


def test_unknown_options_say_what_may_have_been_meant(config, tmp_path, capsys):
    assert "Did you mean --model.lr?" in refused(capsys, "fit", "--config", config, "--model.lrr", "1")
    assert "Did you mean" not in refused(capsys, "fit", "--config", config, "--record.folder", "x")  # in no other group
    assert "Did you mean --trainer.max_epochs?" in refused(capsys, "fit", "--config", config, "--max_epoch", "1")
    bad = tmp_path / "bad.yaml"
    bad.write_text("model:\n  model: camify/tiny_vgg\n  freeze_epoch: 3\ndata: ShapesDataModule\n")
    assert "Did you mean model.freeze_epochs?" in refused(capsys, "fit", "--config", str(bad))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model.lr", "abc"), 'key "model.lr"'),
        (("--model.lr", "-1"), "must be positive"),
        (("--model.head", "best"), "model.head"),
        (("--model.model", "torchvision/nothing"), "no such classifier"),
        (("--model.model", "camify/tiny_vgg@missing.pth"), "missing.pth: no such file"),
        (("--data.class_path", "subprocess.Popen"), "not allowed"),
        (("--data.class_path", "torch.nn.Linear"), "LightningDataModule"),
        (("--trainer.callbacks", "os.system"), "not allowed"),
        (("--data", "ImageFolderDataModule", "--data.init_args.root", "nowhere"), "nowhere/train: no such folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(config, capsys, arguments, words):
    assert words in refused(capsys, "fit", "--config", config, *arguments)


def test_missing_files_and_commands(capsys):
    assert "does not exist" in refused(capsys, "fit", "--config", "nowhere.yaml")
    assert "fit" in refused(capsys, "train")
    assert "subcommand" in refused(capsys)


@pytest.mark.slow
def test_every_configuration_in_the_repository_parses(monkeypatch, capsys):
    from pathlib import Path

    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    files = sorted((root / "configs").glob("*.yaml"))
    assert files
    for file in files:
        extra = ["--data.init_args.root", "x"] if file.name == "your_data.yaml" else []
        with pytest.raises(SystemExit) as left:
            main(["fit", "--config", str(file), *extra, "--print_config"])
        assert left.value.code == 0
        assert file.read_text().startswith(f"# python train.py fit --config configs/{file.name}")
