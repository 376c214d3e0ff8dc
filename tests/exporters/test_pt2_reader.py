"""A pt2 file is data: what would run code in ``torch.export.load`` is refused by camify, by name."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from camify.errors import CheckpointError
from camify.exporters import open_exported

pytestmark = pytest.mark.slow


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


# ---------------------------------------------------------------- only known operations, only plain values


def test_attributes_of_operations_that_are_no_overloads_are_refused():
    """Fault: torch forwards ``__getattr__("__globals__")``, ``__setattr__`` and ``__call__`` of its packets."""
    from camify.exporters import pt2_operations

    attributes = 0
    for name in pt2_operations._ATEN_NAMES.split():
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            continue
        forwarded = {*dir(packet), *dir(packet._op), "_op", "__globals__", "__builtins__", "op", "overloads"}
        for attribute in forwarded - set(packet.overloads()):
            attributes += 1
            with pytest.raises(CheckpointError, match="no tensor operation"):
                pt2_operations._function(f"torch.ops.aten.{name}.{attribute}")
    assert attributes > 5000


def step(target, name, *arguments, kind="as_tensor"):
    output = {"as_tensor": {"name": name}} if kind == "as_tensor" else {kind: {"as_name": name}}
    inputs = [{"name": "", "arg": argument, "kind": 1} for argument in arguments]
    return {
        "target": target,
        "inputs": inputs,
        "outputs": [output],
        "metadata": {},
        "is_hop_single_tensor_return": None,
    }


def with_steps(*steps):
    def change(data):
        nodes = data["graph_module"]["graph"]["nodes"]
        nodes[:0] = steps

    return change


def tensor(name):
    return {"as_tensor": {"name": name}}


def test_the_exploit_of_forwarded_attributes_runs_no_code(rewritten, tmp_path):
    """What ran code in ``camify check``: ``eval`` out of the globals of a method of torch, set in place of an op."""
    trace = tmp_path / "trace"
    text = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    exploit = [
        step("torch.ops.aten.celu.__getattribute__", "method", {"as_string": "__init__"}),
        step("torch.ops.aten.celu.__setattr__", "", {"as_string": "_op"}, tensor("method")),
        step("torch.ops.aten.celu.__getattr__", "globals", {"as_string": "__globals__"}),
        step("_operator.getitem", "builtins", tensor("globals"), {"as_string": "__builtins__"}),
        step("_operator.getitem", "eval", tensor("builtins"), {"as_string": "eval"}),
        step("torch.ops.aten.celu.__setattr__", "", {"as_string": "_op"}, tensor("eval")),
        step("torch.ops.aten.celu.__call__", "gone", {"as_string": text}),
    ]
    before = torch.ops.aten.celu._op
    for count in range(1, len(exploit) + 1):
        with pytest.raises(CheckpointError, match=r"changed\.pt2"):
            open_exported(rewritten(MODEL, with_steps(*exploit[:count])))
    assert torch.ops.aten.celu._op is before
    assert not trace.exists()


ZEROS, FACTOR = "torch.ops.aten.full.default", {"as_int": 2**40}
SIZES = {"as_ints": [100_000, 100_000]}
HOSTILE_STEPS = {
    "a graph that makes 40 GB": [step(ZEROS, "x1", SIZES, {"as_int": 1})],
    "a graph that expands and copies": [
        step(ZEROS, "x1", {"as_ints": [1, 1]}, {"as_int": 1}),
        step("torch.ops.aten.expand.default", "x2", tensor("x1"), SIZES),
        step("torch.ops.aten.clone.default", "x3", tensor("x2")),
    ],
    "numbers that double their digits": [
        step("_operator.mul", "n0", FACTOR, FACTOR, kind="as_sym_int"),
        step("_operator.mul", "n1", *2 * [{"as_sym_int": {"as_name": "n0"}}], kind="as_sym_int"),
    ],
    "a list that is repeated": [
        step("_operator.mul", "x1", {"as_ints": [1, 2, 3]}, {"as_int": 10**9}, kind="as_sym_int")
    ],
    "text that is formatted": [step("_operator.mod", "x1", {"as_string": "sum"}, {"as_int": 1}, kind="as_sym_int")],
}


@pytest.mark.parametrize("kind", HOSTILE_STEPS)
def test_what_would_fill_the_memory_is_refused_before_it_runs(rewritten, kind):
    with pytest.raises(CheckpointError, match=r"changed\.pt2: .*(GiB|something else|numbers)"):
        open_exported(rewritten(MODEL, with_steps(*HOSTILE_STEPS[kind])))(torch.randn(1, 3, 32, 32))


def test_values_are_tensors_and_numbers():
    from camify.exporters.pt2_operations import _is_plain

    for value in (torch.zeros(2), 3, 0.5, True, None, [torch.zeros(1), 2], (1, 2)):
        assert _is_plain(value)
    for value in (print, "text", torch, torch.float32, torch.Size, [print], {"a": 1}, [[1]], 2**70, torch.nn.ReLU()):
        assert not _is_plain(value)


def test_pictures_that_are_resized_inside_are_allowed_what_they_become(files, net, monkeypatch):
    from camify.checkpoint import bounds

    monkeypatch.setattr(bounds, "_BYTES", 0)
    monkeypatch.setattr(bounds, "_GROWTH", 16)
    pictures = torch.randint(0, 256, (8, 2, 2, 3), dtype=torch.uint8)
    assert open_exported(files[".pt2", "pictures"].path)(pictures)["logits"].shape == (8, net.num_classes)
    opened = open_exported(files[".pt2", "pictures"].path)
    opened.steps._image_bytes = 0
    with pytest.raises(CheckpointError, match="GiB"):
        opened(pictures)
