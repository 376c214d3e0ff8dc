"""Names of strangers: bytes that are no UTF-8, control characters, markup, formulas; in every file and on every screen.

Fault 16 and 19 of the reliability findings: a folder or an image may be called anything that a filesystem allows.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import camify
from camify.app.networks import example_files
from camify.cli.commands import main
from camify.console import shell_quoted, shown
from camify.files import numbered, safe_cell, slug, to_json, whole_folder, write_whole
from camify.reports.run_folder import commands, read_run

pytestmark = pytest.mark.filterwarnings("ignore")  # the command line sets its own filters

LATIN = os.fsdecode(b"caf\xe9")  # of a disk that was written in Latin-1
CLASSES = (LATIN, "=1+1 \x1b]0;title\x07[b]", "\u202ecba [exp] $(touch x)", "plain")
IMAGE = os.fsdecode(b"-im\xffage \x1b[31m.png")


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on classes and images of such names, in a folder of such a name; everything that it printed."""
    root = tmp_path_factory.mktemp("names") / "x4 [exp] $(x)'\x1b[0m"
    for split, count in (("train", 2), ("val", 2)):
        for index, name in enumerate(CLASSES):
            for number in range(count):
                draw(root / "data" / split / name / (IMAGE if number == 0 else f"{number}.png"), 10 * index + number)
    options = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8},
        "data": {
            "class_path": "ImageFolderDataModule",
            "init_args": {"root": str(root / "data"), "batch_size": 8, "num_workers": 0, "image_size": 96},
        },
        "overlays": {"num_images": 4},
    }  # fmt: skip
    options["trainer"]["default_root_dir"] = str(root / "run")
    (root / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CAMIFY_RUN_FOLDER", raising=False)
        main(["fit", "--config", str(root / "config.yaml")])
    return root


def is_plain(text):
    return all(char.isprintable() or char in "\n\t\r" for char in text)


def test_training_works_and_every_file_of_it_can_be_read(run, capsys):
    folder = run / "run"
    results = json.loads((folder / "results.json").read_text(encoding="ascii"))
    assert results["finished"]
    assert results["classes"] == sorted(CLASSES)
    watched = json.loads((folder / "overlays" / "index.json").read_text(encoding="ascii"))["watched"]
    assert watched
    assert example_files(None, [str(folder)])[0] == [Path(one["path"]) for one in watched], "they can be opened again"
    for page in ("report.html", "export/README.md"):
        text = (folder / page).read_text(encoding="utf-8")
        assert is_plain(text), page
        assert r"caf\xe9" in text.replace("&#92;", "\\")
    assert list(folder.glob("overlays/animations/*.webp")), "the overlays were not switched off"
    assert camify.load(folder / "export").class_names == sorted(CLASSES)


@pytest.mark.slow
def test_the_run_goes_on(run, monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    folder = run / "run"
    main(["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "last.ckpt"),
          "--trainer.max_epochs", "2"])  # fmt: skip
    assert len(json.loads((folder / "results.json").read_text())["history"]) == 2


def test_commands_on_the_page_run_as_they_stand(run):
    for _, command in commands(run / "run"):
        words = command.split(" ", 2)[0:1]
        assert words[0] in ("camify", "tensorboard")
        output = subprocess.run(
            ["bash", "-c", f'args() {{ printf "%s\\0" "$@"; }}; args {command}'], capture_output=True, check=True
        ).stdout.split(b"\0")
        assert any(os.fsencode(str(run / "run")) in word for word in output), command
    assert not (run / "x").exists()


def test_explain(run, capsys):
    val = run / "data" / "val"
    main(["explain", str(val / LATIN), str(val / CLASSES[1]), "--model", str(run / "run" / "export"), "--out",
          str(run / "explained"), "--workers", "0"])  # fmt: skip
    lines = (run / "explained" / "results.jsonl").read_text(encoding="ascii").splitlines()
    images = [json.loads(line)["image"] for line in lines]
    assert str(val / LATIN / IMAGE) in images
    printed = capsys.readouterr().out
    assert r"\x1b[31m" in printed
    assert "\x1b" not in printed
    main(["explain", str(val / LATIN), str(val / CLASSES[1]), "--model", str(run / "run" / "export"), "--out",
          str(run / "explained"), "--workers", "0"])  # fmt: skip
    assert "4 were done before" in capsys.readouterr().out


def test_predict(run, monkeypatch, capsys):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    folder = run / "run"
    main(["predict", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "best.ckpt")])
    assert "\x1b" not in capsys.readouterr().out
    (table,) = folder.glob("predictions*.csv")
    with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert any(row["image"].endswith(IMAGE) for row in rows)
    assert {row["class"] for row in rows} <= {*CLASSES, safe_cell(CLASSES[1])}
    assert not any(row["class"].startswith("=") for row in rows)


def test_evaluate(run, capsys):
    main(["evaluate", "--model", str(run / "run" / "export"), "--data", str(run / "data"), "--out",
          str(run / "evaluation"), "--faithfulness", "2", "--mosaics", "1", "--workers", "0"])  # fmt: skip
    assert "\x1b" not in capsys.readouterr().out
    assert is_plain((run / "evaluation" / "evaluation.md").read_text(encoding="utf-8"))
    json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="ascii"))
    with (run / "evaluation" / "images.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["image"].endswith(IMAGE) for row in rows)
    assert {row["class"] for row in rows} == {LATIN, safe_cell(CLASSES[1]), CLASSES[2], "plain"}


def test_compare_and_report(run, capsys):
    main(["compare", str(run / "data" / "val" / LATIN), "--model", str(run / "run" / "export"), "--out",
          str(run / "comparison"), "--method", "cam"])  # fmt: skip
    for name in ("compare.html", "compare.md"):
        assert is_plain((run / "comparison" / name).read_text(encoding="utf-8"))
    json.loads((run / "comparison" / "compare.json").read_text(encoding="ascii"))
    main(["report", str(run / "run")])
    main(["report", str(run / "run"), str(run / "run"), "--out", str(run / "both.html")])
    assert is_plain((run / "both.html").read_text(encoding="utf-8"))
    assert "\x1b" not in capsys.readouterr().out


def test_a_foreign_run_folder_embeds_nothing_else_of_the_disk(run, tmp_path, capsys):
    secret = tmp_path / "secret.png"
    draw(secret, 5)
    index = json.loads((run / "run" / "overlays" / "index.json").read_text())
    for name, lead in {"up": "../../secret.png", "whole": str(secret), "link": "link.png"}.items():
        folder = tmp_path / name
        shutil.copytree(run / "run", folder, ignore=shutil.ignore_patterns("*.ckpt", "export"))
        (folder / "overlays" / "link.png").symlink_to(secret)
        index["watched"][0]["frames"][0]["file"] = lead
        (folder / "overlays" / "index.json").write_text(json.dumps(index))
        with pytest.raises(SystemExit) as left:
            main(["report", str(folder)])
        assert left.value.code == 2
        assert "lies outside" in capsys.readouterr().err
    shutil.copytree(run / "run", tmp_path / "config", ignore=shutil.ignore_patterns("*.ckpt", "export"))
    (tmp_path / "config" / "config.yaml").unlink()
    (tmp_path / "config" / "config.yaml").symlink_to("/etc/passwd")
    with pytest.raises(camify.errors.DataError, match="lies outside"):
        read_run(tmp_path / "config")


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"), ("日本 é ñ", "日本 é ñ"), ("a\x1b[31mb", r"a\x1b[31mb"), ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"), ("\x9b1m\x7f\x00", r"\x9b1m\x7f\x00"), (LATIN, r"caf\xe9"),
        ("\ud800", r"\ud800"), ("\U000e0041", r"\U000e0041"), ("नमस्\u200dते", "नमस्\u200dते"),
        ("a\u00a0b", "a\u00a0b"),
        ("\u2028", r"\u2028"), (b"\x1b", r"b'\x1b'"), (3, "3"),
    ],
)  # fmt: skip
def test_shown(text, expected):
    assert shown(text) == expected
    assert shown(shown(text)) == expected


@pytest.mark.parametrize(
    "text", ["plain", "two words", "it's", "$(touch x)", "a\x1bb", "l1\nl2", "\\x41'\x01", "\u202eabc", "-o"]
)
def test_a_quoted_word_is_the_word_for_bash(text):
    quoted = shell_quoted(text)
    assert quoted.isprintable()
    output = subprocess.run(
        ["bash", "-c", f"printf %s {quoted} "[:-1] if text[0] != "-" else f"printf %s -- {quoted}"],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    )
    assert output.stdout.decode() in (text, f"--{text}")


def test_json_is_ascii_and_comes_back():
    names = [LATIN, "日本", "\ud800", "\x1b"]
    assert to_json(names).isascii()
    assert json.loads(to_json(names)) == names


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_no_cell_is_a_formula(text):
    assert safe_cell(text) == "'" + text
    assert safe_cell("a" + text) == "a" + text


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("x" * 255, "é" * 127, os.fsdecode(b"\xff" * 255)):
        write_whole(tmp_path / name, "content")
        assert (tmp_path / name).read_text() == "content"
        (tmp_path / name).unlink()
        with whole_folder(tmp_path / name) as aside:
            (aside / "file").write_text("content")
        assert (tmp_path / name / "file").read_text() == "content"
        with whole_folder(tmp_path / name) as aside:
            (aside / "other").write_text("content")
        assert [entry.name for entry in (tmp_path / name).iterdir()] == ["other"]
        second = numbered(tmp_path / name, 2)
        second.mkdir()
        assert second.name.endswith("-2")
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    assert numbered(tmp_path / "run", 2).name == "run-2"
    assert numbered(tmp_path / f"{'x' * 251}.csv", 10).name == f"{'x' * 248}-10.csv"
    assert slug("\x1b=") == "unnamed"


@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, mask, file, folder):
    net = camify.convert("camify/tiny_vgg", head="direct", input_size=96)
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "file", b"")
        net.save_pretrained(tmp_path / "folder")
        with whole_folder(tmp_path / "whole") as aside:
            (aside / "file").write_text("")
    finally:
        os.umask(before)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert rights.pop("folder") == rights.pop("whole") == folder
    assert set(rights.values()) == {file}, rights
