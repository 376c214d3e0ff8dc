"""Every form of a source through resolve, load and the commands; what never asks the hub; a new loader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

import camify
from camify.cli.commands import main
from camify.conversion.readiness import check
from camify.errors import CheckpointError, ConfigError, ConversionError
from camify.sources import LOADERS, Loader, Source, load, resolve
from camify.sources.demo_network import DEMO_WEIGHTS, TinyVGG
from camify.task import Task
from camify.training.prepare import checkpoint_manifest

ROOT = Path(__file__).parents[2]
SIZE = 32
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(6 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.classifier(self.features(x))


def make_net(bias=0.0):
    torch.manual_seed(4)
    net = camify.convert(Small(), head_channels=8, input_size=SIZE, class_names=["a", "b", "c"], seed=0)
    net.task, net.preprocessing = "multilabel", {"size": SIZE, "mean": [0.5] * 3, "std": [0.2] * 3}
    with torch.no_grad():
        net.classifier.bias.fill_(bias)
    net.untrained = ("classifier",)
    return net.eval()


def lightning(net, path):
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1, **checkpoint_manifest(net)}, path)


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """What was asked of the hub, which knows nothing."""
    asked = []

    def refuse(name, **options):
        asked.append((name, options["local_files_only"]))
        raise OSError("no such repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return asked


CAN_EXPORT = torch.__version__ >= "2.9"  # compares versions, not text


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One network in every CAM-ready form; its bias says which of a run's files was taken."""
    root = tmp_path_factory.mktemp("places")
    make_net(1.0).save_pretrained(root / "folder")
    finished, interrupted, stopped = (root / name for name in ("finished", "interrupted", "stopped"))
    for run in (finished, interrupted, stopped):
        run.mkdir()
        lightning(make_net(3.0), run / "last.ckpt")
    lightning(make_net(2.0), finished / "best.ckpt")
    lightning(make_net(2.0), interrupted / "best.ckpt")
    lightning(make_net(9.0), interrupted / "another.ckpt")
    make_net(1.0).save_pretrained(finished / "export")
    if CAN_EXPORT:
        camify.export(make_net(1.0), root / "model.pt2")
    return root


CAM_READY = {"folder": 1, "finished": 1, "interrupted": 2, "stopped": 3, "stopped/last.ckpt": 3, "model.pt2": 1}


@pytest.mark.parametrize("form", CAM_READY)
def test_every_cam_ready_form_goes_through_the_one_door(places, form):
    if form.endswith("pt2") and not CAN_EXPORT:
        pytest.skip("this torch writes other archives")
    text, expected = str(places / form), make_net(float(CAM_READY[form]))
    source = resolve(text)
    assert source.name == text
    assert source.class_names == ["a", "b", "c"]
    assert source.task is Task.MULTILABEL
    assert source.preprocessing == expected.preprocessing
    assert source.only_maps == form.endswith("pt2")
    with torch.no_grad():
        for model in (source.model, load(text), camify.load(places / form)):
            assert model.untrained == ("classifier",)
            torch.testing.assert_close(model(IMAGES), expected(IMAGES))
    assert all(result.holds for result in check(text)), check(text)


def test_what_was_taken_of_a_run_is_said(places):
    assert resolve(str(places / "folder")).notes == ()
    assert resolve(str(places / "finished")).notes == (f"taken from {places / 'finished' / 'export'}",)
    assert resolve(str(places / "interrupted")).notes == (f"taken from {places / 'interrupted' / 'best.ckpt'}",)


def test_a_run_can_be_explained_converted_and_trained(places, tmp_path):
    run = str(places / "interrupted")
    net = camify.convert(run, head="direct", input_size=SIZE)
    assert net.task is Task.MULTILABEL
    assert f"taken from {places / 'interrupted' / 'best.ckpt'}" in net.certificate.notes
    assert camify.convert(run, num_classes=1, input_size=SIZE).task is Task.BINARY
    module = camify.CAMFineTuner(str(places / "stopped" / "last.ckpt"), class_names=["a", "b", "c"], input_size=SIZE)
    assert torch.equal(module.model.classifier.bias, torch.full((3,), 3.0))
    picture = tmp_path / "p.png"
    Image.new("RGB", (40, 40), (200, 90, 10)).save(picture)
    main(["explain", str(picture), "--model", run, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "results.jsonl").is_file()


@pytest.mark.parametrize("name", ["torchvision/alexnet", "timm/resnet18.a1_in1k", "camify/tiny_vgg", "w.safetensors"])
def test_legacy_names_never_ask_the_hub_or_load_weights_to_say_so(hub, monkeypatch, name, capsys):
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(CheckpointError, match=rf"{name}: names a legacy network.*camify convert {name} FOLDER"):
        camify.load(name)
    with pytest.raises(SystemExit):
        main(["export", name, "--to", "onnx"])
    assert f"camify convert {name} FOLDER" in capsys.readouterr().err
    if "/" in name:  # from_pretrained takes folders and repositories only
        with pytest.raises(CheckpointError, match=r"expected a folder with camify\.json"):
            camify.CAMNet.from_pretrained(name)
    assert hub == []


def test_no_library_name_asks_the_hub_even_where_nothing_has_it(hub):
    for name in ("torchvision/nothing", "timm/nothing", "camify/nothing"):
        with pytest.raises(ConversionError):
            resolve(name)
        with pytest.raises(CheckpointError):
            camify.load(name)
    assert hub == []


def test_the_hub_is_asked_by_prefix_or_where_nothing_is_here(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("someone/model", "hf:someone/model"):
        for load_it in (resolve, camify.load, camify.CAMNet.from_pretrained):
            with pytest.raises(CheckpointError, match=f"{name}: is no folder here, and cannot be had"):
                load_it(name)
    with pytest.raises(CheckpointError, match=r"not in the hub's cache.*camify check hf:someone/model"):
        camify.inspect("hf:someone/model")
    assert hub == [("someone/model", False)] * 6 + [("someone/model", True)]
    (tmp_path / "someone").mkdir()
    with pytest.raises(ConversionError, match="Known forms"):
        resolve("someone/model")
    with pytest.raises(CheckpointError, match="hf:USER/NAME"):
        resolve("hf:someone")
    assert len(hub) == 7


def test_a_local_folder_of_the_name_comes_first(hub, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_net(1.0).save_pretrained(tmp_path / "someone" / "model")
    assert resolve("someone/model").class_names == ["a", "b", "c"]
    assert hub == []


def test_an_exported_file_serves_cam_and_nothing_that_asks_for_layers(places, tmp_path, capsys):
    text = str(places / "model.pt2")
    assert resolve(text).explained_by(["cam"]).only_maps
    for refused in (
        lambda: resolve(text).explained_by(["gradcam"]),
        lambda: camify.convert(text, input_size=SIZE),
        lambda: camify.inspect(text, input_size=SIZE),
        lambda: camify.CAMFineTuner(text, class_names=["a", "b", "c"], input_size=SIZE),
        lambda: camify.evaluate(text, tmp_path, methods=["gradcam"]),
    ):
        with pytest.raises(ConfigError, match="an exported file holds class maps and no layers"):
            refused()
    with pytest.raises(SystemExit):
        main(["export", text, "--to", "folder", "--out", str(tmp_path / "out")])
    assert "no layers" in capsys.readouterr().err


def test_a_loader_is_one_row(monkeypatch):
    """What the package's docstring says of adding one."""

    def load_mine(text: str, weights: bool) -> Source:
        return Source(TinyVGG(4), text, ["a", "b", "c", "d"], notes=(f"weights: {weights}",))

    monkeypatch.setattr("camify.sources.LOADERS", LOADERS)
    LOADERS.insert(0, Loader("mine:NAME", lambda text: text.startswith("mine:"), load_mine))
    try:
        assert resolve("mine:net", weights=False).notes == ("weights: False",)
        net = camify.convert("mine:net", input_size=96)
        assert net.class_names == ["a", "b", "c", "d"]
        assert camify.inspect("mine:net", input_size=96).num_classes == 4
        with pytest.raises(CheckpointError, match="camify convert mine:net FOLDER"):
            camify.load("mine:net")
        with pytest.raises(ConversionError, match=r"Known forms: mine:NAME"):
            resolve("nothing")
    finally:
        del LOADERS[0]


def test_the_demos_weights_come_with_the_package(tmp_path, monkeypatch):
    settings = (ROOT / "pyproject.toml").read_text()
    assert '"sources/*.safetensors"' in settings[settings.index("package-data") :]  # a wheel holds it
    monkeypatch.chdir(tmp_path)
    found = resolve("camify/tiny_vgg@demo")
    assert found.name == "camify/tiny_vgg@demo"
    state = safetensors.torch.load_file(DEMO_WEIGHTS)
    assert found.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.model.state_dict().items())


@pytest.mark.slow
def test_loading_needs_no_lightning(places):
    code = "import sys, camify; camify.load(sys.argv[1]); assert 'pytorch_lightning' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(places / "interrupted")], check=True, env=environment)


def test_fine_tuning_keeps_what_the_source_knows():
    module = camify.CAMFineTuner("camify/tiny_vgg@demo", class_names=list("abcdef"), input_size=96)
    assert module.model.preprocessing == resolve("camify/tiny_vgg@demo").preprocessing
    notes = module.model.certificate.notes
    assert len(notes) == len(set(notes))
