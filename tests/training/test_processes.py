"""Two processes are one: figures, pictures, failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import camify
from tests.metrics.two_processes import needs_fork
from tests.training.conftest import SIZE, SmallLegacy

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on processes


def tuner(**options):
    torch.manual_seed(3)
    names = list(camify.data.shape_renderer.CLASS_NAMES)
    defaults = {"class_names": names, "input_size": SIZE, "head_channels": 8, "lr": 0.02}
    module = camify.CAMFineTuner(SmallLegacy(len(names)), **defaults | options)
    module.model.untrained = ()  # as if it had been trained: it is to be measured
    return module


def shapes():
    return camify.data.ShapesDataModule(train_count=12, val_count=7, test_count=1, image_size=SIZE, batch_size=3)


@needs_fork
def test_figures_of_an_uneven_split_are_those_of_one_process(make_trainer, tmp_path):
    """Seven images in batches of three: 3 + 3 + 1 in one process, 3 + 1 and 3 in two."""
    found = []
    for options in ({}, {"devices": 2, "strategy": "ddp_fork"}):
        found.append(make_trainer(**options).validate(tuner(), shapes(), verbose=False)[0])
    assert set(found[0]) >= {"val/loss", "val/acc", "val/max_box_acc", "val/center_box_acc"}
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# ------------------------------------------------------------ torchrun, as documented

SCRIPT = """
import sys
import torch
import camify
from camify.cli.train import main

folder, failing = sys.argv[1:3]

def watch(self):
    weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
    torch.save(weights, f"{folder}/weights-{self.current_epoch}-{self.global_rank}.pt")
    if failing == "fails" and self.global_rank == 1 and self.current_epoch == 1:
        raise RuntimeError("process 1 fails")

camify.CAMFineTuner.on_train_epoch_end = watch
main(["fit", *sys.argv[3:]])
"""


def torchrun(folder, *more, failing="works"):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    options = {
        "trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.max_epochs": 3,
        "trainer.default_root_dir": folder / "run",
        "trainer.strategy": "ddp_find_unused_parameters_true", "trainer.enable_progress_bar": False,
        "model.model": "camify/tiny_vgg", "model.input_size": 96, "model.head_channels": 8, "overlays.num_images": 2,
        "data": "ShapesDataModule", "data.train_count": 14, "data.val_count": 7, "data.batch_size": 3,
    }  # fmt: skip
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("CAMIFY_RUN_FOLDER", None)
    command += [str(folder), failing, *arguments, *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=folder)


@pytest.mark.slow
def test_two_processes_train_one_network_through_the_unfreezing_and_draw_once(tmp_path):
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    states = {(e, r): torch.load(tmp_path / f"weights-{e}-{r}.pt", weights_only=True) for e in range(3) for r in (0, 1)}
    for epoch in range(3):
        assert torch.equal(states[epoch, 0], states[epoch, 1])
    assert not torch.equal(states[0, 0], states[1, 0])
    assert len(list((tmp_path / "run" / "overlays").rglob("epoch_*/*.png"))) == 6
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["epoch"] for row in results["history"]] == [0, 1, 2]
    assert camify.load(tmp_path / "run" / "export").box_rule is not None
    resumed = torchrun(tmp_path, "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--trainer.max_epochs", "4")
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["history"]) == 4


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_instead_of_hanging_it(tmp_path):
    done = torchrun(tmp_path, failing="fails")
    assert done.returncode != 0
    assert "process 1 fails" in done.stderr


@pytest.mark.slow
def test_frozen_features_need_a_strategy_that_knows_of_them(tmp_path):
    done = torchrun(tmp_path, "--trainer.strategy", "ddp")
    assert done.returncode != 0
    assert "--trainer.strategy ddp_find_unused_parameters_true" in done.stderr
