"""Every kind of file that camify reads, damaged at a random place: it is read right or refused by a CamifyError.

Never another exception, never a wait, never code. Some hundred damages a kind by default, within seconds; ten thousand
with ``pytest -m slow tests/reliability/test_mutations.py``. Checksums find most of the damage at once, so that some
kinds are also signed anew after the damage, as a liar would.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import time
import zipfile
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import camify
from camify.checkpoint.folder import CKPT_RECORD, MANIFEST, SCHEMA_VERSION, WEIGHTS, manifest_digest
from camify.cli.named_classes import check_loaded
from camify.cli.train import FineTuningCLI, _with_groups
from camify.data.boxes_csv import read_boxes
from camify.errors import CamifyError
from camify.exporters import open_exported
from camify.image_files import read_image, readable_formats
from camify.reports.run_folder import INDEX, RESULTS, read_run
from camify.reports.run_page import render_page
from camify.sources import resolve
from camify.sources.state_dicts import read_state
from tests.exporters.conftest import Legacy
from tests.reliability.mutations import mutated

pytestmark = pytest.mark.filterwarnings("ignore")  # decoders warn of damage
LONGEST = 10.0  # seconds; of a busy machine
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "socket.connect",
             "ctypes.dlopen", "os.fork", "os.forkpty"}  # fmt: skip
armed: list[str] = []
watching = [False]


def _listen(event, arguments):
    if watching[0] and event in FORBIDDEN:
        armed.append(f"{event}{arguments!r:.200}")


sys.addaudithook(_listen)


# ---------------------------------------------------------------- files and their readers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = camify.convert(Legacy().eval(), input_size=32, seed=0, head_channels=4)
    net.class_names, net.results = ["ant", "bee", "Zürich", "日本"], {"val/acc": 0.75}
    net.preprocessing = camify.Preprocessing(32)
    return net.eval()


@pytest.fixture(scope="module")
def folder(net, place):
    return net.save_pretrained(place / "model")


class Kind:
    """A whole file's bytes, and what reads a damaged copy: gives whether it is as it should be, or raises."""

    def __init__(self, content, read, sign=lambda content: content, always_refused=False):
        self.content, self.read, self.sign, self.always_refused = content, read, sign, always_refused


def in_file(path, read):
    def reads(content):
        path.write_bytes(content)
        return read(path)

    return reads


def same_network(net):
    def check(loaded):
        with torch.no_grad():
            return torch.equal(net(IMAGES), loaded(IMAGES)) and loaded.class_names == net.class_names

    return check


def network_at_work(loaded):
    """Of a file that was signed anew: whatever it is now, its maps explain its logits."""
    with torch.no_grad():
        logits, maps = loaded.forward_with_maps(torch.randn(1, *loaded.certificate.input_shape))
    bias = 0 if loaded.classifier.bias is None else loaded.classifier.bias
    return torch.allclose(maps.mean((2, 3)) + bias, logits, atol=1e-3)


def of_folder(folder, name, is_right, sign=lambda content: content):
    content = (folder / name).read_bytes()

    def read(damaged):
        (folder / name).write_bytes(damaged)
        try:
            return is_right(camify.load(folder))
        finally:
            (folder / name).write_bytes(content)

    return Kind(content, read, sign)


def signed_manifest(content):
    try:
        manifest = json.loads(content)
        manifest["digest"] = manifest_digest(manifest)
        return json.dumps(manifest).encode()
    except (ValueError, TypeError, RecursionError):
        return content


def checkpoint(net, place):
    path = place / "last.ckpt"
    record = json.dumps({"schema_version": SCHEMA_VERSION, **net.manifest()})
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, CKPT_RECORD: record}, path)
    return Kind(path.read_bytes(), in_file(path, lambda file: same_network(net)(resolve(str(file)).model)))


def checkpoint_of_a_liar(net, place):
    """The record of a checkpoint is damaged, and the archive packed anew."""
    record = json.dumps({"schema_version": SCHEMA_VERSION, **net.manifest()}).encode()
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    path = place / "liar.ckpt"

    def read(damaged):
        torch.save({"epoch": 3, "state_dict": state, CKPT_RECORD: damaged.decode("utf-8", "replace")}, path)
        return network_at_work(resolve(str(path)).model)

    return Kind(record, read)


def weights(net, place):
    path, state = place / "weights.pth", {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(state, path)

    def right(file):
        read, _ = read_state(file)
        return read.keys() == state.keys() and all(torch.equal(read[name], value) for name, value in state.items())

    return Kind(path.read_bytes(), in_file(path, right))


def exported(net, place, suffix):
    path = place / f"model{suffix}"
    camify.export(net, path, overwrite=True)

    def right(file):
        opened = open_exported(file)
        with torch.no_grad():
            close = torch.allclose(opened(IMAGES)["logits"], net(IMAGES), rtol=1e-4, atol=1e-5)
        return close and opened.record["class_names"] == net.class_names

    return Kind(path.read_bytes(), in_file(path, right), always_refused=suffix == ".onnx")


def resealed(content):
    import re

    found = re.search(rb'"sha256": "([0-9a-f]{64})"', content)
    if found is None:
        return content
    empty = content.replace(found[1], b"0" * 64)
    return empty.replace(b"0" * 64, hashlib.sha256(empty).hexdigest().encode())


def onnx_of_a_liar(net, place):
    whole = exported(net, place, ".onnx")

    def right(file):
        outputs = open_exported(file)(IMAGES)
        return outputs["logits"].dim() == 2

    return Kind(whole.content, in_file(place / "liar.onnx", right), resealed)


def pt2_of_a_liar(net, place, entry):
    """A JSON entry of the archive is damaged, and the archive packed anew."""
    path = place / "packed.pt2"
    camify.export(net, path, overwrite=True)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith(entry))

    def read(damaged):
        with zipfile.ZipFile(path, "w") as archive:
            for one, content in entries.items():
                archive.writestr(one, damaged if one == name else content)
        outputs = open_exported(path)(IMAGES)
        return outputs["logits"].shape[0] <= 4 * len(IMAGES)

    return Kind(entries[name], read)


def boxes(place):
    lines = ["image,x0,y0,x1,y1,label", *(f"val/ant/{index}.png,{index},2,{index + 20},30,ant" for index in range(9))]
    sizes = {f"val/ant/{index}.png": (64, 48) for index in range(9)}

    def right(file):
        found = read_boxes(file, sizes)
        return all(0 <= b[0] < b[2] <= 64 and 0 <= b[1] < b[3] <= 48 for rows in found.values() for b, _ in rows)

    return Kind("\n".join(lines).encode(), in_file(place / "boxes.csv", right))


def picture(kind, place):
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(content, kind)
    path = place / f"picture.{kind.lower()}"
    return Kind(content.getvalue(), in_file(path, lambda file: read_image(file).shape[0] == 3))


CONFIG = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 1, "accelerator": "cpu", "precision": "32-true", "default_root_dir": "run",
        "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/acc", "patience": 3}}],
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}},
    },
    "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8, "lr": 0.01, "cam_metrics": ["area"]},
    "data": {
        "class_path": "ShapesDataModule",
        "init_args": {"train_count": 8, "val_count": 8, "test_count": 8, "batch_size": 4},
    },
    "overlays": {"num_images": 1, "method": ["cam", "gradcam++"]},
}  # fmt: skip


def config(place, monkeypatch):
    """Parsed as ``fit`` does, by one parser: to build it takes longer than to use it."""
    monkeypatch.setattr(FineTuningCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(FineTuningCLI, "before_instantiate_classes", lambda self: None)
    path = place / "config.yaml"
    content = yaml.safe_dump(CONFIG).encode()
    path.write_bytes(content)
    parser = FineTuningCLI(["--config", str(path)], run=False).parser
    load = jsonargparse.get_loader("yaml")

    def parse(file):
        jsonargparse.set_loader("yaml", lambda text: _with_groups(check_loaded(load(text), [])), (yaml.YAMLError,))
        try:
            return parser.parse_args(["--config", str(file)]) is not None
        finally:
            jsonargparse.set_loader("yaml", load, (yaml.YAMLError,))

    return Kind(content, in_file(path, parse))


def run_file(place, name):
    folder = place / "run"
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "overlays" / "a.png")
    row = {"epoch": 0, "val/acc": 0.5, "val/loss": 1.0, "val/max_box_acc": 0.4, "val/centre_box_acc": 0.3}
    results = {
        "history": [row, {**row, "epoch": 1}], "finished": True, "source": "camify/tiny_vgg", "classes": ["a", "b"],
        "legacy": {"val/acc": 0.5}, "start": row, "exported": row, "certificate": {"cut after": "x"}, "data": "d",
    }  # fmt: skip
    frame = {"epoch": 0, "file": "a.png", "caption": "c", "method": "cam"}
    index = {
        "watched": [{"name": "n", "true": "a", "frames": [frame, {**frame, "epoch": 1}], "strips": {"cam": "a.png"}}],
        "highlights": [{**frame, "name": "h", "true": "b", "kind": "changed", "predicted": "a.png"}],
    }
    (folder / RESULTS).write_text(json.dumps(results))
    (folder / INDEX).write_text(json.dumps(index))
    content = (folder / name).read_bytes()

    def read(damaged):
        (folder / name).write_bytes(damaged)
        try:
            return "<html" in render_page(read_run(folder))
        finally:
            (folder / name).write_bytes(content)

    return Kind(content, read)


KINDS = {
    "camify.json": lambda net, folder, place, patch: of_folder(folder, MANIFEST, same_network(net)),
    "camify.json, signed anew": lambda net, folder, place, patch: of_folder(
        folder, MANIFEST, network_at_work, signed_manifest
    ),
    "model.safetensors": lambda net, folder, place, patch: of_folder(folder, WEIGHTS, same_network(net)),
    ".ckpt": lambda net, folder, place, patch: checkpoint(net, place),
    ".ckpt, packed anew": lambda net, folder, place, patch: checkpoint_of_a_liar(net, place),
    ".pth": lambda net, folder, place, patch: weights(net, place),
    ".pt2": lambda net, folder, place, patch: exported(net, place, ".pt2"),
    ".pt2, its graph packed anew": lambda net, folder, place, patch: pt2_of_a_liar(net, place, "models/model.json"),
    ".pt2, its record packed anew": lambda net, folder, place, patch: pt2_of_a_liar(net, place, "camify.json"),
    ".onnx": lambda net, folder, place, patch: exported(net, place, ".onnx"),
    ".onnx, signed anew": lambda net, folder, place, patch: onnx_of_a_liar(net, place),
    "boxes.csv": lambda net, folder, place, patch: boxes(place),
    "config.yaml": lambda net, folder, place, patch: config(place, patch),
    "results.json": lambda net, folder, place, patch: run_file(place, RESULTS),
    "index.json": lambda net, folder, place, patch: run_file(place, INDEX),
    **{kind: lambda net, folder, place, patch, kind=kind: picture(kind, place) for kind in readable_formats()},
}
QUICK = dict.fromkeys(KINDS, 30) | dict.fromkeys(readable_formats(), 75)
QUICK |= {"boxes.csv": 125, "config.yaml": 20}


def outcomes(kind, count, seed):
    """How many damaged copies were refused, how many read right."""
    chance, counts = random.Random(seed), {"refused": 0, "right": 0}
    assert kind.read(kind.content) is True
    for index in range(count):
        damaged = mutated(kind.content, chance)
        if damaged == kind.content:
            continue
        start, where = time.monotonic(), f"mutation {index} of seed {seed}"
        watching[0] = True
        try:
            right = kind.read(kind.sign(damaged))
        except CamifyError:
            right = None
        except BaseException as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {str(error)[:500]}") from error
        finally:
            watching[0] = False
        assert not armed, f"{where}: {armed}"
        assert time.monotonic() - start < LONGEST, f"{where}: took too long"
        assert right is not False, f"{where}: was read, and is another"
        assert right is None or not kind.always_refused, f"{where}: was read"
        counts["refused" if right is None else "right"] += 1
    return counts


@pytest.mark.parametrize("name", KINDS)
def test_some_damages(name, net, folder, place, monkeypatch):
    kind = KINDS[name](net, folder, place, monkeypatch)
    assert sum(outcomes(kind, QUICK[name], seed=1).values()) > QUICK[name] // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_damages(name, net, folder, place, monkeypatch):
    counts = outcomes(KINDS[name](net, folder, place, monkeypatch), 500, seed=2)
    print(f"{name}: {counts}")


def test_the_audit_would_hear_a_program(tmp_path):
    import subprocess

    watching[0] = True
    subprocess.run(["true"], check=True)
    watching[0] = False
    assert any("subprocess.Popen" in event for event in armed)
    armed.clear()
    assert Path(tmp_path).is_dir()
