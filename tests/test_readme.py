"""What the README shows works: its Python runs, its commands name files and options that exist."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import camify
from tests.documents import ROOT, blocks_of, check_commands, narrow_vgg

PATH = ROOT / "README.md"
README = PATH.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers, workers and devices
def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "path/to/images" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "vgg16", narrow_vgg)
    names = {"images": torch.randn(2, 3, 224, 224)}
    first, second = blocks_of(PATH, "python")
    assert len(first.splitlines()) <= 12
    exec(first, names)
    assert names["maps"].shape == (2, 37, 14, 14)
    assert names["heat"].shape == (2, 224, 224)
    exec(second.replace("max_epochs=10", "max_epochs=3"), names)
    assert isinstance(names["model"], camify.CAMNet)
    assert names["model"].class_names == ["cat", "dog"]
    assert list(tmp_path.rglob("overlays/epoch_002/*.png"))


def test_the_commands_name_what_exists():
    assert check_commands([PATH]) == {
        "inspect", "convert", "fit", "explain", "evaluate", "compare", "app", "export",
    }  # fmt: skip


def test_it_is_short_and_leads_on():
    assert len(README.encode()) <= 12_000
    for path in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README):
        assert (ROOT / path).is_file(), path
    top = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    allowed = {"pyproject.toml", "camify", "train.py", "configs", "tests", "checkpoints", "README.md", "LICENSE"}
    allowed |= {"CHANGELOG.md", "docs"}
    assert {name for name in top - allowed if not name.endswith((".egg-info", "__pycache__", "build"))} == set()
