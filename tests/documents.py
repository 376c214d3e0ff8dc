"""What tests of the README and of the documentation share."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from torchvision.models.vgg import VGG, make_layers

ROOT = Path(__file__).parents[1]


def blocks_of(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def command_lines(path: Path) -> list[list[str]]:
    """The words of every command in the bash blocks."""
    text = "\n".join(blocks_of(path, "bash")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def check_commands(paths: list[Path]) -> set[str]:
    """Every command names files and options that exist; the verbs of camify that were seen."""
    known = "".join(file.read_text("utf-8") for file in sorted((ROOT / "camify" / "cli").glob("*.py")))
    verbs = set()
    for path in paths:
        for words in command_lines(path):
            missing = [word for word in words if word.startswith("configs/") and not (ROOT / word).is_file()]
            assert not missing, f"{path.name}: {missing}"
            if words[0] != "camify":
                continue
            verbs.add(words[1])
            if words[1] in ("fit", "validate", "test", "predict"):
                continue
            assert re.search(rf'add_(?:sub)?command\((?:commands, )?"{words[1]}"', known), f"{path.name}: {words[1]}"
            for option in (word.removeprefix("--") for word in words if word.startswith("--")):
                assert f'"--{option}"' in known, f"{path.name}: --{option}"
    return verbs


def narrow_vgg(weights: str) -> VGG:
    """A VGG of 8 channels that stands in for the pretrained one."""
    assert weights == "DEFAULT"
    network = VGG(make_layers([8, "M", 8, "M", 8, "M", 8, "M", 8, "M"]), init_weights=False)
    network.classifier = torch.nn.Sequential(torch.nn.Linear(8 * 49, 10))
    return network
