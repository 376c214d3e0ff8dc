"""Promise 4: interrupted and resumed equals uninterrupted; ``last.ckpt`` is the last epoch; who goes on is compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

import camify
from camify.cli.train import main
from camify.training.run_folder import RUN_MARKER, claimed_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # the command line sets its own filters; these runs print them


@pytest.fixture(autouse=True)
def _no_run_folder(monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)


def configuration(folder, root, **trainer):
    """A run of two short epochs that nothing can improve after the first: it learns nothing."""
    options = {
        "seed_everything": 4,
        "trainer": {
            "max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(folder / "run"), "log_every_n_steps": 1,
            "enable_progress_bar": False, "num_sanity_val_steps": 0, **trainer,
        },
        "model": {
            "model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8, "lr": 1e-9, "cam_metrics": [],
            "grid_mosaics": 1,
        },
        "data": {
            "class_path": "ImageFolderDataModule",
            "init_args": {"root": str(root), "image_size": 96, "batch_size": 4, "num_workers": 0},
        },
        "overlays": {"num_images": 1, "num_highlights": 0},
        "record": {"quiet": True},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    main(["fit", "--config", str(configuration(folder, images))])
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, moved to another place."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def go_on(run, *more, checkpoint="last.ckpt"):
    main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / checkpoint), *more])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    return capsys.readouterr().err


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def epoch_of(path):
    return torch.load(path, weights_only=True)["epoch"]


def test_the_last_checkpoint_is_of_the_last_epoch_and_the_best_of_the_best(finished):
    assert epoch_of(finished / "last.ckpt") == 1
    assert epoch_of(finished / "best.ckpt") == 0


def test_a_moved_run_goes_on_where_it_is_and_knows_its_best_epoch(finished, run):
    before = contents(finished)
    go_on(run, "--trainer.max_epochs", "3")
    assert contents(finished) == before
    assert epoch_of(run / "last.ckpt") == 2
    assert epoch_of(run / "best.ckpt") == 0
    assert [row["epoch"] for row in json.loads((run / "results.json").read_text())["history"]] == [0, 1, 2]
    assert sorted(path.name for path in run.parent.iterdir()) == ["moved"]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["default_root_dir"] == str(run)


def test_a_dry_run_touches_nothing(finished, run):
    before = contents(run)
    main([
        "fit", "--config", str(run / "config.yaml"), "--trainer.fast_dev_run", "true",
        "--trainer.default_root_dir", str(run),
    ])  # fmt: skip
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["moved"]


# ------------------------------------------------------------ what is refused leaves everything as it was

DAMAGE = {
    "one bit": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    ),
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"not a checkpoint",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_whole_one_named(run, kind, capsys):
    last = run / "last.ckpt"
    last.write_bytes(DAMAGE[kind](last.read_bytes()))
    before = contents(run)
    error = refused(capsys, "fit", "--config", run / "config.yaml", "--ckpt_path", last, "--trainer.max_epochs", "3")
    assert f"{last}: " in error
    assert f"Whole, and from epoch 0: --ckpt_path {run / 'best.ckpt'}" in error
    assert contents(run) == before


def test_a_missing_one_is_named_with_the_whole_one(run, capsys):
    (run / "last.ckpt").unlink()
    error = refused(capsys, "fit", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    assert "no such file" in error
    assert "best.ckpt" in error


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model.head_channels", "16", "head_channels: 8 then, 16 now"),
        ("--model.head", "direct", "head: 'gap' then, 'direct' now"),
        ("--trainer.limit_train_batches", "2", "limit_train_batches: 1.0 then, 2 now"),
        ("--trainer.accumulate_grad_batches", "2", "accumulate_grad_batches: 1 then, 2 now"),
        ("--data", "ShapesDataModule", "data: 'ImageFolderDataModule' then, 'ShapesDataModule' now"),
    ],
)
def test_other_options_are_refused_by_name(run, option, value, words, capsys):
    before = contents(run)
    given = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", option, value)
    error = refused(capsys, "fit", *given, "--trainer.max_epochs", "3")
    assert words in error or "class" in error
    assert "size mismatch" not in error
    assert contents(run) == before


CHANGES = {
    "an image added": lambda root: shutil.copy(root / "train/dark/0.png", root / "train/dark/7.png"),
    "an image removed": lambda root: (root / "train/dark/0.png").unlink(),
    "an image replaced": lambda root: shutil.copy(root / "train/dark/0.png", root / "train/light/0.png"),
    "an image renamed": lambda root: (root / "val/dark/0.png").rename(root / "val/dark/9.png"),
    "an image of another class": lambda root: (root / "val/dark/0.png").rename(root / "val/light/9.png"),
    "boxes added": lambda root: (root / "boxes.csv").write_text(
        "image,x0,y0,x1,y1,label\ntrain/dark/0.png,1,1,9,9,dark\n"
    ),
    "a test split added": lambda root: shutil.copytree(root / "val", root / "test"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_is_refused(run, images, change, tmp_path, capsys):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    CHANGES[change](root)
    before = contents(run)
    given = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.init_args.root", root)
    error = refused(capsys, "fit", *given, "--trainer.max_epochs", "3")
    assert "The data is not that of the run that stopped" in error
    assert contents(run) == before


def test_the_same_data_elsewhere_is_the_same(run, images, tmp_path):
    root = tmp_path / "copied"
    shutil.copytree(images, root, copy_function=shutil.copyfile)
    go_on(run, "--data.init_args.root", str(root), "--trainer.max_epochs", "3")
    assert epoch_of(run / "last.ckpt") == 2


def test_another_network_is_refused_by_layer_in_python(finished, images, make_module):
    module = make_module(head_channels=16)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data = camify.data.ImageFolderDataModule(str(images), 96, num_workers=0)
    with pytest.raises(camify.errors.CheckpointError, match=r"of another network .*: \(8, .* in the checkpoint, \(16,"):
        trainer.validate(module, data, ckpt_path=finished / "last.ckpt", weights_only=True)


@pytest.fixture
def make_module():
    def make(**options):
        return camify.CAMFineTuner("camify/tiny_vgg", ["dark", "light"], input_size=96, **options)

    return make


# ------------------------------------------------------------ folders


def test_a_folder_of_the_users_is_refused_before_training(images, tmp_path, capsys):
    config = configuration(tmp_path, images)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("mine")
    error = refused(capsys, "fit", "--config", config)
    assert "holds results.json and is no run of camify" in error
    assert contents(tmp_path / "run") == {Path("results.json"): b"mine"}


def test_a_second_folder_also_of_the_longest_name(tmp_path):
    first = tmp_path / ("x" * 255)
    first.mkdir()
    (first / "config.yaml").touch()  # of a run
    with claimed_folder(first, go_on=False) as second:
        assert second.name == "x" * 253 + "-2"
        assert (second / RUN_MARKER).is_file()
    assert not second.exists()  # nothing was kept in it


def test_a_run_that_was_refused_leaves_no_folder(images, tmp_path, capsys):
    config = configuration(tmp_path, images)
    refused(capsys, "fit", "--config", config, "--model.model", "nothing")
    assert not (tmp_path / "run").exists()


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_runs_at_the_same_moment_get_two_folders(images, tmp_path):
    config = configuration(tmp_path, images)
    runs = [start("fit", "--config", config) for _ in range(2)]
    assert [run.communicate(timeout=200) and run.returncode for run in runs] == [0, 0]
    for name in ("run", "run-2"):
        assert json.loads((tmp_path / name / "results.json").read_text())["finished"]
        assert camify.load(tmp_path / name / "export").num_classes == 2


def test_a_run_that_is_alive_cannot_go_on_twice(run, capsys):
    holder = """
import fcntl, json, os, sys, time
with open(sys.argv[1], "r+") as marker:
    fcntl.flock(marker, fcntl.LOCK_EX)
    json.dump({"process": os.getpid(), "machine": "here"}, marker)
    marker.truncate()
    marker.flush()
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run / RUN_MARKER)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            before = contents(run)
            error = refused(capsys, "fit", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
            assert f"its run is still alive (process {other.pid} on here)" in error
            assert contents(run) == before
        finally:
            other.kill()
    go_on(run, "--trainer.max_epochs", "3")  # the lock went with its process
    assert (run / RUN_MARKER).is_file()


# ------------------------------------------------------------ Ctrl-C


@pytest.fixture
def _ctrl_c():
    """Ctrl-C is what it is in a terminal: a program that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupt(pl.Callback):
    """Presses Ctrl-C after a batch, so many times."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for _ in range(self.times if trainer.global_step == self.step else 0):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_keeps_the_batch_and_leaves_with_130(images, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
        configuration(folder, images)
    options = ["--model.lr", "0.02"]
    main(["fit", "--config", str(whole / "config.yaml"), *options])
    with monkeypatch.context() as patch:
        interrupt = Interrupt(2)
        patch.setattr(
            camify.CAMFineTuner, "on_train_batch_end",
            lambda self, *given: interrupt.on_train_batch_end(self.trainer, self, *given),
        )  # fmt: skip
        with pytest.raises(SystemExit) as left:
            main(["fit", "--config", str(stopped / "config.yaml"), *options])
    assert left.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert torch.load(stopped / "run/last.ckpt", weights_only=True)["global_step"] == 2
    go_on(stopped / "run")
    first, second = (camify.load(folder / "run/export").state_dict() for folder in (whole, stopped))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_stops_at_once(images, tmp_path, monkeypatch):
    interrupt = Interrupt(1, times=2)
    monkeypatch.setattr(
        camify.CAMFineTuner, "on_train_batch_end",
        lambda self, *given: interrupt.on_train_batch_end(self.trainer, self, *given),
    )  # fmt: skip
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(configuration(tmp_path, images))])
    assert left.value.code == 130


# ------------------------------------------------------------ several processes


@pytest.mark.slow
def test_two_processes_stopped_within_an_epoch_go_on_as_if_they_had_not_been(images, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        "import camify\n"
        "from camify.cli.train import main\n"
        "stop = int(sys.argv[1])\n"
        "def after(self, *_):\n"
        "    if self.trainer.global_step == stop and self.trainer.is_global_zero:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "camify.CAMFineTuner.on_train_batch_end = after\n"
        "main(['fit', *sys.argv[2:]])\n"
    )
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        configuration(tmp_path / name, images, devices=2, strategy="ddp_find_unused_parameters_true", max_epochs=3)

    def torchrun(stop, *more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        options = ["--data.init_args.batch_size", "2", "--model.lr", "0.02"]
        return subprocess.run(
            [*command, str(script), str(stop), *map(str, more), *options],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    done = torchrun(-1, "--config", tmp_path / "whole/config.yaml")
    assert done.returncode == 0, done.stderr
    done = torchrun(4, "--config", tmp_path / "stopped/config.yaml")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr.split("torch.distributed")[0], done.stderr
    last = tmp_path / "stopped/run/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5  # of three an epoch
    done = torchrun(-1, "--config", tmp_path / "stopped/run/config.yaml", "--ckpt_path", last)
    assert done.returncode == 0, done.stderr
    first, second = (camify.load(tmp_path / name / "run/export").state_dict() for name in ("whole", "stopped"))
    assert max(float((first[key] - second[key]).abs().max()) for key in first) == 0
