"""Promise 9: what camify did not write it never changes or deletes, and what it wrote only when told."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.cli import main
from camify.errors import ConfigError
from camify.files import free_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and the photograph and labeled folder that commands need."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = camify.convert(net, head="direct", input_size=32)
    model.class_names = ["cat", "dog"]
    model.preprocessing = camify.preprocessing.Preprocessing(32)
    model.save_pretrained(folder / "model")
    for name in ("cat", "dog"):
        (folder / "data" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (200, 30, 30) if name == "cat" else (30, 30, 200)).save(
            folder / "data" / name / "a.png"
        )
    return folder


def command(made, name, out):
    model, data = str(made / "model"), str(made / "data")
    return {
        "convert": ["convert", "camify/tiny_vgg@demo", str(out), "--head", "recast"],
        "compare": ["compare", data, "--model", model, "--method", "cam", "--figures", "0", "--out", str(out)],
        "evaluate": [
            "evaluate", "--model", model, "--data", data, "--faithfulness", "0", "--mosaics", "0", "--workers", "0",
            "--out", str(out),
        ],
        "export": ["export", model, "--to", "folder", "--out", str(out)],
    }[name]  # fmt: skip


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["convert", "compare", "evaluate", "export"])
def test_a_command_replaces_its_own_folder_only_when_told_and_never_a_file_of_the_user(made, name, tmp_path, capsys):
    out = tmp_path / "out"
    main(command(made, name, out))
    before = contents(out)
    assert "--overwrite true" in refused(capsys, *command(made, name, out))
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(capsys, *command(made, name, out), "--overwrite", "true")
    assert contents(out) == before | {(out / "notes.txt").relative_to(out): b"mine"}
    (out / "notes.txt").unlink()
    main([*command(made, name, out), "--overwrite", "true"])
    assert contents(out).keys() == before.keys()


@pytest.mark.parametrize("name", ["convert", "compare", "evaluate", "export"])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_stands_there_already_stays(made, name, kind, tmp_path, capsys):
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    (mine / "camify.txt").write_text("mine")
    if kind == "folder":
        shutil.copytree(mine, out)
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(mine)
    refused(capsys, *command(made, name, out), "--overwrite", "true")
    assert out.read_text() == "mine" if kind == "file" else (out / "camify.txt").read_text() == "mine"
    assert out.is_symlink() == (kind == "link")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_a_file_that_export_replaces_is_one_that_it_wrote(made, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    out.write_bytes(b"mine")
    words = ["export", str(made / "model"), "--to", "onnx", "--out", str(out)]
    assert "--overwrite true" in refused(capsys, *words)
    assert "no file of camify" in refused(capsys, *words, "--overwrite", "true")
    assert out.read_bytes() == b"mine"
    out.unlink()
    main(words)
    written = out.read_bytes()
    main([*words, "--overwrite", "true"])
    assert len(out.read_bytes()) == len(written)


def test_a_page_that_report_replaces_is_one_that_it_wrote(tmp_path, capsys):
    run, page = tmp_path / "run", tmp_path / "page.html"
    run.mkdir()
    (run / "results.json").write_text('{"finished": false, "source": "net", "classes": ["a"], "history": []}')
    page.write_text("<html>mine</html>")
    words = ["report", str(run), "--out", str(page)]
    assert "--overwrite true" in refused(capsys, *words)
    assert "not a page of camify" in refused(capsys, *words, "--overwrite", "true")
    assert page.read_text() == "<html>mine</html>"
    page.unlink()
    main(words)
    main([*words, "--overwrite", "true"])


def test_an_empty_folder_may_be_filled_and_a_folder_with_the_manifest_alone_is_camifys(tmp_path):
    free_folder(tmp_path, "camify.json", ["camify.json"], "OUT", overwrite=False)
    (tmp_path / "camify.json").touch()
    free_folder(tmp_path, "camify.json", ["camify.json"], "OUT", overwrite=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine").touch()
    with pytest.raises(ConfigError, match=r"holds deep"):
        free_folder(tmp_path, "camify.json", ["camify.json"], "OUT", overwrite=True)
