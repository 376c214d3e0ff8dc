"""Several processes are one: what explain writes, what evaluate finds, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli import main
from camify.errors import ProcessError
from camify.evaluation.evaluation import evaluate, evaluate_in_ranks
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.network import explained_network, usable_device
from camify.ranks import ONE, EndedElsewhere, Ranks, current, started
from camify.sources import Source
from tests.metrics.two_processes import in_two_processes, needs_fork

from .conftest import NAMES, PREPROCESSING

OPTIONS = {
    "pictures": 8, "legacy": None, "sanity": 0, "augmentations": "flip",
    "methods": ("cam",), "class_names": None, "split": None, "limit": None, "batch_size": 2, "seed": 7,
    "faithfulness": 3, "mosaics": 3, "threshold": None, "device": None, "workers": 0, "options": None, "task": None,
    "check_images": True, "bits": None, "preprocessing": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """As the forked processes have: sums are then made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- in one test process, and in forks of it


def test_shares_are_the_batches_of_one_process_each_once():
    for count, size, world_size in product((0, 1, 5, 12, 13), (1, 3, 4), (1, 2, 3, 5)):
        batches = [list(range(count))[start : start + size] for start in range(0, count, size)]
        for rank in range(world_size):
            own = [number for batch in batches[rank::world_size] for number in batch]
            assert Ranks(rank, world_size).share(range(count), size) == own


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with started() as ranks:
        assert ranks == ONE == current()
    sums = torch.tensor([1.5])
    ONE.add(sums)
    assert (ONE.gather(3), ONE.everywhere(3), ONE.first(lambda: 3), sums.item()) == ([3], 3, 3, 1.5)


def test_a_gpu_is_not_shared_by_processes():
    with pytest.raises(camify.ConfigError, match=r"2 processes would share it\. Give cuda"):
        usable_device("cuda:0", Ranks(0, 2))
    assert usable_device("cpu", Ranks(1, 2)) == torch.device("cpu")


@pytest.fixture
def photos(tmp_path):
    """Nine files, two of one name, one of which is no image."""
    folder = tmp_path / "photos"
    for index in range(9):
        path = folder / str(index % 2) / f"{index // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (30 + index, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "1" / "2.png").write_bytes(b"no image")
    return [folder / str(index % 2) / f"{index // 2}.png" for index in range(9)]


def run_explain(net, files, out, ranks=ONE, **options):
    source = Source(net, "here", NAMES, preprocessing=PREPROCESSING)
    reported = []
    done = explain_files(
        explained_network(source, "here", ["cam"]), files, out, ExplainOptions(), batch_size=2, workers=0,
        report=lambda row: reported.append(row["name"]), ranks=ranks, **options,
    )  # fmt: skip
    return {
        "results": done.results,
        "before": done.before,
        "unreadable": [path.name for path in done.unreadable],
        "reported": reported,
        "notes": done.notes,
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_fork
def test_two_processes_write_what_one_writes(net, photos, tmp_path):
    alone = run_explain(net, photos, tmp_path / "one")
    first, other = in_two_processes(lambda _: run_explain(net, photos, tmp_path / "two", current()), tmp_path)
    assert first == alone
    assert first["results"] == len(first["reported"]) == 8
    assert other["reported"] == []
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@needs_fork
def test_two_processes_find_the_figures_of_one(net, root, tmp_path):
    alone = evaluate(net, root, **OPTIONS)

    def shared(_):
        made = evaluate_in_ranks(current(), net, root, **OPTIONS)
        if made is None:
            return {}
        made.save(tmp_path / "shared")
        return {f"{name}/{key}": value for name, rows in made.rows.items() for key, value in rows.items()}

    rows, nothing = in_two_processes(shared, tmp_path)
    assert nothing == {}
    for name, values in alone.rows.items():
        for key, value in values.items():
            torch.testing.assert_close(rows[f"{name}/{key}"], value, rtol=0, atol=0, equal_nan=True)
    alone.save(tmp_path / "alone")
    found, expected = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("shared", "alone"))
    assert found["facts"].pop("processes") == "2"
    for figures in (found, expected):
        figures["facts"].pop("time")
        figures.pop("cost")
    assert found == expected


@pytest.mark.parametrize("world_size", [1, 3])
def test_parts_of_a_run_that_stopped_are_taken_up_by_any_number(net, photos, tmp_path, world_size):
    """As three processes leave them, the third killed in the midst of a line, and files of which there is no line."""
    one, out = tmp_path / "one", tmp_path / "out"
    run_explain(net, photos, one)
    run_explain(net, photos, out)
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").unlink()
    for rank, numbers in enumerate([(0, 1, 6), (2,), (4, 5)]):
        (out / f"results.rank{rank}.jsonl").write_bytes(b"".join(lines[number] for number in numbers))
    with (out / "results.rank2.jsonl").open("ab") as part:
        part.write(lines[7][:40])
    (out / "results.jsonl").write_bytes(lines[0])  # it was joined, and killed before its parts were removed
    done = run_explain(net, photos, out, Ranks(0, 1) if world_size == 1 else _AsIfThree(out))
    assert (done["before"], done["results"], done["unreadable"]) == (6, 2, ["2.png"])
    assert not list(out.glob("results.rank*"))
    rows, expected = (
        [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()] for folder in (out, one)
    )
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    assert [row.get("name") for row in rows] == [row.get("name") for row in expected]
    assert sorted(contents(out)) == sorted(contents(one))


class _AsIfThree(Ranks):
    """The first of three that does everything: the parts are written and joined as by several."""

    def __init__(self, out):
        super().__init__(0, 3)

    def share(self, items, size=1):
        return list(items)

    def gather(self, value):
        return [value]

    def everywhere(self, value):
        return value


@needs_fork
def test_an_error_of_one_ends_both_and_only_one_says_it(tmp_path):
    def work(part):
        ranks, ended = current(), ""
        try:
            with ranks.agree():
                if ranks.rank == 1:
                    raise camify.DataError("no such image")
        except camify.DataError as error:
            ended = str(error)
        except EndedElsewhere as error:
            ended = f"elsewhere {error.code}"
        return {"ended": ended}

    assert in_two_processes(work, tmp_path) == [{"ended": "elsewhere 2"}, {"ended": "no such image"}]


@needs_fork
def test_a_process_that_is_gone_is_named_at_once(tmp_path):
    def work(part):
        ranks = current()
        if ranks.rank == 1:
            torch.save({}, tmp_path / "1.pt")
            os._exit(0)
        start = time.monotonic()
        with pytest.raises(ProcessError, match="Process 1 of 0 to 1 has ended"):
            ranks.gather(None)
        return {"seconds": time.monotonic() - start}

    assert in_two_processes(work, tmp_path)[0]["seconds"] < 10


# ---------------------------------------------------------------- torchrun, as documented


def command(count, *words):
    start = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return [sys.executable, *start, "-m", "camify", *map(str, words)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run_command(count, *words):
    return subprocess.run(
        command(count, *words), env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def checkpoint(net, tmp_path):
    net.save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.slow
def test_torchrun_explains_and_evaluates_as_one_process(checkpoint, photos, root, tmp_path, capsys):
    def in_this_process(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, code or 0, printed.out, printed.err)

    words = ["--model", checkpoint, "--batch_size", 2, "--workers", 0]
    for name, run in (("one", in_this_process), ("two", partial(run_command, 2))):
        done = run("explain", photos[0].parents[1], *words, "--out", tmp_path / name)
        assert done.returncode == 1, done.stderr  # one file is no image
        assert done.stdout.count("8 of 9 images explained") == 1
        assert done.stdout.count("1 could not be read") == 1
        figures = run("evaluate", "--data", root, *words, "--out", tmp_path / f"{name}-figures")
        assert figures.returncode == 0, figures.stderr
        assert figures.stdout.count("Written:") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    rows = [(tmp_path / f"{name}-figures" / "images.csv").read_text() for name in ("one", "two")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_nothing_is_touched(checkpoint, photos, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "0_cam.png").write_text("mine")
    for words, message in (
        (["explain", *photos, "--model", checkpoint, "--out", foreign], "foreign/0_cam.png: exists."),
        (["explain", *photos, "--model", checkpoint, "--out", tmp_path / "out", "--targets", "yak"], "'yak'"),
        (["compare", *photos, "--model", checkpoint], "camify compare works in one process: run it without torchrun."),
    ):
        done = run_command(2, *words)
        assert done.returncode != 0
        assert done.stderr.count("camify: error:") == 1, done.stderr
        assert message in done.stderr
        assert "exitcode  : 2" in done.stderr.partition("Root Cause")[2]
    assert contents(foreign) == {"0_cam.png": b"mine"}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_any_number_goes_on(checkpoint, tmp_path):
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    for index in range(60):
        pixels = np.random.default_rng(index).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    words = ["explain", folder, "--model", checkpoint, "--batch_size", 1, "--workers", 0, "--out"]
    running = subprocess.Popen(command(2, *words, out), env=environment(), stderr=subprocess.PIPE, text=True)
    part = out / "results.rank1.jsonl"
    while not (part.is_file() and part.stat().st_size) and running.poll() is None:
        time.sleep(0.05)
    os.kill(process_of_rank(running.pid, 1), signal.SIGKILL)
    start = time.monotonic()
    said = running.communicate(timeout=60)[1]
    assert time.monotonic() - start < 20
    assert running.returncode != 0
    assert "rank      : 1" in said.partition("Root Cause")[2]
    assert not (out / "results.jsonl").exists()
    assert run_command(3, *words, out).returncode == 0
    assert run_command(1, *words, tmp_path / "whole").returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


def process_of_rank(launcher, rank):
    """The process that torchrun started with this number (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) != launcher:
                continue
            if f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")
