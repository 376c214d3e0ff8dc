"""Sources: every form of a source string, weights files that lie, and what is (not) downloaded."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from camify.conversion import convert, resolve
from camify.data import Preprocessing
from camify.errors import CheckpointError, ConversionError
from camify.model import CAMNet
from camify.sources.demo_network import TinyVGG
from tests.foreign_code import RunsCode

API = torchvision.models._api
NAME = "squeezenet1_1"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(API, "load_state_dict_from_url", refuse)


def network(classes=1000):
    return getattr(torchvision.models, NAME)(num_classes=classes)


def equal(ours: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    theirs = ours.state_dict()
    return theirs.keys() == state.keys() and all(torch.equal(theirs[key], state[key]) for key in state)


# ---------------------------------------------------------------- names


def test_random_weights_and_architectures_need_no_download():
    for source, options in ((f"torchvision/{NAME}@none", {}), (f"torchvision/{NAME}", {"weights": False})):
        found = resolve(source, **options)
        assert type(found.model) is torchvision.models.SqueezeNet
        assert found.name == f"torchvision/{NAME}"
        assert found.class_names is None
    assert resolve(f"torchvision/{NAME}@IMAGENET1K_V1", weights=False).class_names is None
    assert resolve(f"torchvision/{NAME}@/no/such/file.pth", weights=False).class_names is None
    assert isinstance(resolve("camify/tiny_vgg").model, TinyVGG)
    assert isinstance(resolve("camify/tiny_vgg@/no/such/file.pth", weights=False).model, TinyVGG)


@pytest.mark.parametrize(
    "source",
    ["", "vgg16", "torchvision", "torchvision/", "torchvision/vgg99", "torchvision/fcn_resnet50", "timm", "timm/",
     "camify/big_vgg", "./no/such/folder", "torchvision/VGG", "torchvision/quantized_resnet18"],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_known_forms(source):
    with pytest.raises(ConversionError, match=r"no such .*torchvision/NAME@FILE\.pth"):
        resolve(source)


def test_unknown_weights_are_refused_with_the_known_ones():
    with pytest.raises(ConversionError, match=r"vgg16@IMAGENET9K.*Known: none, IMAGENET1K_V1, IMAGENET1K_FEATURES"):
        resolve("torchvision/vgg16@IMAGENET9K")


@pytest.mark.parametrize("which", ["", "@DEFAULT", "@IMAGENET1K_V1"])
def test_pretrained_weights_are_fetched_with_hash_check_and_without_pickle(monkeypatch, which):
    state, calls = network().state_dict(), []

    def load(url, *args, **kwargs):
        calls.append((url, args, kwargs))
        return state

    monkeypatch.setattr(API, "load_state_dict_from_url", load)
    found = resolve(f"torchvision/{NAME}{which}")
    ((url, args, kwargs),) = calls
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    assert url == weights.url
    assert args == ()
    assert kwargs["check_hash"] is True
    assert kwargs["weights_only"] is True
    assert equal(found.model, state)
    assert found.class_names == list(weights.meta["categories"])
    assert found.name == f"torchvision/{NAME}@IMAGENET1K_V1"
    assert not found.model.training


def test_googlenet_is_built_as_its_weights_expect(monkeypatch):
    wanted = torchvision.models.googlenet(init_weights=False, transform_input=True, aux_logits=True)
    monkeypatch.setattr(API, "load_state_dict_from_url", lambda *args, **kwargs: wanted.state_dict())
    found = resolve("torchvision/googlenet").model
    assert found.transform_input is True
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(images), wanted.eval()(images))


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_where_to_put_the_file(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(API, "load_state_dict_from_url", fail)
    with pytest.raises(CheckpointError, match=rf"{NAME}@IMAGENET1K_V1.*{error}.*checkpoints.*@FILE or @none"):
        resolve(f"torchvision/{NAME}")


@pytest.mark.parametrize("bare", [True, False])
def test_torchvisions_own_files_bring_classes_and_preprocessing(tmp_path, monkeypatch, bare):
    torch.manual_seed(0)
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    plain = tmp_path / "plain.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    named = plain.rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setattr(API.WeightsEnum, "url", property(lambda self: f"https://example.org/{named.name}"))
    found = resolve(str(named) if bare else f"torchvision/{NAME}@{named}")
    assert found.class_names == list(weights.meta["categories"])
    assert found.preprocessing.size == 224
    assert resolve(f"torchvision/{NAME}@none").class_names is None
    torch.save(torchvision.models.squeezenet1_1().state_dict(), named)
    with pytest.raises(CheckpointError, match="is not torchvision's file of that name"):
        resolve(f"torchvision/{NAME}@{named}")


def test_convert_takes_class_names_from_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(API, "load_state_dict_from_url", lambda *args, **kwargs: network().state_dict())
    net = convert(f"torchvision/{NAME}", input_size=64, head="direct")
    assert net.class_names == list(torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])
    assert net.certificate.source == f"torchvision/{NAME}@IMAGENET1K_V1"
    expected = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    assert net.preprocessing == Preprocessing(224, tuple(expected.mean), tuple(expected.std))
    assert convert(f"torchvision/{NAME}", input_size=64, head="direct", num_classes=3).class_names is None


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("classes", [1000, 7])
def test_state_dict_files_of_any_number_of_classes(tmp_path, suffix, classes):
    state, path = network(classes).state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    found = resolve(f"torchvision/{NAME}@{path}")
    assert equal(found.model, state)
    assert found.class_names is None
    assert str(path) in found.name
    images = torch.rand(1, 3, 64, 64)
    assert found.model(images).shape == (1, classes)
    assert not found.model.training


def test_class_names_in_a_safetensors_file_are_read(tmp_path):
    path = tmp_path / "tiny.safetensors"
    state = TinyVGG(num_classes=2).state_dict()
    safetensors.torch.save_file(state, path, metadata={"class_names": '["cat", "dog"]'})
    found = resolve(f"camify/tiny_vgg@{path}")
    assert found.class_names == ["cat", "dog"]
    assert equal(found.model, state)
    net = convert(f"camify/tiny_vgg@{path}", input_size=96, head="direct")
    assert net.class_names == ["cat", "dog"]
    for broken in ("[1, 2]", "{", '{"a": 1}', '"cat"', "[" * 100_000):
        safetensors.torch.save_file(state, path, metadata={"class_names": broken})
        with pytest.raises(CheckpointError, match=r"tiny\.safetensors.*class_names"):
            resolve(f"camify/tiny_vgg@{path}")


def test_a_checkpoint_folder_is_a_source(tmp_path):
    net = convert("camify/tiny_vgg", input_size=96, head="direct", num_classes=2)
    net.class_names = ["cat", "dog"]
    folder = net.save_pretrained(tmp_path / "run")
    found = resolve(str(folder))
    assert isinstance(found.model, CAMNet)
    assert found.class_names == ["cat", "dog"]
    assert equal(found.model, net.state_dict())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty.*camify\.json"):
        resolve(str(tmp_path / "empty"))


def test_weights_that_do_not_fit_are_named_by_tensor_and_shape(tmp_path):
    path = tmp_path / "other.pth"
    state = network(7).state_dict()
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    del state["features.3.squeeze.bias"]
    state = {"extra.weight": torch.zeros(2), **state}
    torch.save(state, path)
    with pytest.raises(CheckpointError) as refusal:
        resolve(f"torchvision/{NAME}@{path}")
    message = str(refusal.value)
    assert "other.pth" in message
    assert "1 missing, 1 unknown, 1 of another shape" in message
    rows = [" ".join(line.split()) for line in message.splitlines()]
    assert "features.3.squeeze.bias | - | (16,) | -" in rows
    assert "extra.weight | (2,) | - | -" in rows
    assert "features.0.weight | (64, 1, 3, 3) | (64, 3, 3, 3) | -" in rows
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"(?s)do not fit.*and \d+ more"):
        resolve(f"torchvision/{NAME}@{path}")


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        with pytest.raises(CheckpointError, match=f"weights{suffix}: no such file"):
            resolve(f"torchvision/{NAME}@{path}")
        path.write_bytes(b"not weights at all")
        with pytest.raises(CheckpointError, match=f"weights{suffix}: cannot be read"):
            resolve(f"torchvision/{NAME}@{path}")
        path.write_bytes(b"")
        with pytest.raises(CheckpointError, match=f"weights{suffix}: cannot be read"):
            resolve(f"torchvision/{NAME}@{path}")
    path = tmp_path / "checkpoint.pt"
    torch.save({**network(3).state_dict(), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: is not a state dict"):
        resolve(f"torchvision/{NAME}@{path}")
    torch.save([torch.zeros(2)], path)
    with pytest.raises(CheckpointError, match=r"is not a state dict"):
        resolve(f"torchvision/{NAME}@{path}")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_weights_file_runs_code(tmp_path, zipped):
    trace, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"weight": RunsCode(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth: cannot be read as plain weights"):
        resolve(f"torchvision/{NAME}@{path}")
    assert not trace.exists()
    function, arguments = RunsCode(trace).__reduce__()
    function(*arguments)  # the same thing does run where it is trusted
    assert trace.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(network(3), path)
    with pytest.raises(CheckpointError, match=r"model\.pt: is a file with pickled objects"):
        resolve(f"torchvision/{NAME}@{path}")
