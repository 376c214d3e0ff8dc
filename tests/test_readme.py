"""What the README shows works: its Python runs, its commands name files and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models.vgg import VGG, make_layers

import camify

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers, workers and devices
def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "path/to/images" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.png")

    def narrow_vgg(weights):
        assert weights == "DEFAULT"
        network = VGG(make_layers([8, "M", 8, "M", 8, "M", 8, "M", 8, "M"]), init_weights=False)
        network.classifier = torch.nn.Sequential(torch.nn.Linear(8 * 49, 10))
        return network

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "vgg16", narrow_vgg)
    names = {"images": torch.randn(2, 3, 224, 224)}
    first, second, explaining, own, _ = blocks("python")
    exec(first, names)
    assert names["maps"].shape == (2, 37, 14, 14)
    assert names["heat"].shape == (2, 224, 224)
    exec(explaining, names)
    assert set(names["maps"]) == {"cam", "gradcam", "reciprocam"}
    assert names["raw"].shape == (2, 28, 28)
    try:
        exec(own, names)
    finally:
        camify.methods.METHODS.pop("xgradcam", None)
    assert names["heat"]["xgradcam"].shape == (2, 224, 224)
    exec(second.replace("max_epochs=10", "max_epochs=3"), names)
    assert isinstance(names["model"], camify.CAMNet)
    assert names["model"].class_names == ["cat", "dog"]
    assert list(tmp_path.rglob("overlays/epoch_002/*.png"))


def test_the_commands_name_what_exists():
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    words = [word for line in lines for word in line]
    for path in (word for word in words if word.startswith("configs/")):
        assert (ROOT / path).is_file(), path
    options = "".join((ROOT / "camify" / name).read_text("utf-8") for name in ("cli/commands.py", "cli/export.py"))
    used = {line[1] for line in lines if line and line[0] == "camify"}
    assert used == {"inspect", "convert", "explain", "compare", "evaluate", "report", "export", "check", "push"}
    assert all(f'add_subcommand("{command}"' in options for command in used)
    for option in {word.removeprefix("--") for line in lines if line and line[0] == "camify" for word in line}:
        assert f'"--{option}"' in options or not any(f"--{option}" in line for line in lines), option


def test_plain_torch_loads_the_bare_weights(tmp_path, monkeypatch):
    """The README's code without camify, at a sixteenth of the widths: the names of the layers are the same."""
    code = blocks("python")[-1]
    assert len(code.splitlines()) <= 35
    assert "camify" not in code
    narrow = re.sub(r"\b(64|128|256|512)\b", lambda found: str(int(found[0]) // 16), code)
    legacy = VGG(make_layers([4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]))
    legacy.classifier = torch.nn.Sequential(torch.nn.Linear(32 * 49, 10))
    net = camify.convert(legacy.eval(), input_size=64, head_channels=24, num_classes=5, seed=0)
    net.save_pretrained(tmp_path / "my-vgg")
    monkeypatch.chdir(tmp_path)
    names = {"images": torch.randn(2, 3, 80, 64)}
    exec(narrow, names)
    logits, maps = net.forward_with_maps(names["images"])
    torch.testing.assert_close(names["logits"], logits)
    torch.testing.assert_close(names["maps"], maps)


def test_the_picture_and_the_house_are_there():
    for path in re.findall(r"\]\((\.[^)]+)\)", README):
        assert (ROOT / path).is_file()
    plan = README.split("## Architecture")[1].split("```")[1]
    for name in re.findall(r"^  ([a-z_./ ]+?)  ", plan, flags=re.MULTILINE):
        for part in name.split():
            assert (ROOT / "camify" / part).exists(), part
    top = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    allowed = {"pyproject.toml", "camify", "train.py", "configs", "tests", "checkpoints", "README.md", "LICENSE"}
    assert {name for name in top - allowed if not name.endswith((".egg-info", "__pycache__", "build"))} == set()
