"""Names of classes beside the weights of other people's files."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import camify
from camify.errors import CheckpointError
from camify.sources import resolve
from camify.sources.demo_network import TinyVGG

NAMES = ["cat", "ant", "bee"]  # not in the order of the alphabet, as the indices are
INDEX = {"ant": 1, "bee": 2, "cat": 0}
FIELDS = [
    ("class_to_idx", INDEX), ("idx_to_class", {2: "bee", 0: "cat", 1: "ant"}),
    ("idx_to_class", {"2": "bee", "0": "cat", "1": "ant"}), ("classes", NAMES), ("class_names", tuple(NAMES)),
]  # fmt: skip


def save(path, fields, classes=3, wrap=lambda content: content):
    state = TinyVGG(classes).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path, metadata={key: json.dumps(value) for key, value in fields.items()})
    else:
        torch.save(wrap({"state_dict": state, **fields}), path)
    return f"camify/tiny_vgg@{path}"


@pytest.mark.parametrize(("field", "value"), FIELDS)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_names_are_read_in_the_order_of_the_logits(tmp_path, field, value, suffix):
    source = resolve(save(tmp_path / f"w{suffix}", {field: value}))
    assert source.class_names == NAMES
    assert source.notes == (f"class names read from {field} of the file",)
    assert camify.convert(source, head="direct", input_size=96).class_names == NAMES


def test_names_are_found_on_every_level_beside_the_weights(tmp_path):
    outer = resolve(save(tmp_path / "o.pth", {}, wrap=lambda content: {"model": content, "class_to_idx": INDEX}))
    inner = resolve(save(tmp_path / "i.pth", {"class_to_idx": INDEX}, wrap=lambda content: {"model": content}))
    assert outer.class_names == inner.class_names == NAMES
    both = resolve(save(tmp_path / "b.pth", {"class_to_idx": INDEX, "classes": NAMES}))
    assert both.class_names == NAMES


@pytest.mark.parametrize(
    "fields",
    [{"class_to_idx": value} for value in ({"a": 0, "b": 2, "c": 1.0}, {"a": 0, "b": 0, "c": 1},
     {"a": 1, "b": 2, "c": 3}, {"a": 0, "b": True, "c": 2}, {"a": 0, "b": None, "c": 2}, {}, ["a"], 3)]
    + [{"idx_to_class": value} for value in ({0: "a", 1: "b", 3: "c"}, {0: "a", "0": "b"}, {0: 1}, {"x": "a"})]
    + [{"class_names": value} for value in (["a", 1, "c"], 3, "abc", {})]
    + [{"class_to_idx": INDEX, "classes": sorted(NAMES)}],
)  # fmt: skip
def test_a_field_that_contradicts_itself_or_another_is_refused_by_name(tmp_path, fields):
    with pytest.raises(CheckpointError, match=rf"w\.pth: .*{next(iter(fields))}"):
        resolve(save(tmp_path / "w.pth", fields))


def test_what_does_not_fit_is_left_out_with_a_note(tmp_path):
    source = resolve(save(tmp_path / "w.pth", {"classes": NAMES}, classes=4))
    assert source.class_names is None
    assert "the file's 3 class names are left out: the network has 4 logits" in source.notes
    source = resolve(save(tmp_path / "w.pth", {"classes": 3}))
    assert source.class_names is None
    assert source.notes == ("field classes of the file is no list of names: left out",)
    assert resolve(save(tmp_path / "w.pth", {"classes": ["no", "yes"]}, classes=1)).class_names == ["no", "yes"]


def test_names_among_the_weights_and_in_the_hyperparameters_of_lightning(tmp_path):
    state, path = TinyVGG(3).state_dict(), tmp_path / "w.ckpt"
    for content in (
        {**state, "class_to_idx": INDEX},
        {"state_dict": {**state, "classes": NAMES}},
        {"state_dict": state, "hyper_parameters": {"lr": 0.1, "class_names": NAMES}},
    ):
        torch.save(content, path)
        source = resolve(f"camify/tiny_vgg@{path}")
        assert source.class_names == NAMES
        assert all(torch.equal(state[key], value) for key, value in source.model.state_dict().items())
    torch.save({**state, "class_to_idx": {"ant": 7}}, path)
    with pytest.raises(CheckpointError, match="class_to_idx does not give every index"):
        resolve(f"camify/tiny_vgg@{path}")
