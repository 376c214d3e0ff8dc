"""Promises 2, 3 and 12 of camify, each by a whole way through it; their parts have tests of their own."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import camify
from camify.cli import main
from camify.exporters import open_exported

pytestmark = pytest.mark.filterwarnings("ignore")  # of training's command line


def flat():
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 15 * 15, 12), nn.ReLU(), nn.Linear(12, 5))


NETWORKS = {
    "flatten": (flat, 64, ("gap", "recast")),
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=5), 96, ("gap", "direct", "recast")),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 64, ("gap", "direct", "recast")),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 64, ("gap", "recast")),
}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (name, head) if name == "flatten" and head == "recast" else pytest.param(name, head, marks=pytest.mark.slow)
        for name, row in NETWORKS.items()
        for head in row[2]
    ],
)
def test_promise_2_logits_are_explained_by_their_maps_from_conversion_to_export(name, head, tmp_path):
    """``mean(map) + bias == logit`` within 1e-4 of the largest logit: here computed by hand, in float64 sums."""
    make, size, _ = NETWORKS[name]
    torch.manual_seed(0)
    net = camify.convert(make().eval(), head=head, num_classes=None if head == "recast" else 7, input_size=size)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        logits, maps = net.eval().forward_with_maps(images)
    bias = net.classifier.bias.double()
    sums = maps.double().mean(dim=(2, 3)) + bias
    assert float((sums - logits.double()).abs().max()) <= 1e-4 * float(logits.abs().max())
    loaded = camify.load(net.save_pretrained(tmp_path / "net"))
    for again, before in zip(loaded.forward_with_maps(images), (logits, maps), strict=True):
        torch.testing.assert_close(again, before, rtol=1e-5, atol=1e-6)
    if name == "flatten" and torch.__version__ >= (2, 10):  # which exports
        outputs = open_exported(camify.export(net, tmp_path / "net.onnx").path)(images)
        again = outputs["maps"].double().mean(dim=(2, 3)) + bias
        assert float((again - outputs["logits"].double()).abs().max()) <= 1e-4 * float(logits.abs().max())


def fit(folder, root, *more):
    words = {
        "seed_everything": 3, "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": False, "model.model": "camify/tiny_vgg", "model.head_channels": 8,
        "model.input_size": 96, "model.dropout": 0.3, "overlays.num_images": 2,
        "data": "ImageFolderDataModule", "data.root": root, "data.image_size": 96, "data.batch_size": 4,
        "data.num_workers": 0,
    }  # fmt: skip
    main(["fit", *(str(word) for key, value in words.items() for word in (f"--{key}", value)), *more])


def sums(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".png", ".safetensors")
    }


@pytest.mark.slow
def test_promise_3_the_same_seed_is_the_same_run(images, tmp_path):
    for name in ("one", "two"):
        fit(tmp_path / name, images)
    fit(tmp_path / "other", images, "--seed_everything", "4")
    one, two, other = (sums(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) > 4
    assert one == two
    assert one["export/model.safetensors"] != other["export/model.safetensors"]


@pytest.mark.slow
def test_promise_12_what_is_left_out_or_assumed_is_said(images, tmp_path, capsys):
    root = Path(shutil.copytree(images, tmp_path / "images"))
    for name in ("a.heic", "b.heic", "notes.txt", ".hidden"):
        (root / "train" / "dark" / name).touch()
    fit(tmp_path / "run", root)
    printed = " ".join(capsys.readouterr().out.split())
    assert "files left out, since their names do not end as those of images" in printed
    assert "2 .heic, 1 .txt" in printed
    assert "hidden files and folders left out: 1" in printed
    export = tmp_path / "run" / "export"
    main(["explain", str(root / "train"), "--model", str(export), "--out", str(tmp_path / "maps"), "--workers", "0"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 .heic, 1 .txt" in printed
    assert "Hidden files and folders left out: 1" in printed
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "w.pth")
    main(["convert", f"torchvision/squeezenet1_1@{tmp_path / 'w.pth'}", str(tmp_path / "net"), "--input_size", "64"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Assumed: ImageNet's normalization at 64 px" in printed
