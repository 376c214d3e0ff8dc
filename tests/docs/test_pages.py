"""What the pages of the documentation show works: Python runs, commands name files and options that exist."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torchvision.models.vgg import VGG, make_layers

import camify
from tests.documents import ROOT, blocks_of, check_commands, narrow_vgg

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
EXTEND = sorted(path for path in (DOCS / "extend").glob("*.md") if path.stem != "index")


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers
@pytest.mark.parametrize("path", EXTEND, ids=lambda path: path.stem)
def test_how_to_add_one_runs(path):
    legacy = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    names = {"images": torch.randn(2, 3, 32, 32), "model": legacy.eval(), "camify": camify}
    (code,) = blocks_of(path, "python")
    try:
        exec(code, names)
    finally:
        camify.methods.METHODS.pop("elementwise", None)
    if path.stem == "method":
        assert names["heat"]["elementwise"].shape == (2, 32, 32)


@pytest.mark.filterwarnings("ignore")  # a random network has maps with nothing to show
def test_how_to_explain_runs():
    model = camify.convert(narrow_vgg("DEFAULT").eval(), num_classes=5, head_channels=8, input_size=224)
    names = {"camify": camify, "model": model.eval(), "images": torch.randn(2, 3, 64, 64)}
    (code,) = blocks_of(DOCS / "guide" / "explain.md", "python")
    exec(code, names)
    assert set(names["maps"]) == {"cam", "gradcam", "reciprocam"}
    assert names["raw"].shape == (2, 8, 8)


def test_the_commands_name_what_exists():
    seen = check_commands(PAGES)
    assert {"inspect", "convert", "explain", "compare", "evaluate", "report", "export", "check", "push"} <= seen


@pytest.mark.slow
def test_plain_torch_loads_the_bare_weights(tmp_path, monkeypatch):
    """The page's code without camify, at a sixteenth of the widths: the names of the layers are the same."""
    code = blocks_of(DOCS / "guide" / "export.md", "python")[-1]
    assert len(code.splitlines()) <= 35
    assert "camify" not in code
    narrow = re.sub(r"\b(64|128|256|512)\b", lambda width: str(int(width[0]) // 16), code)
    legacy = VGG(make_layers([4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]))
    legacy.classifier = nn.Sequential(nn.Linear(32 * 49, 10))
    net = camify.convert(legacy.eval(), input_size=64, head_channels=24, num_classes=5, seed=0)
    net.save_pretrained(tmp_path / "my-vgg")
    monkeypatch.chdir(tmp_path)
    names = {"images": torch.randn(2, 3, 80, 64)}
    exec(narrow, names)
    logits, maps = net.forward_with_maps(names["images"])
    torch.testing.assert_close(names["logits"], logits)
    torch.testing.assert_close(names["maps"], maps)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_and_files_are_there(path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target
    for file in re.findall(r"`((?:camify|tests)/[\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), file


def test_the_plan_of_the_house_is_true():
    plan = (DOCS / "architecture.md").read_text("utf-8").split("```")[1]
    named = {part for line in re.findall(r"^  ([a-z_./ ]+?)  ", plan, flags=re.MULTILINE) for part in line.split()}
    for name in named:
        assert (ROOT / "camify" / name).exists(), name
    there = {entry.name for entry in (ROOT / "camify").iterdir() if not entry.name.startswith("__")} - {"py.typed"}
    assert there == {name.rstrip("/") for name in named}
