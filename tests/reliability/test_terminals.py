"""The terminal never ends a run nor changes its exit code: any encoding, closed pipes, full disks, no stream at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from rich.table import Table

from camify.cli.commands import main
from camify.console import as_text, console, plain_text, print_error, tolerant_streams, warn
from camify.progress import tracked

ROOT = Path(__file__).parents[2]


def closed_pipe(encoding="utf-8"):
    read, write = os.pipe()
    os.close(read)
    return open(write, "w", encoding=encoding)


def full_disk():
    return open("/dev/full", "w", encoding="utf-8")


def in_encoding(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


class Closed(io.StringIO):
    def write(self, text):
        raise ValueError("I/O operation on closed file")


STREAMS = {
    "ascii": lambda: in_encoding("ascii"),
    "latin-1": lambda: in_encoding("latin-1"),
    "cp1252": lambda: in_encoding("cp1252"),
    "closed pipe": closed_pipe,
    "full disk": full_disk,
    "closed": Closed,
    "none": lambda: None,
}


@contextlib.contextmanager
def terminal(kind):
    """stdout and stderr of some kind. Not a fixture: pytest puts its own back before it calls the test."""
    made = STREAMS[kind]()
    try:
        with contextlib.redirect_stdout(made), contextlib.redirect_stderr(made):
            yield made
    finally:
        if made is not None:
            made.close()


every_terminal = pytest.mark.parametrize("kind", STREAMS)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    options = {
        "trainer": {
            "max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(tmp_path / "日本" / "run"),
            "log_every_n_steps": 1, "enable_progress_bar": True,
        },
        "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8},
        "data": {"class_path": "ShapesDataModule", "init_args": {"train_count": 12, "val_count": 6, "batch_size": 6}},
        "overlays": {"num_images": 1, "num_highlights": 0},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def finished(config):
    return json.loads((config.parent / "日本" / "run" / "results.json").read_text())["finished"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("ascii", "full disk") else pytest.param(kind, marks=pytest.mark.slow) for kind in STREAMS],
)
def test_training_ends_well_on_every_terminal(config, kind):
    with terminal(kind) as stream:
        main(["fit", "--config", str(config)])
        text = stream.buffer.getvalue().decode(kind) if kind in ("ascii", "latin-1", "cp1252") else None
    assert finished(config)
    if text is not None:
        assert "epoch 0" in text
        assert r"\u65e5\u672c" in text


@every_terminal
def test_an_error_keeps_its_code_on_every_terminal(kind):
    with pytest.raises(SystemExit) as left, terminal(kind):
        main(["inspect", "日本 \x1b"])
    assert left.value.code == 2


@every_terminal
def test_everything_camify_prints_goes_through(kind):
    table = Table("日本", title="é")
    table.add_row(plain_text("\x1b[31m\udcff"))
    done = []
    with terminal(kind):
        for _ in range(2):
            console().print(table)
            console(stderr=True).print("é 日本 [/b] \x1b")
            print_error("é\n日本")
            done += tracked(range(20), "é", 20)
        with tolerant_streams():
            print("日本")
            if sys.stderr is not None:
                sys.stderr.write("日本")
                sys.stderr.flush()
    assert done == 2 * list(range(20))


def test_text_is_text(capsys):
    console().print("report /runs/x4 [exp] [/b] [red]a[/red] :smile: \x1b]0;t\x07 \u202e", soft_wrap=True)
    assert capsys.readouterr().out == "report /runs/x4 [exp] [/b] [red]a[/red] :smile: \\x1b]0;t\\x07 \\u202e\n"
    table = Table(title="[/b] \x1b")
    table.add_column("[exp]")
    table.add_row("[/b]\x1b", style="bold")
    assert r"[/b]\x1b" in as_text(table)
    assert "[exp]" in as_text(table)
    with pytest.warns(UserWarning, match=r"class \\x1b\[2J"):
        warn("class \x1b[2J")


def test_warnings_of_anybody_hide_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tolerant_streams():
            warnings.warn("class \x1b[2J", stacklevel=1)
    (entry,) = caught
    assert str(entry.message) == r"class \x1b[2J"
    assert entry.category is UserWarning


def test_a_line_is_not_wrapped_so_that_it_can_be_copied(capsys):
    console(soft_wrap=True).print("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["{python} train.py fit --config {config} | head -1", "{python} train.py fit --config {config} > /dev/full 2>&1",
     "{python} train.py fit --config {config} >&- 2>&-",
     "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 TERM=dumb {python} train.py fit --config {config} | cat",
     "PYTHONIOENCODING=latin-1 {python} -m camify fit --config {config} | cat"],
)  # fmt: skip
def test_the_programs_themselves(config, command):
    line = command.format(python=sys.executable, config=f"{config} --trainer.default_root_dir {config.parent}/plain")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert json.loads((config.parent / "plain" / "results.json").read_text())["finished"]


@pytest.mark.slow
def test_a_folder_that_the_locale_cannot_name_is_one_line(config):
    done = subprocess.run(
        [sys.executable, "train.py", "fit", "--config", str(config)], cwd=ROOT, capture_output=True, check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("camify: error: ")
    assert "PYTHONUTF8=1" in line
