"""What lies in a cache under a published name is used only where it is what was published."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from camify.errors import CheckpointError
from camify.sources import resolve
from tests.foreign_code import RunsCode

API = torchvision.models._api
NAME = "squeezenet1_1"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Random weights as if they had been published: the file in torch's cache, its hash in its name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    plain = tmp_path / "plain.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = plain.rename(folder / f"{NAME}-{digest[:8]}.pth")
    monkeypatch.setattr(API.WeightsEnum, "url", property(lambda self: f"https://nowhere.invalid/{file.name}"))
    return file


def test_the_published_file_is_used(cached):
    expected = torch.load(cached, weights_only=True)
    state = resolve(f"torchvision/{NAME}").model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def other_tensors(file, trace):
    state = torch.load(file, weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, file)


def one_bit(file, trace):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def pickled(file, trace):
    torch.save({"state": RunsCode(trace)}, file)


def empty(file, trace):
    file.write_bytes(b"")


def cut(file, trace):
    file.write_bytes(file.read_bytes()[:1000])


def text(file, trace):
    file.write_text("<html>503 Service Unavailable</html>")


def folder(file, trace):
    file.unlink()
    file.mkdir()


DAMAGES = [other_tensors, one_bit, pickled, empty, cut, text, folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_another_file_of_that_name_is_refused_and_named(cached, damage, trace):
    damage(cached, trace)
    with pytest.raises(CheckpointError, match=rf"{cached.name}: .*Delete it"):
        resolve(f"torchvision/{NAME}")


@pytest.mark.parametrize("damage", [pickled, empty, cut, text, folder])
def test_files_without_a_hash_in_their_name_are_no_traceback(cached, damage, trace, monkeypatch):
    plain = cached.rename(cached.with_name("weights.pth"))
    monkeypatch.setattr(API.WeightsEnum, "url", property(lambda self: f"https://nowhere.invalid/{plain.name}"))
    damage(plain, trace)
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*Delete it"):
        resolve(f"torchvision/{NAME}")


# ---------------------------------------------------------------- the hub's cache


@pytest.fixture
def hub_file(tmp_path, monkeypatch):
    """timm's weights as the Hub's client keeps them: a link to a file that is named by its SHA-256."""
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg("resnet18.a1_in1k")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / f"models--{config.hf_hub_id.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{'0' * 40}"):
        (root / name).mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    content = safetensors.torch.save(timm.create_model("resnet18", pretrained=False).state_dict())
    blob = root / "blobs" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (root / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to(blob)
    return blob


def test_weights_of_the_hub_are_used_and_changed_ones_refused(hub_file, trace):
    assert resolve("timm/resnet18.a1_in1k").model.num_classes == 1000
    for damage in (one_bit, cut, empty, text, pickled):
        before = hub_file.read_bytes()
        damage(hub_file, trace)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: .*Delete"):
            resolve("timm/resnet18.a1_in1k")
        hub_file.write_bytes(before)
    folder(hub_file, trace)
    with pytest.raises(CheckpointError, match=r"resnet18\.a1_in1k"):  # the client takes it for missing
        resolve("timm/resnet18.a1_in1k")


def test_small_files_of_the_hub_have_the_hash_of_git(tmp_path):
    """The reference is git's own: the SHA-1 of the empty file is e69de29b..., of hello and a line feed ce01362..."""
    from camify.sources.cached_files import require_hub_file

    for content, digest in (
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ):
        blob, link = tmp_path / digest, tmp_path / f"{digest[:4]}.json"
        blob.write_bytes(content)
        link.symlink_to(blob)
        require_hub_file(link)
        blob.write_bytes(content + b"x")
        with pytest.raises(CheckpointError, match=rf"{link.name}: was changed"):
            require_hub_file(link)
