"""Damaged files: every mutation of a manifest, of weights or of a Lightning checkpoint is refused by name, or harmless.

A few hundred by default; ``pytest -m slow tests/exporters/test_fuzz.py`` takes ten thousand.
"""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from torch import nn

import camify
from camify.checkpoint.folder import CKPT_RECORD, SCHEMA_VERSION
from camify.errors import CheckpointError
from camify.exporters import open_exported

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def mutate(content: bytes, random: random.Random) -> bytes:
    """One damage, as disks, transfers and people make it."""
    data = bytearray(content)
    place, kind = random.randrange(len(data)), random.randrange(8)
    if kind <= 1:
        data[place] ^= 1 << random.randrange(8)
    elif kind == 2:
        data[place] = random.randrange(256)
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        del data[place : place + random.randrange(1, 16)]
    elif kind == 5:
        data[place:place] = bytes(random.randrange(256) for _ in range(random.randrange(1, 9)))
    elif kind == 6:
        data[place : place + 32] = bytes(len(data[place : place + 32]))
    else:
        data[random.randrange(min(64, len(data)))] ^= 1 << random.randrange(8)  # headers
    return bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small network, its folder and a Lightning checkpoint of it."""
    torch.manual_seed(0)
    legacy = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3))
    net = camify.convert(legacy.eval(), head="direct", input_size=16, seed=0).eval()
    net.class_names, net.results = ["ant", "bee", "Zürich"], {"val/acc": 0.75}
    folder = net.save_pretrained(tmp_path_factory.mktemp("fuzz") / "model")
    path = folder.with_name("last.ckpt")
    record = json.dumps({"schema_version": SCHEMA_VERSION, **net.manifest()})
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "global_step": 12, "state_dict": state, CKPT_RECORD: record}, path)
    camify.export(net, folder.with_name("model.pt2"))
    return net, folder


def same(net, loaded):
    with torch.no_grad():
        return (
            torch.equal(net(IMAGES), loaded(IMAGES))
            and loaded.class_names == net.class_names
            and loaded.results == net.results
            and loaded.certificate == net.certificate
        )


def loads_equal_or_refuses(path, load, is_same):
    refusal = None
    try:
        loaded = load()
    except CheckpointError as error:
        refusal = str(error)
    if refusal is None:
        assert is_same(loaded)
        return "equal"
    assert path.name in refusal or path.parent.name in refusal
    return "refused"


def fuzz(original, tmp_path, name, count, seed):
    net, folder = original
    source = {"last.ckpt": folder.with_name("last.ckpt"), "model.pt2": folder.with_name("model.pt2")}.get(
        name, folder / name
    )
    content, chance = source.read_bytes(), random.Random(seed)
    if source.parent == folder:
        place = shutil.copytree(folder, tmp_path / "model")
        target, load = place / name, lambda: camify.load(place)
    else:
        target = tmp_path / name
        load = (lambda: camify.load(target)) if name.endswith("ckpt") else (lambda: open_exported(target))

    def is_same(loaded):
        if name != "model.pt2":
            return same(net, loaded)
        with torch.no_grad():
            return (
                torch.equal(loaded(IMAGES)["logits"], net(IMAGES)) and loaded.record["class_names"] == net.class_names
            )

    found = []
    for index in range(count):
        target.write_bytes(mutate(content, chance))
        try:
            found.append(loads_equal_or_refuses(target, load, is_same))
        except BaseException as error:
            raise AssertionError(f"mutation {index} of seed {seed}: {type(error).__name__}: {error}") from error
    target.write_bytes(content)
    assert is_same(load())
    return found


NAMES = ["camify.json", "model.safetensors", "last.ckpt", "model.pt2"]


@pytest.mark.parametrize("name", NAMES)
def test_some_mutations(original, tmp_path, name):
    assert fuzz(original, tmp_path, name, 60, 1).count("refused") > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2, 7))
def test_ten_thousand_mutations(original, tmp_path, name, seed):
    assert fuzz(original, tmp_path, name, 700, seed).count("refused") > 300
