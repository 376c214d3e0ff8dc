"""Two processes are one: figures, pictures, failures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, WeightedRandomSampler

import camify
from camify.training.early_checks import refuse_sharded_weights
from camify.training.loaders import whole_split
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
import os
import signal
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

def stop(self, batch, batch_idx):
    if failing == "stops" and self.global_rank == 1 and (self.current_epoch, batch_idx) == (1, 0):
        os.kill(os.getpid(), signal.SIGTERM)

camify.CAMFineTuner.on_train_epoch_end = watch
camify.CAMFineTuner.on_train_batch_start = stop
main(["fit", *sys.argv[3:]])
"""
STANDALONE = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def torchrun(folder, *more, failing="works"):
    """The run, of two processes on one machine."""
    return start(folder, *more, failing=failing).finish()


class Started:
    """A command that runs."""

    def __init__(self, command, folder, **more):
        environment = {**os.environ, **more, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        environment.pop("CAMIFY_RUN_FOLDER", None)
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )

    def finish(self):
        out, err = self.process.communicate(timeout=200)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)


def start(folder, *more, failing="works", launcher=STANDALONE, **environment):
    folder.mkdir(exist_ok=True)
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
    return Started(
        [sys.executable, *launcher, str(script), str(folder), failing, *arguments, *more], folder, **environment
    )


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def weights(folder, epoch, rank=0):
    return torch.load(folder / f"weights-{epoch}-{rank}.pt", weights_only=True)


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
    taken = results["classes_taken"]
    assert sum(count for _, _, count in taken["figures"]["pairs"]) == 7, "each image once, whoever saw it"
    assert sum(row[0] for row in taken["calibrations"]["start"]["bins"]) == 7
    assert len(taken["examples"]) == 7
    assert camify.load(tmp_path / "run" / "export").box_rule is not None


@pytest.mark.slow
def test_two_processes_go_on_with_a_run(tmp_path):
    assert torchrun(tmp_path, "--trainer.max_epochs", "1").returncode == 0
    resumed = torchrun(tmp_path, "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--trainer.max_epochs", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["history"]) == 2


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


SAME_STEPS = (  # whoever has which image: batch norms that learn would see other batches; kept features
    "--data.augment", "none", "--model.dropout", "0", "--model.init", "ridge", "--model.freeze_epochs", "3",
)  # fmt: skip


@pytest.mark.slow
def test_two_machines_with_disks_of_their_own_are_one_process(tmp_path):
    """All images in one step of all processes: then the order in which they are drawn changes nothing."""
    port = free_port()
    several = ("--trainer.num_nodes", "2", "--trainer.devices", "1", "--data.batch_size", "7")
    nodes = []
    for number in (0, 1):
        launcher = (
            "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1",
            "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "camify",
        )  # fmt: skip
        nodes.append(start(tmp_path / f"node{number}", *SAME_STEPS, *several, launcher=launcher))
    for done in [node.finish() for node in nodes]:
        assert done.returncode == 0, done.stderr
    alone = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--data.batch_size", "14")
    done = start(tmp_path / "one", *SAME_STEPS, *alone, launcher=()).finish()
    assert done.returncode == 0, done.stderr
    # What torchrun calls rank 0 may be either machine: the first to come hosts the meeting.
    first = next(number for number in (0, 1) if (tmp_path / f"node{number}" / "run" / "results.json").is_file())
    other = tmp_path / f"node{1 - first}" / "run"
    left = [path.name for path in other.rglob("*") if path.is_file()] if other.exists() else []
    assert left == [], "one machine has the run, the other nothing of it"
    shared, single = tmp_path / f"node{first}", tmp_path / "one"
    for epoch in range(3):
        torch.testing.assert_close(weights(shared, epoch), weights(single, epoch), rtol=1e-3, atol=1e-4)
    found, expected = (json.loads((place / "run" / "results.json").read_text()) for place in (shared, single))
    for ours, theirs in zip(found["history"], expected["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert found["start"] == pytest.approx(expected["start"], rel=1e-4, abs=1e-5)
    networks = [camify.load(place / "run" / "export") for place in (shared, single)]
    assert networks[0].object_map["images"] == networks[1].object_map["images"] == 14
    torch.testing.assert_close(networks[0].object_weight, networks[1].object_weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_kept_features_change_nothing_in_two_processes_also_where_the_run_stopped(tmp_path):
    common = ("--data.augment", "none", "--model.dropout", "0", "--model.freeze_epochs", "2")
    for name, cache in (("off", "off"), ("kept", "memory")):
        done = torchrun(tmp_path / name, *common, "--model.feature_cache", cache)
        assert done.returncode == 0, done.stderr
    for epoch, rank in product(range(3), (0, 1)):
        ours, theirs = weights(tmp_path / "kept", epoch, rank), weights(tmp_path / "off", epoch, rank)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    stopped = tmp_path / "stopped"
    done = torchrun(stopped, *common, "--model.feature_cache", "memory", failing="stops")
    assert done.returncode != 0
    assert not (stopped / "weights-1-0.pt").exists(), "it stopped within the epoch"
    resumed = (*common, "--model.feature_cache", "memory", "--ckpt_path", str(stopped / "run" / "last.ckpt"))
    done = torchrun(stopped, *resumed)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert torch.equal(weights(stopped, 2, rank), weights(tmp_path / "kept", 2, rank))


@pytest.mark.slow
def test_tasks_of_a_slurm_job_stop_on_its_signal_and_go_on(tmp_path):
    """As srun starts them: one of two tasks gets the signal, both stop after the same batch."""
    job = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "camify", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost", "MASTER_ADDR": "localhost",
    }  # fmt: skip

    def tasks(*more, failing="works"):
        here = job | {"MASTER_PORT": str(free_port())}
        started = [
            start(tmp_path, *more, failing=failing, launcher=(), SLURM_PROCID=str(n), SLURM_LOCALID=str(n), **here)
            for n in (0, 1)
        ]
        return [one.finish() for one in started]

    stopped = tasks(failing="stops")
    assert [done.returncode for done in stopped] == [143, 143], stopped[0].stderr
    assert not (tmp_path / "weights-1-0.pt").exists()
    checkpoint = tmp_path / "run" / "last.ckpt"
    done = tasks("--ckpt_path", str(checkpoint))
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert torch.equal(weights(tmp_path, 2, 0), weights(tmp_path, 2, 1))
    again = start(tmp_path, launcher=(), SLURM_PROCID="0", SLURM_LOCALID="0", MASTER_PORT="1", **job).finish()
    assert "holds a run already" in again.stderr, "the tasks would not agree on a folder of another name"
    assert not (tmp_path / "run-2").exists()


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_a_strategy_that_splits_weights_is_refused(strategy):
    with pytest.raises(camify.ConfigError, match=f"{strategy.__name__} splits the weights.*Give ddp_find_unused"):
        refuse_sharded_weights(SimpleNamespace(strategy=strategy()))


def test_a_shuffled_split_is_read_in_order_and_shared_without_rest():
    data = list(range(11))
    loader = DataLoader(data, batch_size=3, shuffle=True, drop_last=True)

    def read(*part, **options):
        return torch.cat(list(whole_split(loader, *part, **options))).tolist()

    assert read() == data
    assert (read(0, 2), read(1, 2)) == (data[::2], data[1::2])
    assert read(every=4) == [0, 4, 8]
    drawn = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 11, 5))
    assert whole_split(drawn) is drawn, "a way of its own"
