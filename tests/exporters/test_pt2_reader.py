"""A pt2 file is data: what would run code in ``torch.export.load`` is refused by camify, by name."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from camify.errors import CheckpointError
from camify.exporters import open_exported


@pytest.fixture
def rewritten(files, tmp_path):
    """Writes the file anew with one JSON entry changed, or one entry more."""

    def rewrite(name, change, *extra):
        path = tmp_path / "changed.pt2"
        with zipfile.ZipFile(files[".pt2"].path) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                content = old.read(entry)
                if entry.partition("/")[2] == name:
                    data = json.loads(content)
                    content = json.dumps(change(data) or data)
                new.writestr(entry, content)
            root = old.namelist()[0].partition("/")[0]
            for entry, content in extra:
                new.writestr(entry.replace("ROOT", root), content)
        return path

    return rewrite


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


def first_node(data):
    return data["graph_module"]["graph"]["nodes"][0]


def argument(value):
    def change(data):
        first_node(data)["inputs"][0]["arg"] = value

    return change


def test_unchanged_it_runs(rewritten, net):
    image = torch.randn(2, 3, 32, 32)
    found = open_exported(rewritten(MODEL, lambda data: None))(image)
    torch.testing.assert_close(found["logits"], net(image).detach())


@pytest.mark.parametrize(
    "target",
    ["torch.hub.load", "torch.load", "os.system", "_operator.attrgetter", "torch.ops.aten.from_file.default",
     "torch.ops.aten.save.default", "torch.ops.higher_order.while_loop", "torch.ops.aten.conv2d.default.__class__",
     "torch.ops.aten.__class__.default", "math.pow", "#custom:op", "torch.classes.load_library", ""],
)  # fmt: skip
def test_steps_that_are_no_tensor_operations_are_refused(rewritten, target):
    path = rewritten(MODEL, lambda data: first_node(data).update(target=target))
    with pytest.raises(CheckpointError, match="no tensor operation that camify runs"):
        open_exported(path)


@pytest.mark.parametrize(
    "value",
    [{"as_string": "/etc/passwd"}, {"as_graph": {"name": "g"}}, {"as_operator": "os.system"}, {"as_custom_obj": {}},
     {"as_device": {"type": "cuda", "index": 0}}, {"as_ints": ["1"]}, {"as_int": {"a": 1}}, {"as_complex": [0, 1]}],
)  # fmt: skip
def test_arguments_that_are_no_numbers_are_refused(rewritten, value):
    with pytest.raises(CheckpointError, match=r"changed\.pt2"):
        open_exported(rewritten(MODEL, argument(value)))


@pytest.mark.parametrize("kind", ["custom_obj", "buffer_mutation", "token"])
def test_inputs_that_are_no_tensors_are_refused(rewritten, kind):
    def change(data):
        data["graph_module"]["signature"]["input_specs"][0] = {kind: {"arg": {"name": "x"}}}

    with pytest.raises(CheckpointError, match=kind):
        open_exported(rewritten(MODEL, change))


def test_pickled_tensors_and_odd_file_names_are_refused(rewritten):
    def pickled(data):
        next(iter(data["config"].values()))["use_pickle"] = True

    def odd(data):
        next(iter(data["config"].values()))["path_name"] = "../../models/model.json"

    for change in (pickled, odd):
        with pytest.raises(CheckpointError, match="pickle or under an odd name"):
            open_exported(rewritten(WEIGHTS, change))


def test_tensors_beyond_their_bytes_are_refused(rewritten):
    def larger(data):
        next(iter(data["config"].values()))["tensor_meta"]["sizes"][0] = {"as_int": 10**9}

    with pytest.raises(CheckpointError, match=r"changed\.pt2"):
        open_exported(rewritten(WEIGHTS, larger))


def test_guards_are_never_evaluated(rewritten, tmp_path, monkeypatch, net):
    """``torch.export.load`` runs the strings in ``guards_code`` and parses symbols with sympy's eval."""
    monkeypatch.chdir(tmp_path)
    trap = "__import__('pathlib').Path('trap').touch()"

    def change(data):
        data["guards_code"] = [trap]
        for meta in data["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                size.clear()
                size["as_expr"] = {"expr_str": trap, "hint": None}

    image = torch.randn(1, 3, 32, 32)
    found = open_exported(rewritten(MODEL, change))(image)
    torch.testing.assert_close(found["logits"], net(image).detach())
    assert not (tmp_path / "trap").exists()


def test_archives_that_are_odd_are_refused(rewritten):
    for extra in ([("elsewhere/x", b"1")], [("../x", b"1")]):
        with pytest.raises(CheckpointError, match="one folder, each once"):
            open_exported(rewritten(MODEL, lambda data: None, *extra))
    huge = b"0" * 10
    path = rewritten(MODEL, lambda data: None, ("ROOT/data/constants/evil.pt", huge))
    assert open_exported(path).record["num_classes"] == 4  # what nothing names is never read
