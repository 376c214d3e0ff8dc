"""Folders of earlier versions keep loading: ``tests/stored`` holds one per schema version, never written anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import camify
from camify.boxes import BoxRule
from camify.checkpoint.folder import SCHEMA_VERSION

STORED = Path(__file__).parent / "stored"
LOGITS = [-1.8376152515411377, -2.1855995655059814, 0.5190213918685913]  # of the network that was saved, when it was


def test_there_is_one_of_every_version():
    assert {path.name for path in STORED.glob("schema_*")} == {f"schema_{n}" for n in range(1, SCHEMA_VERSION + 1)}


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_it_gives_what_it_gave(version, tmp_path):
    folder = STORED / f"schema_{version}"
    assert json.loads((folder / "camify.json").read_text(encoding="utf-8"))["schema_version"] == version
    net = camify.load(folder)
    with torch.no_grad():
        logits = net(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))
    torch.testing.assert_close(logits, torch.tensor([LOGITS]), rtol=1e-4, atol=1e-5)
    assert net.class_names == ["cat", "dog", "Zürich"]
    assert net.preprocessing.height == 32
    assert net.results["val/acc"] == 0.75
    assert net.results["val/center_box_acc"] == 0.25  # written as centre
    assert net.certificate.map_size == (16, 16)
    again = camify.load(net.save_pretrained(tmp_path / "newest"))
    assert torch.equal(again(torch.ones(1, 3, 32, 32)), net(torch.ones(1, 3, 32, 32)))


def test_what_the_second_version_added():
    net = camify.load(STORED / "schema_2")
    assert net.box_rule == BoxRule("ivr", 35.0, 0.3)
    assert net.license == "apache-2.0"
    assert net.results["seed"] == 0
    manifest = json.loads((STORED / "schema_2" / "camify.json").read_text(encoding="utf-8"))
    assert manifest["map"] == {"stride": [2.0, 2.0], "size": [16, 16]}
    assert manifest["architecture"]["form"] == "layers and graph"
    assert set(manifest["versions"]) == {"camify", "torch", "torchvision"}


def test_what_the_fourth_version_added():
    net = camify.load(STORED / "schema_4")
    torch.testing.assert_close(net.object_weight, torch.linspace(-0.5, 0.5, net.num_features))
    assert net.object_map == {"source": "boxes"}
    assert net.box_rule.kind == "object"
    assert camify.load(STORED / "schema_3").object_weight is None
