"""Checkpoint folders and exported files that would hang or fill a machine are refused by name, before anything runs."""

from __future__ import annotations

import json
import random
import time

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import camify
from camify.checkpoint.folder import MANIFEST, manifest_digest
from camify.cli.commands import main
from camify.errors import CheckpointError
from camify.exporters import open_exported
from camify.exporters.metadata import RECORD
from tests.exporters.conftest import Legacy


@pytest.fixture(scope="module")
def net():
    """With functions and sizes between its layers, so that its graph has steps of its own."""
    torch.manual_seed(0)
    net = camify.convert(Legacy().eval(), input_size=32, seed=0, head_channels=4)
    net.class_names = ["ant", "bee", "cat", "dog"]
    return net.eval()


@pytest.fixture
def changed_folder(net, tmp_path):
    """Writes the network's folder with a changed manifest, whose digest fits."""

    def write(change):
        folder = net.save_pretrained(tmp_path / "model")
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        manifest["digest"] = manifest_digest(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return folder

    return write


def node(name, target, *arguments, op="call_function"):
    return {"name": name, "op": op, "target": target, "args": {"tuple": list(arguments)}}


IMAGE = {"node": "x"}
HUGE = {"tuple": [100_000, 100_000]}
STEPS = {
    "a power of constants": [node("a", "operator.pow", 9, 10**9)],
    "a power of a size": [
        node("s", "size", IMAGE, 2, op="call_method"), node("a", "operator.pow", {"node": "s"}, 10**9)
    ],
    "a power of sizes": [
        node("s", "size", IMAGE, 2, op="call_method"), node("a", "operator.pow", {"node": "s"}, {"node": "s"}),
        node("b", "operator.pow", {"node": "a"}, {"node": "a"}),
    ],
    "numbers that double their digits": [
        node("s0", "size", IMAGE, 2, op="call_method"),
        *(node(f"s{index + 1}", "operator.mul", {"node": f"s{index}"}, {"node": f"s{index}"}) for index in range(60)),
    ],
    "text that is repeated": [node("a", "operator.mul", "a", 2**30)],
    "text that is formatted": [node("a", "operator.mod", "%2000000000d", 1)],
    "a list that is repeated": [node("a", "operator.mul", [IMAGE], 2**30)],
    "a shape that is repeated": [
        node("s", "getattr", IMAGE, "shape"), node("a", "operator.mul", {"node": "s"}, 2**30)
    ],
    "a number beyond all": [node("a", "operator.add", IMAGE, 2**70)],
    "a large interpolation": [node("a", "torch.nn.functional.interpolate", IMAGE, HUGE)],
    "an interpolation to 6000 x 6000": [
        node("a", "torch.nn.functional.interpolate", IMAGE, {"tuple": [6000, 6000]})
    ],
    "a factor of interpolation": [node("a", "torch.nn.functional.interpolate", IMAGE, None, 100_000.0)],
    "a large frame": [node("a", "torch.nn.functional.pad", IMAGE, {"tuple": [2**20, 2**20, 2**20, 2**20]})],
    "a large repetition": [node("a", "repeat", IMAGE, 1, 1, 2**15, 2**15, op="call_method")],
    "a large expansion that is copied": [
        node("b", "torch.unsqueeze", IMAGE, 0),
        node("a", "expand", {"node": "b"}, 2**20, -1, -1, -1, -1, op="call_method"),
        node("c", "contiguous", {"node": "a"}, op="call_method"),
    ],
    "a large pool": [node("a", "torch.nn.functional.adaptive_avg_pool2d", IMAGE, HUGE)],
    "a normalization over all channels there could be": [
        node("a", "torch.nn.functional.local_response_norm", IMAGE, 2**30)
    ],
    "many large values at once": [
        *(node(f"v{index}", "repeat", IMAGE, 1, 1, 64, 128, op="call_method") for index in range(40)),
        node("a", "torch.cat", [{"node": f"v{index}"} for index in range(40)]),
    ],
    "long text": [node("a", "torch.nn.functional.pad", IMAGE, {"tuple": [1, 1]}, "x" * 10**6)],
}  # fmt: skip


@pytest.mark.parametrize("kind", STEPS)
def test_steps_that_need_a_machine_are_refused(changed_folder, kind):
    def change(manifest):
        nodes = manifest["architecture"]["features"]["nodes"]
        assert nodes[0]["op"] == "placeholder"
        image = nodes[0]["name"]
        text = json.dumps(STEPS[kind]).replace('"node": "x"', f'"node": "{image}"')
        nodes[1:1] = json.loads(text)

    folder, start = changed_folder(change), time.monotonic()
    with pytest.raises(CheckpointError, match=r"camify\.json"):
        camify.load(folder)
    assert time.monotonic() - start < 5


def set_at(*path, value):
    def change(manifest):
        place = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def many_steps(manifest):
    nodes = manifest["architecture"]["features"]["nodes"]
    nodes[1:1] = [node(f"many{index}", "torch.relu", {"node": nodes[0]["name"]}) for index in range(20_001)]


def classes_of(count):
    def change(manifest):
        manifest["class_names"] = None
        manifest["architecture"]["num_classes"] = manifest["certificate"]["num_classes"] = count

    return change


FIELDS = {
    "large images": set_at("certificate", "input_shape", value=[3, 20_000, 20_000]),
    "many channels": set_at("certificate", "input_shape", value=[100_000, 32, 32]),
    "no images": set_at("certificate", "input_shape", value=[3, 0, 32]),
    "a large size": set_at("preprocessing", value={"size": 10**9, "mean": [0.5] * 3, "std": [0.5] * 3}),
    "a size of many digits": set_at("preprocessing", value={"size": 10**400, "mean": [0.5] * 3, "std": [0.5] * 3}),
    "a million channels": set_at("preprocessing", value={"size": 32, "mean": [0.5] * 10**5, "std": [0.5] * 10**5}),
    "a billion classes": classes_of(10**9),
    "classes below zero": classes_of(-4),
    "true as a number of classes": classes_of(True),
    "classes in text": classes_of("4"),
    "a billion features": set_at("architecture", "num_features", value=10**9),
    "many steps": many_steps,
}


@pytest.mark.parametrize("kind", FIELDS)
def test_absurd_numbers_of_a_manifest_are_one_sentence(changed_folder, kind, capsys):
    folder, start = changed_folder(FIELDS[kind]), time.monotonic()
    with pytest.raises(CheckpointError):
        camify.load(folder)
    assert time.monotonic() - start < 8
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder)])
    assert left.value.code == 1
    assert "FAIL" in capsys.readouterr().out


# ---------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def onnx_file(net, tmp_path_factory):
    return camify.export(net, tmp_path_factory.mktemp("onnx") / "model.onnx").path


def rewritten(onnx_file, tmp_path, change):
    model = onnx.load(onnx_file)
    change(model)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def without_hash(model):
    """As files were before they had one."""
    change_record(model, sha256=None)
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != "sealed"]
    del model.metadata_props[:]
    helper.set_model_props(model, dict(kept))


def change_record(model, **fields):
    for entry in model.metadata_props:
        if entry.key == RECORD:
            entry.value = json.dumps({**json.loads(entry.value), **fields})


value = helper.make_tensor_value_info


def endless_loop(model):
    """A loop of 2**62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Identity", ["v"], ["w"])], "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("goes", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]))
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("Loop", ["rounds", "true", "image"], ["again"], body=body))


def branches(model):
    one = helper.make_graph([helper.make_node("Identity", ["image"], ["o"])], "g", [], [value("o", 1, None)])
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("If", ["true"], ["b"], then_branch=one, else_branch=one))


def scan(model):
    body = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["t"])], "body", [value("s", 1, None)],
        [value("t", 1, None)],
    )  # fmt: skip
    model.graph.node.insert(0, helper.make_node("Scan", ["image"], ["c"], body=body, num_scan_inputs=1))


def function(model):
    step = helper.make_node("Identity", ["a"], ["b"])
    made = helper.make_function("mine", "Double", ["a"], ["b"], [step], [helper.make_opsetid("", 20)])
    model.functions.append(made)
    model.graph.node.insert(0, helper.make_node("Double", ["image"], ["f"], domain="mine"))


def library(model):
    model.graph.node.insert(0, helper.make_node("PyOp", ["image"], ["f"], domain="ai.onnx.contrib"))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def external_constant(model):
    tensor = TensorProto(dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../weights"
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=tensor))


@pytest.mark.parametrize(
    ("change", "words"),
    [(endless_loop, "Loop"), (branches, "If"), (scan, "Scan"), (function, "Double"), (library, "PyOp"),
     (external, "another file"), (external_constant, "another file")],
)  # fmt: skip
def test_what_camify_never_writes_is_refused_before_a_session_is_made(onnx_file, tmp_path, change, words, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was made"))

    def both(model):
        without_hash(model)
        change(model)

    with pytest.raises(CheckpointError, match=rf"changed\.onnx: holds .*{words}"):
        open_exported(rewritten(onnx_file, tmp_path, both))


def wide(model):
    model.graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [4], [1, 3, 100_000, 100_000]))
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0]))
    model.graph.node.insert(0, helper.make_node("Expand", ["one", "huge"], ["wide"]))


def made_of_nothing(model):
    model.graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [2], [100_000, 100_000]))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["made"]))


def tiles(model):
    model.graph.initializer.append(helper.make_tensor("often", TensorProto.INT64, [4], [1, 1, 2**14, 2**14]))
    model.graph.node.insert(0, helper.make_node("Tile", ["image", "often"], ["tiled"]))


def frame(model):
    model.graph.initializer.append(helper.make_tensor("pads", TensorProto.INT64, [8], [0, 0, 2**17, 2**17] * 2))
    model.graph.node.insert(0, helper.make_node("Pad", ["image", "pads"], ["padded"]))


def resizes(model):
    model.graph.initializer.append(helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 3, 100_000, 100_000]))
    model.graph.node.insert(0, helper.make_node("Resize", ["image", "", "", "sizes"], ["resized"]))


def grows_with_the_image(model):
    """The size is computed from the image's own."""
    model.graph.initializer.append(helper.make_tensor("factor", TensorProto.INT64, [4], [1, 1, 5000, 5000]))
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Mul", ["shape", "factor"], ["larger"]),
        helper.make_node("ConstantOfShape", ["larger"], ["grown"]),
    ]
    for step in reversed(nodes):
        model.graph.node.insert(0, step)


@pytest.mark.parametrize("change", [wide, made_of_nothing, tiles, frame, resizes, grows_with_the_image])
def test_steps_of_onnx_that_need_a_machine_are_refused_before_a_session_is_made(
    onnx_file, tmp_path, change, monkeypatch
):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was made"))

    def both(model):
        without_hash(model)
        change(model)

    with pytest.raises(CheckpointError, match=r"changed\.onnx: the value .* GiB"):
        open_exported(rewritten(onnx_file, tmp_path, both))


RECORDS = {
    "num_classes": [10**9, 0, -1, True, 2.5],
    "input": [
        {"name": "image", "size": [10**6, 10**6], "channels": 3, "kind": "float32"}, {"size": [32], "channels": 3},
        {"name": "image", "size": [32, 32], "channels": 10**9, "kind": "float32"}, {}, {"size": "a", "channels": "b"},
        {"name": "image", "size": [-1, 32], "channels": 3, "kind": "float32"}, {"size": None, "kind": []},
        {"name": "image", "size": [32, 32], "channels": 3, "kind": "uint8 NHWC, RGB as read"},
    ],
    "outputs": [["logits"], ["maps", "logits"], [1, 2], [["logits"], ["maps"]], ["x"] * 10**5],
    "dynamic": [["depth"], [1], [{}], [["batch"]]],
    "untrained": [[1]],
    "preprocessing": [{"size": 10**9, "mean": [0.5] * 3, "std": [0.2] * 3}, {}, {"size": None}, {"mean": "abc"}],
    "box_rule": [{"threshold": 10**9}, {"normalizer": "eval"}, {"normalizer": {}}, {"percentile": "x"}],
    "sha256": ["", "0" * 64, "x", 7],
}  # fmt: skip


@pytest.mark.parametrize("field", RECORDS)
def test_absurd_records_are_one_sentence(onnx_file, tmp_path, field):
    for value in RECORDS[field]:
        path = rewritten(onnx_file, tmp_path, lambda model, v=value: change_record(model, **{field: v}))
        with pytest.raises(CheckpointError, match=r"changed\.onnx"):
            open_exported(path)
        with pytest.raises(CheckpointError, match=r"changed\.onnx"):
            camify.load(path)


def test_every_flipped_bit_of_a_fresh_file_is_noticed(onnx_file, tmp_path):
    content, chance, path = onnx_file.read_bytes(), random.Random(3), tmp_path / "flipped.onnx"
    for _ in range(40):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"flipped\.onnx"):
            open_exported(path)


def test_files_without_a_hash_are_read_and_check_says_so(net, onnx_file, tmp_path, capsys):
    digest = open_exported(onnx_file).record["sha256"]
    main(["check", str(onnx_file)])
    assert f"SHA-256 as written, {digest[:16]}" in "".join(capsys.readouterr().out.split("\n"))
    older = rewritten(onnx_file, tmp_path, without_hash)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(open_exported(older)(images)["logits"], net(images), rtol=1e-4, atol=1e-5)
    main(["check", str(older)])
    assert "ok   hash: none: written by an older camify" in capsys.readouterr().out


def test_a_hash_cannot_be_lost_by_one_damage(onnx_file, tmp_path):
    path = rewritten(onnx_file, tmp_path, lambda model: change_record(model, sha256=None))
    with pytest.raises(CheckpointError, match="sha256"):
        open_exported(path)


def test_the_hash_is_of_the_whole_file(onnx_file):
    """By hand: the SHA-256 of the bytes in which 64 zeros stand for it."""
    import hashlib

    content, digest = onnx_file.read_bytes(), open_exported(onnx_file).record["sha256"]
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_sizes_beyond_all_images_are_refused_where_they_are_given(net):
    for size in (10**9, (32, 10**6), 8193):
        with pytest.raises(camify.ConfigError, match="8192"):
            camify.Preprocessing(size)
    assert camify.Preprocessing(8192).size == 8192
    assert isinstance(net, nn.Module)
