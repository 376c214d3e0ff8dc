"""Sources of timm: names, tags, files and what travels with the weights; nothing is downloaded."""

from __future__ import annotations

import sys

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from camify.conversion import convert, resolve
from camify.data import Preprocessing
from camify.errors import CheckpointError, ConversionError

BUILDER = sys.modules["timm.models._builder"]
NAME = "resnet10t"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "download_cached_file"):
        monkeypatch.setattr(BUILDER, name, refuse)


def same(ours, state):
    theirs = ours.state_dict()
    return theirs.keys() == state.keys() and all(torch.equal(theirs[key], state[key]) for key in state)


@pytest.fixture
def hub(monkeypatch):
    """Weights as the hub would give them, and what was asked of it."""
    state, asked = timm.create_model(NAME, pretrained=False).state_dict(), []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return dict(state)

    monkeypatch.setattr(BUILDER, "load_state_dict_from_hf", load)
    return state, asked


def test_random_weights_and_architectures_need_no_download():
    for source, options in ((f"timm/{NAME}@none", {}), (f"timm/{NAME}", {"weights": False})):
        found = resolve(source, **options)
        assert type(found.model) is type(timm.create_model(NAME))
        assert found.name == f"timm/{NAME}"
        assert found.class_names is None
        assert found.preprocessing is None


@pytest.mark.parametrize("tag", ["", ".c3_in1k"])
def test_pretrained_weights_bring_their_classes_and_preprocessing(hub, tag):
    state, asked = hub
    found = resolve(f"timm/{NAME}{tag}")
    assert same(found.model, state)
    assert not found.model.training
    ((args, kwargs),) = asked
    assert args == (f"timm/{NAME}.c3_in1k",)
    assert kwargs["weights_only"] is True
    assert found.name == f"timm/{NAME}.c3_in1k"
    config = timm.get_pretrained_cfg(NAME)
    assert found.preprocessing == Preprocessing(config.input_size[-1], config.mean, config.std)
    assert found.class_names == torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]


def test_what_the_weights_expect_is_of_their_tag_and_goes_into_the_camnet(hub):
    net = convert(f"timm/{NAME}", head="direct", input_size=64)
    assert net.preprocessing.std == tuple(timm.get_pretrained_cfg(NAME).std)
    assert len(net.class_names) == 1000
    one, two = (timm.get_pretrained_cfg(f"efficientnet_b0.{tag}") for tag in ("ra_in1k", "ra4_e3600_r224_in1k"))
    assert one.mean != two.mean  # two sets of weights of one network, normalized differently


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("classes", [1000, 5])
def test_weights_files_of_any_number_of_classes(tmp_path, suffix, classes):
    state, path = timm.create_model(NAME, num_classes=classes).state_dict(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    found = resolve(f"timm/{NAME}@{path}")
    assert same(found.model, state)
    assert found.class_names is None
    assert found.preprocessing is None
    tagged = resolve(f"timm/{NAME}.c3_in1k@{path}")
    assert same(tagged.model, state)
    assert (tagged.class_names is None) == (classes == 5)
    assert tagged.preprocessing.size == timm.get_pretrained_cfg(NAME).input_size[-1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm/resnet19", r"timm/resnet19: timm has no such network\. Near: .*resnet18"),
        ("timm/resnet18.a9_in1k", r"no such network\. Near: .*resnet18\.a\d_in1k"),
        ("timm/resnet18.", r"no such network"),
        ("timm/resnet18@a1_in1k", r"tags are written timm/NAME\.TAG"),
        ("timm/resnet50.bamboo", r"these weights have no classifier"),
    ],
)
def test_unknown_names_and_weights_are_refused(source, message):
    if "bamboo" in source and source.removeprefix("timm/") not in timm.list_pretrained():
        pytest.skip("this timm does not know the name")
    with pytest.raises(ConversionError, match=message):
        resolve(source)


def test_a_network_without_weights_says_so():
    (name, *_) = [name for name in timm.list_models("resnet*") if not timm.is_model_pretrained(name)]
    with pytest.raises(CheckpointError, match=rf"timm/{name}: timm has no weights.*@none"):
        resolve(f"timm/{name}")


def test_without_a_network_connection_the_ways_out_are_named(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route\nmore")

    monkeypatch.setattr(BUILDER, "load_state_dict_from_hf", fail)
    with pytest.raises(CheckpointError, match=rf"timm/{NAME}.*OSError: no route\).*@FILE.*@none") as refusal:
        resolve(f"timm/{NAME}")
    assert "\n" not in str(refusal.value)


def test_without_timm_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConversionError, match=r"pip install 'camify\[timm\]'"):
        resolve(f"timm/{NAME}")
