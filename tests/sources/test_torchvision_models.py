"""Weights files that name no network: found by their tensors, or refused with what comes near."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from camify.conversion import convert, inspect, resolve
from camify.errors import CheckpointError, ConversionError
from camify.sources import torchvision_models
from camify.sources.demo_network import TinyVGG


def same(model, state):
    ours = model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[key], state[key]) for key in state)


def network(name, classes=1000):
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "regnet_y_400mf"])
def test_a_bare_file_finds_its_network(tmp_path, name):
    classes = 1000 if name == "resnet18" else 3
    state, path = network(name, classes).state_dict(), tmp_path / "w.pth"
    torch.save(state, path)
    found = resolve(str(path))
    assert same(found.model, state)
    assert not found.model.training
    assert found.name == f"torchvision/{name}@{path}"
    assert found.notes == (
        f"the file names no network; its tensors fit torchvision/{name} and no other of torchvision's",
    )


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pth.tar"])
def test_wrapped_files_find_their_network(tmp_path, suffix):
    state, path = network("squeezenet1_1", 4).state_dict(), tmp_path / f"w{suffix}"
    wrapped = {f"model.{key}": value.half() if value.is_floating_point() else value for key, value in state.items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(wrapped, path)
    else:
        torch.save({"state_dict": wrapped, "epoch": 3}, path)
    found = resolve(str(path))
    assert found.model.state_dict().keys() == state.keys()
    assert "prefix model. removed from the names" in found.notes
    if suffix == ".ckpt":
        assert inspect(str(path), input_size=64).num_classes == 4
        assert convert(str(path), head="direct", input_size=64).num_classes == 4


@pytest.mark.slow
def test_tensors_beside_the_network_do_not_hide_it(tmp_path):
    state, path = network("resnet18", 3).state_dict(), tmp_path / "w.ckpt"
    content = {**{f"model.{key}": value for key, value in state.items()}, "criterion.weight": torch.ones(3)}
    torch.save({"state_dict": content}, path)
    assert same(resolve(str(path)).model, state)


@pytest.mark.slow
def test_a_file_of_another_network_names_the_nearest(tmp_path):
    path, changed = tmp_path / "w.pth", network("resnet18", 3)
    changed.layer4[1].conv2 = nn.Conv2d(512, 512, 1, bias=False)
    torch.save(changed.state_dict(), path)
    message = r"fit none of torchvision's.*Nearest: resnet18 \(\d+ of 122 tensors fit\).*torchvision/NAME@.*w\.pth"
    with pytest.raises(CheckpointError, match=message):
        resolve(str(path))
    torch.save(TinyVGG(3).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"w\.pth: its \d+ tensors fit none"):
        resolve(str(path))


def test_several_that_fit_are_all_named(monkeypatch):
    monkeypatch.setattr(torchvision_models, "_with_as_many_parameters", lambda state: ["alexnet", "vgg11"])
    monkeypatch.setattr(torchvision_models, "_fits", lambda state, name: True)
    with pytest.raises(CheckpointError, match=r"several networks: alexnet, vgg11\. Name .*torchvision/alexnet@w\.pth"):
        torchvision_models.find_architecture({"a.weight": torch.zeros(2, 2)}, "w.pth")


@pytest.mark.slow
def test_no_two_networks_of_torchvision_have_the_same_tensors():
    names = torchvision_models.torchvision_names()
    shapes = {}
    for name in names:
        state = torchvision_models._skeleton(name)
        assert all(value.is_meta for key, value in state.items() if not key.endswith(torchvision_models._BUFFERS))
        shapes.setdefault(tuple((key, tuple(value.shape)) for key, value in state.items()), []).append(name)
    assert all(len(group) == 1 for group in shapes.values())


def test_files_that_are_missing_or_belong_to_a_folder_say_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        resolve(str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: no such file"):
        resolve("weights.safetensors")
    folder = convert("camify/tiny_vgg", head="direct", input_size=96).save_pretrained(tmp_path / "run")
    with pytest.raises(ConversionError, match=r"belongs to a checkpoint folder\. Give the folder: .*run"):
        resolve(str(folder / "model.safetensors"))
