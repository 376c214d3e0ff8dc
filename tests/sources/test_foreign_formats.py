"""Files of other formats: refused in one sentence that names the format, with the lines that make a usable file."""

from __future__ import annotations

import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from camify.errors import CamifyError
from camify.sources import load, resolve
from tests.foreign_code import RunsCode

BY_NAME = {
    "x.pb": "frozen TensorFlow graph", "x.caffemodel": "Caffe", "x.mlmodel": "Core ML", "x.engine": "TensorRT",
    "x.pdmodel": "PaddlePaddle", "x.weights": "Darknet", "x.xml": "OpenVINO", "x.params": "MXNet", "x.npz": "NumPy",
    "x.joblib": "joblib", "x.pkl": "a pickle", "x.msgpack": "Flax",
}  # fmt: skip
BY_CONTENT = {
    "a.pth": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "b.pth": (b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
    "c.bin": (b"GGUF" + bytes(64), "GGUF"),
    "d.bin": (b"7767517\n75 83\n", "ncnn"),
}


def refusal(path):
    """The message, which is one sentence and at most three lines."""
    with pytest.raises(CamifyError) as error:
        resolve(str(path))
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{path}: is a")
    assert 1 <= len(lines) <= 3
    assert "FILE" not in "".join(lines).replace("saved_FILE", "")
    return first, lines


@pytest.mark.parametrize("name", BY_NAME)
def test_by_the_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08\x01" + bytes(40))
    first, lines = refusal(tmp_path / name)
    assert BY_NAME[name] in first
    assert "camify convert" in lines[-1]


@pytest.mark.parametrize("name", BY_CONTENT)
def test_by_the_content_where_the_name_says_otherwise(tmp_path, name):
    (tmp_path / name).write_bytes(BY_CONTENT[name][0])
    assert BY_CONTENT[name][1] in refusal(tmp_path / name)[0]


def test_a_saved_model_is_a_folder(tmp_path):
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    first, lines = refusal(folder)
    assert "SavedModel" in first
    assert f"--saved-model {folder}" in lines[1]
    with pytest.raises(CamifyError, match="SavedModel"):
        load(folder)


def test_the_lines_for_pickled_networks_work(tmp_path, monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    torch.save(network, tmp_path / "whole.pt")
    first, lines = refusal(tmp_path / "whole.pt")
    assert "torch.nn.modules.container.Sequential" in first
    monkeypatch.chdir(tmp_path)
    exec("import torch\n" + "\n".join(line.strip() for line in lines[:2]))
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert state.keys() == network.state_dict().keys()


def test_torchscript_and_its_lines(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
        first, lines = refusal(tmp_path / "script.pt")
        assert "TorchScript" in first
        monkeypatch.chdir(tmp_path)
        exec("import torch\n" + "\n".join(line.strip() for line in lines[:2]))
    assert set(torch.load(tmp_path / "weights.pth", weights_only=True)) == {"weight", "bias"}


def test_ultralytics(tmp_path, monkeypatch):
    module = types.ModuleType("ultralytics.nn.tasks")
    kind = type("ClassificationModel", (nn.Module,), {"__module__": module.__name__})
    module.ClassificationModel = kind
    for name in ("ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"model": kind(), "epoch": -1}, tmp_path / "best.pt")
    first, lines = refusal(tmp_path / "best.pt")
    assert "Ultralytics" in first
    assert lines[1].strip().startswith(f'YOLO("{tmp_path / "best.pt"}").export(format="onnx")')


def test_nothing_is_run(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(RunsCode(trace)))
    torch.save({"a": torch.ones(1), "b": RunsCode(trace)}, tmp_path / "x.pth")
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    for name in ("x.pkl", "x.npz"):
        refusal(tmp_path / name)
    with pytest.raises(CamifyError, match=r"it needs (posix|nt)\.system") as error:
        resolve(str(tmp_path / "x.pth"))
    assert "weights_only" not in str(error.value)  # of such a file nobody is told how to read it
    assert not trace.exists()


def test_the_command_line_shows_the_lines_as_lines(tmp_path, capsys):
    from camify.cli import main

    path = tmp_path / "model.pt"
    torch.save(torch.nn.Sequential(torch.nn.Linear(1, 1)), path)
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"camify: error: {path}: is a file with pickled objects")
    assert [line.startswith("    ") for line in lines[1:]] == [True] * 3
