"""Weights files as people have them: every wrapper round-trips, every lie is refused with its reason."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from camify.conversion import resolve
from camify.errors import CheckpointError
from camify.sources.demo_network import TinyVGG
from camify.sources.state_dicts import count_classes, match_keys, read_state
from tests.foreign_code import RunsCode

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights"


def tiny(classes=3):
    return TinyVGG(num_classes=classes).state_dict()


def load(content, path, arch="camify/tiny_vgg"):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return resolve(f"{arch}@{path}")


def same(model: nn.Module, state) -> bool:
    ours = model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[key], state[key]) for key in state)


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".safetensors"])
def test_plain_files_need_no_note(tmp_path, suffix):
    state = tiny()
    found = load(state, tmp_path / f"w{suffix}")
    assert same(found.model, state)
    assert found.notes == ()


@pytest.mark.parametrize(
    "nest", ["state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema", "ema", "net", "weights"]
)
def test_nested_state_dicts_are_found(tmp_path, nest):
    state = tiny()
    found = load({nest: state, "epoch": 3, "loss": torch.tensor(0.5), "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    assert same(found.model, state)
    assert found.notes == ((f"weights taken from {nest}",) if "ema" in nest else ())


def test_plain_weights_come_before_averaged_ones_and_the_note_says_so(tmp_path):
    plain, averaged = tiny(), tiny()
    content = {"state_dict_ema": averaged, "model_ema": averaged, "ema": averaged, "model": {"net": plain}}
    found = load(content, tmp_path / "w.pt")
    assert same(found.model, plain)
    assert found.notes == ("weights taken from model.net; the file also holds state_dict_ema, model_ema, ema",)
    found = load({"model": {"name": "tiny"}, "ema": averaged}, tmp_path / "w.pt")
    assert same(found.model, averaged)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "network.",
        "model.module.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "model._orig_mod.module.net.",
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_wrapper_prefixes_are_removed(tmp_path, prefix, suffix):
    state = tiny()
    found = load(prefixed(prefix, state), tmp_path / f"w{suffix}")
    assert same(found.model, state)
    assert found.notes == (f"prefix {prefix} removed from the names",)


def test_a_prefix_is_removed_only_where_that_fits_better(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 3)

    target = Wrapped().state_dict()
    for prefix in ("", "model.", "module."):
        state = match_keys(prefixed(prefix, target), target)
        assert state.keys() == target.keys()
        assert all(torch.equal(state[key], target[key]) for key in target)


def test_partly_prefixed_keys_fit_and_tensors_beside_the_network_are_left_out(tmp_path):
    state = tiny()
    half = {("module." if key.startswith("features") else "") + key: value for key, value in state.items()}
    assert same(load(half, tmp_path / "w.pt").model, state)
    lightning = {
        "state_dict": {**prefixed("model.", state), "criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {},
    }
    found = load(lightning, tmp_path / "w.ckpt")
    assert same(found.model, state)
    assert "1 tensors outside model. left out: criterion.weight" in found.notes
    with pytest.raises(CheckpointError, match="1 unknown"):
        load({**state, "criterion.weight": torch.ones(3)}, tmp_path / "w.ckpt")
    del lightning["state_dict"]["model." + next(iter(state))]
    with pytest.raises(CheckpointError, match="1 missing, 1 unknown"):
        load(lightning, tmp_path / "w.ckpt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_that_of_the_network(tmp_path, dtype):
    state = {key: value.to(dtype).float() for key, value in tiny().items()}
    state = {key: value if "tracked" not in key else tiny()[key] for key, value in state.items()}
    found = load({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pt")
    assert same(found.model, state)
    assert found.notes == (f"precision changed: {dtype} -> float32".replace("torch.", ""),)


def test_shared_tensors_parameters_and_strides_are_fine(tmp_path):
    model = TinyVGG(num_classes=3)
    state = model.state_dict()
    key = next(key for key, value in state.items() if value.dim() == 4)
    content = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    content[key] = state[key].contiguous(memory_format=torch.channels_last)
    assert same(load(content, tmp_path / "w.pt").model, state)
    assert same(load({"model": state, "ema": state}, tmp_path / "w.pt").model, state)


def test_old_files_without_batch_counters_and_with_old_densenet_names_load(tmp_path):
    wanted = torchvision.models.densenet121(num_classes=4).state_dict()
    old = {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}
    for kind in ("norm", "conv"):
        for number in "12":
            old = {key.replace(f".{kind}{number}.", f".{kind}.{number}."): value for key, value in old.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = load(prefixed("module.", old), tmp_path / "w.pth", "torchvision/densenet121")
    assert same(found.model, wanted)


# ---------------------------------------------------------------- by order


def renamed(state, name):
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    names = {module: name(number, module) for number, module in enumerate(modules)}
    return {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}


@pytest.mark.parametrize("arch", ["alexnet", "vgg11", "vgg11_bn", "squeezenet1_1", "resnet18"])
def test_other_names_in_the_order_of_the_network_are_accepted(arch):
    target = torchvision.models.get_model(arch, num_classes=10).state_dict()
    state = renamed(target, lambda number, module: f"layer{number}")
    if arch == "resnet18":  # the names of a block must tell conv1 from downsample, as the network's do
        state = renamed(target, lambda number, module: module.replace("layer", "stage"))
    notes = []
    found = match_keys(state, target, notes)
    assert found.keys() == target.keys()
    assert all(torch.equal(found[key], target[key]) for key in target)
    assert notes == [f"names differ; {len(target)} tensors matched by order and shape"]


def test_other_names_and_another_number_of_classes(tmp_path):
    state = tiny(7)
    other = renamed(state, lambda number, module: f"conv{number}")
    assert same(load(other, tmp_path / "w.pt").model, state)
    old = {key: value for key, value in other.items() if not key.endswith("num_batches_tracked")}
    assert same(load(old, tmp_path / "w.pt").model, state)


def chain(*names):
    return {f"{name}.weight": torch.randn(4, 4) for name in names}


@pytest.mark.parametrize(
    ("file", "target"),
    [
        (chain("query", "key"), chain("0", "1")),  # nothing tells which is which
        (chain("conv10", "conv2"), chain("0", "1")),  # sorted as text: not the order of the layers
        (chain("1", "2"), chain("0", "1")),  # 1 could be 1
        (chain("a"), chain("0", "1")),
        ({"a.bias": torch.ones(4)}, {"b.weight": torch.ones(4)}),
        ({"a.weight": torch.ones(4, 5)}, {"b.weight": torch.ones(5, 4)}),
        (
            {"c.weight": torch.ones(4, 2), "n.weight": torch.ones(4), "m.weight": torch.ones(4)},
            {"0.weight": torch.ones(4, 2), "1.weight": torch.ones(4), "2.weight": torch.ones(4)},
        ),  # two norms of one size after one kernel
    ],
)
def test_ambiguous_orders_are_refused(file, target):
    notes = []
    assert match_keys(file, target, notes).keys() == file.keys()
    assert notes == []


# ---------------------------------------------------------------- refusals


def test_what_does_not_fit_is_a_table(tmp_path):
    state = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    state["features.3.sqeeze.bias"] = state.pop("features.3.squeeze.bias")
    state["features.0.bias"] = state["features.0.bias"].to(torch.uint8)
    state["evil\x1b[31m\nname"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as refusal:
        load(prefixed("module.", state), tmp_path / "w.pth", "torchvision/squeezenet1_1")
    first, header, *rows = str(refusal.value).splitlines()
    assert "w.pth: the weights do not fit the network: 1 missing, 2 unknown, 2 of another shape or kind" in first
    assert "prefix module. removed" in first
    assert [cell.strip() for cell in header.split("|")] == ["key", "in the file", "in the network", "nearest key"]
    cells = {tuple(cell.strip() for cell in row.split("|")) for row in rows}
    assert cells == {
        ("features.0.weight", "(64, 1, 3, 3)", "(64, 3, 3, 3)", "-"),
        ("features.0.bias", "(64,) uint8", "(64,)", "-"),
        ("features.3.squeeze.bias", "-", "(16,)", "features.3.sqeeze.bias"),
        ("features.3.sqeeze.bias", "(16,)", "-", "features.3.squeeze.bias"),
        ("'evil\\x1b[31m\\nname'", "(2,)", "-", "-"),
    }
    other = torchvision.models.resnet18(num_classes=3).state_dict()
    with pytest.raises(CheckpointError) as refusal:
        load(other, tmp_path / "w.pth", "torchvision/squeezenet1_1")
    first, _, *rows = str(refusal.value).splitlines()
    assert len(rows) == 11
    assert f"52 missing, {len(other)} unknown" in first
    assert rows[-1] == f"... and {52 + len(other) - 10} more"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
def test_foreign_globals_do_not_run_and_are_named(tmp_path, zipped, suffix):
    path, trace = tmp_path / f"w{suffix}", tmp_path / "ran"
    content = {"state_dict": tiny(), "extra": RunsCode(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"it needs (posix|nt)\.system.*torch\.save\(model\.state_dict"
    ) as refusal:
        read_state(path)
    assert not trace.exists()
    assert "weights_only" not in str(refusal.value)


def test_options_beside_the_weights_are_explained(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": tiny(), "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(
        CheckpointError, match=r"w\.ckpt: is a file with pickled objects \(it needs argparse\.Namespace\)"
    ):
        read_state(path)
    torch.save(TinyVGG(), path)
    with pytest.raises(CheckpointError, match=r"it needs camify\.sources\.demo_network\.TinyVGG\), and reading"):
        read_state(path)


def test_a_whole_data_parallel_model_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(nn.DataParallel(TinyVGG(3)), path)  # pickled as a whole
    with pytest.raises(CheckpointError, match=r"it needs [\w.]+\), and(.|\n)*torch\.save\(saved\.state_dict\(\)"):
        read_state(path)
    state = TinyVGG(3).state_dict()
    found = load(nn.DataParallel(TinyVGG(3)).state_dict(), path)  # its tensors alone are fine
    assert found.model.state_dict().keys() == state.keys()
    assert found.notes == ("prefix module. removed from the names",)


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone."])
def test_lightning_checkpoints_with_averaged_weights_beside(tmp_path, prefix):
    state, averaged = tiny(), tiny()
    content = {
        "state_dict": prefixed(prefix, state),
        "model_ema": prefixed("module.", averaged),
        "epoch": 3,
        "global_step": 12,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
    }
    found = load(content, tmp_path / "w.ckpt")
    assert same(found.model, state)
    assert found.notes == (
        "weights taken from state_dict; the file also holds model_ema",
        f"prefix {prefix} removed from the names",
    )
    del content["state_dict"]
    assert same(load(content, tmp_path / "w.ckpt").model, averaged)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    for zipped in (True, False):
        path = tmp_path / "w.pt"
        torch.save(tiny(), path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for content in (
            b"",
            b"version https://git-lfs",
            whole[:100],
            whole[: len(whole) // 2],
            whole[:-1],
            b"\x80\x02",
        ):
            path.write_bytes(content)
            if zipped or content != whole[:-1]:
                with pytest.raises(CheckpointError, match=r"w\.pt: cannot be read.*empty, damaged") as refusal:
                    read_state(path)
                assert "\n" not in str(refusal.value)
                assert "weights_only" not in str(refusal.value)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tiny(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"cannot be read as safetensors"):
        read_state(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_state(tmp_path / "none.bin")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([torch.zeros(2)], "but a list"),
        (torch.zeros(2), "but a Tensor"),
        ({}, "but a dict with no names"),
        ({1: torch.zeros(2)}, "but a dict with no names"),
        ({"model": {}, "epoch": 3}, "'epoch': int"),
        ({"a.weight": torch.zeros(2), "epoch": 3}, "'epoch': int"),
        ({"generator": {"a.weight": torch.zeros(2)}}, "'generator': dict"),
        ({"a": torch.zeros(2, device="meta")}, "'a': Tensor"),
    ],
)
def test_files_without_a_state_dict_say_what_they_hold(tmp_path, content, what):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"is not a state dict") as refusal:
        read_state(tmp_path / "w.pt")
    assert what in str(refusal.value)


def test_nests_that_hold_themselves_end(tmp_path):
    content = {}
    for key in ("model", "net", "ema", "weights", "state_dict"):
        content[key] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        read_state(tmp_path / "w.pt")


def test_a_class_count_must_be_held_by_the_file():
    target = tiny()
    last = next(reversed(target))
    assert count_classes(tiny(9), target) == 9
    assert count_classes({**target, last: torch.zeros(1).expand(10**9)}, target) is None
    assert count_classes({**target, last: torch.zeros(0)}, target) is None
    assert count_classes({**target, last: torch.tensor(1.0)}, target) is None
    assert count_classes(target, target) is None
    assert count_classes({"a.weight": torch.zeros(5)}, target) is None


# ---------------------------------------------------------------- real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("arch", "file"),
    [("squeezenet1_0", "squeezenet1_0-deepcompression.pth"), ("mobilenet_v2", "mobilenet_v2-coral-ptq-mirrored.pth")],
)
def test_real_weights_load_plain_and_wrapped(tmp_path, arch, file):
    if not WEIGHTS.is_dir():
        pytest.skip(f"{WEIGHTS} is missing")
    state = torch.load(WEIGHTS / file, weights_only=True)
    found = resolve(f"torchvision/{arch}@{WEIGHTS / file}")
    assert same(found.model, state)
    assert found.notes == ()
    wrapped = {"epoch": 3, "state_dict": prefixed("model.module.", state)}
    assert same(load(wrapped, tmp_path / "w.ckpt", f"torchvision/{arch}").model, state)
