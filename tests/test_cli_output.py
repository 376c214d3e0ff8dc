"""What commands say: to people in 80 columns, to scripts as JSON, to terminals that can draw as a picture."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.reports.tables import Table, text_tables
from camify.sources.demo_network import TinyVGG


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint ``model``, labeled images in ``data``, and one that is no image in ``broken``."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    net = camify.convert(TinyVGG(2), head="direct", input_size=96, seed=0)
    net.class_names, net.preprocessing = ["a rather long name of a class of ants", "bee"], Preprocessing(96)
    net.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for name in net.class_names:
        (folder / "data" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{number}.png")
    (folder / "broken").mkdir()
    (folder / "broken" / "no.png").write_bytes(b"no image")
    Image.fromarray(pixels).save(folder / "broken" / "yes.png")
    (folder / "boxes.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "bee/0.png", "width": 90, "height": 60}],
        "categories": [{"id": 1, "name": "bee"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 20]}],
    }))  # fmt: skip
    return folder


MODEL, FAST = ("--model", "{model}"), ("--faithfulness", "4", "--mosaics", "4", "--pictures", "4")
COMMANDS = {
    "inspect": (("inspect", "camify/tiny_vgg"), ["verdict", "cam_ready", "num_classes"]),
    "convert": (("convert", "camify/tiny_vgg", "{out}", "--head", "direct"), ["folder", "certificate"]),
    "explain": (("explain", "{data}", *MODEL, "--out", "{out}"), ["image", "picture", "classes"]),
    "compare": (("compare", "{data}", *MODEL, "--out", "{out}", "--method", "cam"), ["facts"]),
    "evaluate": (("evaluate", *MODEL, "--data", "{data}", "--output", "{out}", *FAST), ["accuracy", "confusion"]),
    "export": (("export", "{model}", "--to", "onnx", "--out", "{out}.onnx"), ["path", "error"]),
    "check": (("check", "{model}"), ["holds", "points"]),
    "data": (
        ("data", "import", "{boxes}", "--images", "{data}", "--out", "{out}.csv", "--overwrite", "true"), ["boxes"],
    ),
}  # fmt: skip

SLOW = ("compare", "evaluate", "export")  # which measure what methods cost, or trace


def words(place, out, name):
    places = {
        "{model}": place / "model", "{data}": place / "data", "{out}": out / name, "{boxes}": place / "boxes.json",
    }  # fmt: skip
    made = []
    for word in COMMANDS[name][0]:
        for mark, path in places.items():
            word = word.replace(mark, str(path))
        made.append(word)
    return made


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMMANDS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_json_is_all_that_a_script_reads(place, tmp_path, capsys, name):
    main([*words(place, tmp_path, name), "--json"])
    output = capsys.readouterr()
    assert output.err == ""
    documents = [json.loads(line) for line in output.out.splitlines()]
    assert len(documents) == (6 if name == "explain" else 1)
    for document in documents:
        assert set(COMMANDS[name][1]) <= document.keys()


@pytest.mark.parametrize("name", ["inspect", "explain", "check", "data"])
def test_quiet_is_quiet(place, tmp_path, capsys, name):
    main([*words(place, tmp_path, name), "--quiet"])
    output = capsys.readouterr()
    assert output.out == output.err == ""


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_what_is_wrong_is_said_all_the_same(place, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as left:
        main(["explain", str(place / "none"), "--model", str(place / "model"), "--out", str(tmp_path / "out"), option])
    output = capsys.readouterr()
    assert (left.value.code, output.out) == (2, "")
    assert "no such file or folder" in output.err
    with pytest.raises(SystemExit) as left:
        main(["explain", str(place / "broken"), "--model", str(place / "model"), "--out", str(tmp_path / "o"), option])
    output = capsys.readouterr()
    assert left.value.code == 1
    assert "1 could not be read" in output.err
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert ["error" in row for row in rows] == ([False, True] if option == "--json" else [])


@pytest.mark.parametrize(
    "name", ["inspect", "explain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("convert", *SLOW[:2]))]
)
def test_tables_fit_80_columns(place, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    main(words(place, tmp_path, name))
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if line.startswith("  ")]
    assert name == "compare" or tables
    assert max([len(line) for line in tables], default=0) <= 80


def test_a_wide_table_goes_on_below():
    head = ["name", *(f"column {index}" for index in range(12))]
    rows = [[f"row {row}", *(str(row * 100 + index) for index in range(12))] for row in range(2)]
    text = text_tables([Table("section", "title", head, rows, "note")], width=40)
    assert all(len(line) <= 40 for line in text.splitlines())
    for row in rows:
        for value in row[1:]:
            assert value in text.split()
    assert text.count("row 0") == 4, "each part has the names again"
    whole = text_tables([Table("section", "title", head, rows, "note")], width=400)
    assert whole.count("row 0") == 1


# --- pictures ---------------------------------------------------------------------------------------------

ANSWERS = {"sixel": b"\x1b[?62;4;22c", "letters only": b"\x1b[?62;22c", "silent": b""}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo terminals")
@pytest.mark.parametrize(("terminal", "show"), [("sixel", 1), ("sixel", 0), ("letters only", 1), ("silent", 1)])
def test_a_picture_in_a_terminal_that_can_draw(place, tmp_path, terminal, show):
    """A terminal that is asked what it can do, and answers as real ones do."""
    import fcntl
    import pty
    import struct
    import termios

    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 1000, 800))
    command = [
        sys.executable,
        "-m",
        "camify",
        "explain",
        str(place / "broken" / "yes.png"),
        "--out",
        str(tmp_path / "o"),
    ]
    process = subprocess.Popen(
        [*command, "--model", str(place / "model"), "--show", str(show)], stdin=inner, stdout=inner, stderr=inner
    )
    os.close(inner)
    seen, asked, until = b"", False, time.monotonic() + 120
    while time.monotonic() < until:
        ready, _, _ = select.select([outer], [], [], 0.5)
        if ready:
            with contextlib.suppress(OSError):  # the other end is closed
                part = os.read(outer, 65536)
                seen += part
                if b"\x1b[c" in part:
                    asked = True
                    os.write(outer, ANSWERS[terminal])
                continue
        if process.poll() is not None:
            break
    assert process.wait(10) == 0, seen[-2000:]
    assert asked == (show > 0), "a terminal is asked only where there is something to draw"
    assert (b"\x1bP" in seen) == (terminal == "sixel" and show > 0)
    assert b"1 of 1 images explained" in seen
    os.close(outer)
