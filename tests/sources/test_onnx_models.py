"""ONNX files of anybody: what is chosen, folded, proven, refused, and how they become CAM-ready networks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import camify  # noqa: E402
from camify.errors import CamifyError, CheckpointError, ConversionError  # noqa: E402
from camify.sources import resolve  # noqa: E402
from camify.task import Task  # noqa: E402
from tests.onnx_files import require_equal, runtime, weights, write  # noqa: E402

SIDE = 32


class Legacy(nn.Module):
    """A small classifier with everything that exporters write in their own way: padding, norms, gates, flatten."""

    def __init__(self, flatten: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.Hardswish(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.pool = nn.Identity() if flatten else nn.AdaptiveAvgPool2d(1)
        features = 12 * 64 if flatten else 12
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(features, 10), nn.ReLU(), nn.Linear(10, 5))

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def legacy(flatten=True):
    torch.manual_seed(0)
    network = Legacy(flatten).eval()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return network


def export(network, path, *, dynamo, dynamic, opset=None, size=SIDE, channels=3):
    """A file as torch's exporters write it, quietly."""
    image = torch.randn(1, channels, size, size)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            torch.onnx.export(network, (image,), path, dynamo=True, dynamic_shapes=shapes, opset_version=opset)
        else:
            axes = {"image": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None
            names = {"input_names": ["image"], "output_names": ["logits"]}
            torch.onnx.export(network, image, path, dynamo=False, dynamic_axes=axes, opset_version=opset, **names)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    network = legacy()
    return {
        "old exporter": export(network, folder / "old.onnx", dynamo=False, dynamic=True, opset=13),
        "old exporter, batch of 1": export(network, folder / "fixed.onnx", dynamo=False, dynamic=False, opset=9),
        "new exporter, batch of 1": export(network, folder / "new.onnx", dynamo=True, dynamic=False),
    }


@pytest.mark.parametrize("kind", ["old exporter", "old exporter, batch of 1", "new exporter, batch of 1"])
def test_an_export_of_torch_becomes_the_network_again(exported, kind, tmp_path):
    path, images = exported[kind], torch.randn(3, 3, SIDE, SIDE)
    source = resolve(str(path))
    expected = legacy()(images).detach()
    with torch.no_grad():
        assert torch.allclose(source.model(images), expected, rtol=1e-4, atol=1e-5)
    assert any("logits equal onnxruntime's" in note for note in source.notes)
    for head in ("gap", "direct", "recast"):
        net = camify.convert(source, head=head, **({"head_channels": 4} if head == "gap" else {}))
        net.save_pretrained(tmp_path / head)
        loaded = camify.load(tmp_path / head)
        with torch.no_grad():
            logits, maps = loaded.forward_with_maps(images)
        assert logits.shape == (3, 5)
        assert torch.allclose(maps.mean((2, 3)) + loaded.classifier.bias, logits, atol=1e-5)
        if head == "recast":
            assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_layers_have_the_names_of_their_weights(exported):
    assert "features.0" in dict(resolve(str(exported["old exporter, batch of 1"])).model.named_modules())


def test_height_and_width_that_a_file_leaves_open_stay_open(tmp_path):
    network = legacy(flatten=False)
    path = tmp_path / "open.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, torch.randn(1, 3, 32, 32), path, dynamo=False, opset_version=13, input_names=["image"],
            dynamic_axes={"image": {0: "n", 2: "h", 3: "w"}},
        )  # fmt: skip
    source = resolve(str(path))
    images = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        assert torch.allclose(source.model(images), network(images), rtol=1e-4, atol=1e-5)
    assert "256 x 224" in source.notes[-1]  # two sizes


# ---------------------------------------------------------------- what is chosen


def simple(path, body="v = Conv(x, w)", *, constants=None, **options):
    return write(path, body, constants or {"w": weights(5, 3, 3, 3)}, shape=("N", 3, 12, 12), **options)


def edited(path, change):
    """The file with its model changed."""
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def add_softmax(model, op="Softmax", output="probabilities", **attributes):
    model.graph.node.append(helper.make_node(op, ["logits"], [output], **attributes))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 3]))


@pytest.mark.parametrize(
    ("op", "task"),
    [("Softmax", Task.MULTICLASS), ("LogSoftmax", Task.MULTICLASS), ("Sigmoid", Task.MULTILABEL)],
)
def test_the_last_activation_says_what_the_logits_mean(op, task, tmp_path):
    path = edited(simple(tmp_path / "net.onnx"), lambda model: add_softmax(model, op))
    source = require_equal(path, (2, 3, 12, 12))
    net = camify.convert(source, head="recast")
    assert net.task is task
    images = torch.randn(2, 3, 12, 12)
    probabilities = torch.from_numpy(runtime(path, images.numpy()))
    with torch.no_grad():
        logits = net(images)
    found = {"Softmax": logits.softmax(1), "LogSoftmax": logits.log_softmax(1), "Sigmoid": logits.sigmoid()}[op]
    assert torch.allclose(found, probabilities, atol=1e-4)


def test_a_softmax_before_the_flatten_is_taken_off_too(tmp_path):
    body = "c = Conv(x, w) p = GlobalAveragePool(c) s = Softmax<axis=1>(p) v = Flatten(s)"
    path = simple(tmp_path / "net.onnx", body, head=False)
    assert camify.inspect(str(path)).task == "multiclass"
    require_equal(path, (2, 3, 12, 12))


def add_outputs(model):
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["N", 1]))


def test_of_several_outputs_the_classes_are_taken(tmp_path):
    path = edited(simple(tmp_path / "net.onnx"), add_outputs)
    source = resolve(str(path))
    assert any("of its outputs probabilities is taken, logits, label left out" in note for note in source.notes)
    with torch.no_grad():
        given = source.model(torch.ones(1, 3, 12, 12))
    assert np.allclose(given, runtime(path, np.ones((1, 3, 12, 12), np.float32), "probabilities"), atol=1e-5)


def test_an_output_can_be_named_where_it_is_not_plain_which_one_is_meant(tmp_path):
    def change(model):
        model.graph.node.append(helper.make_node("Gemm", ["features", "head", "head_bias"], ["other"], transB=1))
        model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3]))

    path = edited(simple(tmp_path / "net.onnx"), change)
    with pytest.raises(ConversionError, match=r"several outputs could be the classes: logits, other. Name the one"):
        resolve(str(path))
    assert resolve(f"{path}@other").name.endswith("@other")
    with pytest.raises(ConversionError, match="has no value 'third'"):
        resolve(f"{path}@third")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("class_names", '["cat", "dog", "a \\"b\\""]'),
        ("names", "{0: 'cat', 1: 'dog', 2: 'a \"b\"'}"),
        ("id2label", '{"0": "cat", "1": "dog", "2": "a \\"b\\""}'),
    ],
)
def test_class_names_are_read_from_the_metadata(key, text, tmp_path):
    path = edited(simple(tmp_path / "net.onnx"), lambda model: helper.set_model_props(model, {key: text}))
    assert resolve(str(path)).class_names == ["cat", "dog", 'a "b"']


@pytest.mark.parametrize("text", ['["cat"]', "{0: 'cat', 5: 'dog', 2: 'x'}", "[" * 10_000, '{"a": 1}', "3"])
def test_names_that_are_none_are_left_out_and_said(text, tmp_path):
    path = edited(simple(tmp_path / "net.onnx"), lambda model: helper.set_model_props(model, {"names": text}))
    source = resolve(str(path))
    assert source.class_names is None
    assert any("left out" in note for note in source.notes)


# ---------------------------------------------------------------- its own normalization


PREFIXES = {  # body, constants, range of its images, mean, std
    "divided by 255": ("a = Div(x, c) v = Conv(a, w)", {"c": np.float32(255)}, 255, (0, 0, 0), (1, 1, 1)),
    "of ImageNet": (
        "a = Sub(x, m) b = Div(a, s) v = Conv<pads=[1,1,1,1]>(b, w)",
        {
            "m": np.float32([0.485, 0.456, 0.406]).reshape(3, 1, 1),
            "s": np.float32([0.229, 0.224, 0.225]).reshape(3, 1, 1),
        },
        1,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    "of Caffe, in BGR": (
        "r = Slice(x, first, last, axis, back) a = Sub(r, m) v = Conv<pads=[1,1,1,1]>(a, w)",
        {"m": np.float32([104, 117, 123]).reshape(1, 3, 1, 1), "first": [-1], "last": [-9], "axis": [1], "back": [-1]},
        255,
        (104 / 255, 117 / 255, 123 / 255),
        (1 / 255,) * 3,
    ),
    "of TensorFlow, in NHWC": (
        "a = Mul(x, c) b = Sub(a, one) t = Transpose<perm=[0,3,1,2]>(b) v = Conv<pads=[0,0,1,1]>(t, w)",
        {"c": np.float32(1 / 127.5), "one": np.float32(1)},
        255,
        (0.5,) * 3,
        (0.5,) * 3,
    ),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_a_normalization_in_the_file_becomes_the_preprocessing(case, tmp_path):
    body, constants, largest, mean, std = PREFIXES[case]
    last = "NHWC" in case
    shape = ("N", 12, 12, 3) if last else ("N", 3, 12, 12)
    path = write(tmp_path / "net.onnx", body, {**constants, "w": weights(5, 3, 3, 3)}, shape=shape)
    source = resolve(str(path))
    preprocessing = source.preprocessing
    assert preprocessing.mean == pytest.approx(mean, abs=1e-6)
    assert preprocessing.std == pytest.approx(std, abs=1e-6)
    assert preprocessing.input_format == ("bgr" if "BGR" in case else "rgb")
    picture = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    image = preprocessing.evaluation()(tv_tensors.Image(picture))[None]
    raw = picture[None].numpy().astype(np.float32) / (255 / largest)
    expected = runtime(path, raw.transpose(0, 2, 3, 1) if last else raw)
    with torch.no_grad():
        assert np.allclose(source.model(image.as_subclass(torch.Tensor)), expected, rtol=1e-3, atol=1e-3)


def test_bytes_are_images_in_0_to_255(tmp_path):
    path = tmp_path / "net.onnx"
    write(path, "a = Cast<to=1>(x) v = Conv(a, w)", {"w": weights(5, 3, 3, 3)}, shape=("N", 3, 12, 12), kind="float")
    edited(path, lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.UINT8))
    preprocessing = resolve(str(path)).preprocessing
    assert preprocessing.mean == (0, 0, 0)
    assert preprocessing.std == pytest.approx((1 / 255,) * 3)


def test_files_of_ultralytics_take_images_in_0_to_1(tmp_path):
    said = {"author": "Ultralytics", "task": "classify", "names": "{0: 'a', 1: 'b', 2: 'c'}"}
    path = edited(simple(tmp_path / "net.onnx"), lambda model: helper.set_model_props(model, said))
    source = resolve(str(path))
    assert (source.preprocessing.mean, source.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
    assert source.class_names == ["a", "b", "c"]


def test_a_mean_picture_stays_in_the_network(tmp_path):
    constants = {"m": weights(3, 12, 12), "w": weights(5, 3, 3, 3)}  # as MATLAB writes it
    path = write(tmp_path / "net.onnx", "a = Sub(x, m) v = Conv(a, w)", constants, shape=("N", 3, 12, 12))
    assert require_equal(path, (2, 3, 12, 12)).preprocessing is None


def test_the_user_says_what_the_file_does_not(tmp_path):
    source = resolve(str(simple(tmp_path / "net.onnx")))
    assert source.preprocessing is None
    assert source.size == 12
    net = camify.convert(source, head="recast", preprocessing="0..1")
    assert (net.preprocessing.size, net.preprocessing.mean) == (12, (0.0, 0.0, 0.0))
    assert (
        camify.convert(source, head="recast", preprocessing={"mean": 0.5, "std": 0.25}).preprocessing.mean == (0.5,) * 3
    )


# ---------------------------------------------------------------- weights in other files, functions


def external(path, location="weights.bin"):
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin", size_threshold=0
    )
    if location != "weights.bin":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_a_file_beside_are_read(tmp_path):
    path = simple(tmp_path / "net.onnx")
    expected = runtime(path, np.ones((1, 3, 12, 12), np.float32))
    external(path)
    with torch.no_grad():
        assert np.allclose(resolve(str(path)).model(torch.ones(1, 3, 12, 12)), expected, atol=1e-5)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/weights.bin", "link.bin", ""])
def test_weights_elsewhere_are_refused(location, tmp_path):
    folder = tmp_path / "net"
    (folder / "sub").mkdir(parents=True)
    path = external(simple(folder / "net.onnx"), location)
    for place in (tmp_path / "weights.bin", folder / "sub" / "weights.bin"):
        place.write_bytes((folder / "weights.bin").read_bytes())
    os.symlink(tmp_path / "weights.bin", folder / "link.bin")
    with pytest.raises(CheckpointError, match="not beside it"):
        resolve(str(path))


def test_missing_and_short_weights_are_named(tmp_path):
    path = external(simple(tmp_path / "net.onnx"))
    weights_file = tmp_path / "weights.bin"
    weights_file.write_bytes(weights_file.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="too short"):
        resolve(str(path))
    weights_file.unlink()
    with pytest.raises(CheckpointError, match=r"weights.bin, which is missing"):
        resolve(str(path))


def test_functions_of_the_file_are_written_out(tmp_path):
    path = simple(tmp_path / "net.onnx", "c = Conv(x, w) v = Relu(c)")

    def change(model):
        body = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("mine", "NegRelu", ["a"], ["c"], body, opsets))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        node = next(node for node in model.graph.node if node.op_type == "Relu")
        node.op_type, node.domain = "NegRelu", "mine"

    require_equal(edited(path, change), (2, 3, 12, 12))


def test_functions_that_call_each_other_without_end_are_refused(tmp_path):
    path = simple(tmp_path / "net.onnx", "c = Conv(x, w) v = Relu(c)")

    def change(model):
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        for level in range(30):  # 2 to the 30th steps
            inner = f"f{level + 1}" if level < 29 else "Relu"
            domain = "mine" if level < 29 else ""
            body = [
                helper.make_node(inner, ["a"], ["b"], domain=domain),
                helper.make_node(inner, ["b"], ["c"], domain=domain),
            ]
            model.functions.append(helper.make_function("mine", f"f{level}", ["a"], ["c"], body, opsets))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        node = next(node for node in model.graph.node if node.op_type == "Relu")
        node.op_type, node.domain = "f0", "mine"

    with pytest.raises(CheckpointError, match="more than 20000 steps"):
        resolve(str(edited(path, change)))


# ---------------------------------------------------------------- what is refused


def test_a_detector_is_no_classifier(tmp_path):
    path = write(tmp_path / "net.onnx", "v = Conv(x, w)", {"w": weights(5, 4, 3, 3)}, head=False)
    with pytest.raises(ConversionError, match=r"an image classifier gives \(N, K\)"):
        resolve(str(path))


def huge(path):
    body = 'r = Resize<mode="nearest", coordinate_transformation_mode="asymmetric">(x, , s) v = GlobalAveragePool(r)'
    graph = onnx.parser.parse_graph(f"g (float[N,3,12,12] x) => (float[N,3,1,1] v) {{ {body} }}")
    graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 5000, 5000]), "s"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_steps_that_would_fill_the_memory_are_not_run(tmp_path):
    with pytest.raises(CheckpointError, match="camify allows"):
        resolve(str(huge(tmp_path / "net.onnx")))


@pytest.mark.parametrize(
    "body",
    [
        "n = ConstantOfShape<value=float[1]{1}>(s) m = ReduceMean<axes=[0], keepdims=0>(n) v = Mul(x, m)",
        "n = Range(zero, many, step) m = ReduceMean<axes=[0], keepdims=0>(n) v = Mul(x, m)",
        "n = Expand(one, s) m = ReduceMean<axes=[0], keepdims=0>(n) v = Mul(x, m)",
        "n = Tile(ones, s) m = ReduceMean<axes=[0], keepdims=0>(n) v = Mul(x, m)",
    ],
)
def test_constants_that_would_fill_the_memory_are_not_made(body, tmp_path):
    graph = onnx.parser.parse_graph(f"g (float[N,3,12,12] x) => (float[N,3,12,12] v) {{ {body} }}")
    constants = {"s": np.int64([10**10]), "one": np.float32(1), "ones": np.ones(9, np.float32), "zero": np.float32(0),
                 "many": np.float32(1e9), "step": np.float32(1e-3)}  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.append(helper.make_node("ReduceMean", ["v"], ["logits"], axes=[2, 3], keepdims=0))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]))
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(CamifyError):
        resolve(str(path))


def test_a_missing_or_damaged_file_is_named(tmp_path):
    path = simple(tmp_path / "net.onnx")
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(str(tmp_path / "other.onnx"))
    for damaged in (b"", b"short", content[: len(content) // 2], b"\x00" * 200, b"<html>" * 50):
        path.write_bytes(damaged)
        with pytest.raises(CamifyError, match=str(path)):
            resolve(str(path))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_damaged_bytes_never_end_in_a_traceback(seed, tmp_path, monkeypatch):
    monkeypatch.setattr("camify.sources.onnx_models._OPEN_SIDES", (12,))
    path = edited(simple(tmp_path / "net.onnx", "c = Conv(x, w) v = Relu(c)"), add_softmax)
    content, draw = path.read_bytes(), random.Random(seed)
    for _ in range(60):
        mutated = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        path.write_bytes(bytes(mutated))
        with contextlib.suppress(CamifyError):
            resolve(str(path))


# ---------------------------------------------------------------- steps that are not known


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """A convolutional network with an operator that is not known before its last map."""
    path = tmp_path_factory.mktemp("unknown") / "net.onnx"
    body = "c = Conv(x, w) s = Shrink<lambd=0.2>(c) v = Conv(s, u)"
    write(path, body, {"w": weights(5, 3, 3, 3), "u": weights(6, 5, 3, 3)}, shape=("N", 3, 12, 12), head=False)

    def change(model):
        model.graph.initializer.append(numpy_helper.from_array(weights(3, 6), "head"))
        model.graph.node.append(helper.make_node("Relu", ["v"], ["map"]))
        model.graph.node.append(helper.make_node("GlobalAveragePool", ["map"], ["pooled"]))
        model.graph.node.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        model.graph.node.append(helper.make_node("Gemm", ["flat", "head"], ["logits"], transB=1))
        add_softmax(model, axis=1)

    return edited(path, change)


def test_a_network_with_an_unknown_step_names_it_and_still_runs(unknown):
    source = resolve(str(unknown))
    assert "operator Shrink (node s) is not known" in source.no_gradients
    image = weights(2, 3, 12, 12)
    with torch.no_grad():
        assert np.allclose(source.model(torch.from_numpy(image)), runtime(unknown, image), atol=1e-5)
    inspection = camify.inspect(str(unknown))
    assert inspection.verdict == "unsupported"
    assert "Shrink" in inspection.reason


def test_it_is_explained_without_gradients_as_the_same_layers_are(unknown):
    image = torch.from_numpy(weights(1, 3, 12, 12))
    torch.manual_seed(0)
    w, u, matrix = (torch.from_numpy(weights(*shape)) for shape in ((5, 3, 3, 3), (6, 5, 3, 3), (3, 6)))
    features = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.Hardshrink(0.2), nn.Conv2d(5, 6, 3, bias=False), nn.ReLU()
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        features[0].weight.copy_(w)
        features[2].weight.copy_(u)
        head[2].weight.copy_(matrix)
    same = nn.Sequential(features, head).eval()
    for method in ("scorecam", "reciprocam", "ablationcam", "eigencam", "lafam"):
        heat = camify.explain(str(unknown), image, method=method, targets=1)
        expected = camify.explain(same, image, method=method, targets=1)
        assert torch.allclose(heat, expected, atol=1e-4)


def test_what_needs_layers_is_refused_with_the_step(unknown):
    image = torch.zeros(1, 3, 12, 12)
    for method in ("gradcam", "cam", "layercam", "hirescam", "finercam", "shapleycam", "smoothgradcam++"):
        with pytest.raises(CamifyError, match="Shrink"):
            camify.explain(str(unknown), image, method=method)
    with pytest.raises(ConversionError, match=r"cannot be converted: .*Shrink"):
        camify.convert(str(unknown))
    with pytest.raises(CamifyError, match=r"cannot be trained: .*Shrink"):
        camify.CAMFineTuner(str(unknown), class_names=["a", "b", "c"])


def test_a_file_that_onnxruntime_has_optimized_is_read(tmp_path):
    body = "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, u) s = Add(d, r) v = Relu(s)"
    path = simple(tmp_path / "net.onnx", body, constants={"w": weights(5, 3, 3, 3), "u": weights(5, 5, 3, 3)})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options)
    steps = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "FusedConv" in steps
    require_equal(tmp_path / "optimized.onnx", (2, 3, 12, 12))


def as_half(model):
    """All in half precision."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def test_half_precision_becomes_single(tmp_path):
    path = edited(simple(tmp_path / "net.onnx"), as_half)
    source = resolve(str(path))
    assert source.no_gradients == ""
    assert next(source.model.parameters()).dtype == torch.float32
    image = weights(2, 3, 12, 12).astype(np.float16)
    with torch.no_grad():
        logits = source.model(torch.from_numpy(image).float())
    expected = runtime(path, image).astype(np.float32)
    assert np.abs(logits.numpy() - expected).max() <= 5e-3 * np.abs(expected).max()


def test_steps_in_another_order_are_sorted(tmp_path):
    def change(model):
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes[::-1])

    path = simple(tmp_path / "net.onnx", "c = Conv(x, w) r = Relu(c) s = Sigmoid(r) v = Mul(r, s)")
    image = weights(2, 3, 12, 12)
    expected = runtime(path, image)
    with torch.no_grad():
        given = resolve(str(edited(path, change))).model(torch.from_numpy(image))
    assert np.allclose(given, expected, rtol=1e-4, atol=1e-4)


def test_a_file_of_camify_is_read_as_camifys(tmp_path, exported):
    net = camify.convert(str(exported["old exporter"]), head="direct")
    camify.export(net, tmp_path / "own.onnx")
    assert resolve(str(tmp_path / "own.onnx")).only_maps


# ---------------------------------------------------------------- the command line


def test_commands_take_an_onnx_file(exported, tmp_path, capsys):
    from PIL import Image

    from camify.cli import main

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index}.png")
    path = str(exported["new exporter, batch of 1"])
    main(["inspect", path])
    assert "32 x 32 px" in capsys.readouterr().out
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    out = tmp_path / "folder"
    main(["convert", path, str(out), "--head", "recast", "--preprocessing", "tf", "--class_names", str(names)])
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    assert "Assumed" not in printed
    manifest = json.loads(Path(out, "camify.json").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["preprocessing"]["size"] == 32
    explained = ["explain", str(pictures), "--model", path, "--out", str(tmp_path / "out"), "--method", "gradcam"]
    main([*explained, "--preprocessing", "{mean: 0.4, std: 0.2}"])
    assert "2 of 2 images explained" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*explained, "--preprocessing", "unknown"])
    assert "Choose imagenet, 0..1, 0..255, tf, caffe" in capsys.readouterr().err
