"""Keras files as sources: equal to Keras, read as data, and refused in a sentence where they cannot be read."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import camify
from camify.errors import CamifyError, CheckpointError, ConversionError
from camify.graphs.padded_layers import SamePad2d
from camify.preprocessing import Preprocessing
from camify.sources import resolve

STORED = Path(__file__).parents[1] / "stored" / "keras"
EXPECTED = json.loads((STORED / "expected.json").read_text())


def pictures(shape, largest):
    """As in ``tests/stored/keras/make.py``, as images (N, C, H, W)."""
    count = 2 * int(np.prod(shape))
    values = ((np.arange(count) * 37 % 256) / 255 * largest).reshape(2, *shape).astype("float32")
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def prepared(source, images, largest):
    """Images in 0..largest as the source takes them: what Keras did itself is now its preprocessing."""
    if source.preprocessing is None:
        return images
    preprocessing = source.preprocessing
    images = images.flip(1) if preprocessing.input_format == "bgr" else images
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (images / largest - mean) / std


@pytest.mark.parametrize("file", EXPECTED)
def test_a_stored_file_answers_as_keras_did(file):
    entry = EXPECTED[file]
    source = resolve(str(STORED / file))
    with torch.no_grad():
        answer = source.model(prepared(source, pictures(entry["shape"], entry["largest"]), entry["largest"]))
    expected = torch.tensor(entry["output"])
    assert answer.shape == expected.shape
    assert float((answer - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert all(parameter.requires_grad for parameter in source.model.parameters())
    assert not source.model.training


@pytest.mark.parametrize(
    ("name", "heads", "task"),
    [
        ("flatten", ("recast",), "multiclass"),
        ("transfer", ("direct",), "multiclass"),
        ("separable", ("gap",), "multilabel"),
        ("arithmetic", ("gap",), "binary"),
    ],
)
def test_a_keras_network_is_converted_saved_and_loaded(name, heads, task, tmp_path):
    file = f"keras3_{name}.keras"
    source = resolve(str(STORED / file))
    images = prepared(source, pictures(EXPECTED[file]["shape"], EXPECTED[file]["largest"]), EXPECTED[file]["largest"])
    for head in heads:
        net = camify.convert(source, head=head, input_size=source.input_size)
        assert str(net.task) == task
        net.save_pretrained(tmp_path / head)
        loaded = camify.load(tmp_path / head)
        torch.testing.assert_close(loaded(images), net.eval()(images))
        assert loaded.preprocessing == source.preprocessing
        if (name, head) in (("flatten", "recast"), ("transfer", "direct")):  # the old head, and Keras's answer
            answer = loaded(images).softmax(1)
            torch.testing.assert_close(answer, torch.tensor(EXPECTED[file]["output"]), rtol=1e-4, atol=1e-5)


def test_what_was_left_out_and_assumed_is_said():
    source = resolve(str(STORED / "keras3_transfer.h5"))
    assert any("random_flip, augmentation.random_rotation left out" in note for note in source.notes)
    assert any("own normalization" in note for note in source.notes)
    assert source.preprocessing == Preprocessing(12, (0, 0, 0), (1, 1, 1))
    bgr = resolve(str(STORED / "keras2_arithmetic.h5")).preprocessing
    assert bgr.input_format == "bgr"
    assert bgr.mean == pytest.approx((103.939 / 255, 116.779 / 255, 123.68 / 255), abs=1e-6)


def test_a_network_of_any_size_has_no_size_in_it():
    source = resolve(str(STORED / "keras3_any_size.keras"))
    assert source.input_size == (224, 224)
    assert source.channels == 1
    assert source.preprocessing is None
    assert source.model(torch.rand(1, 1, 9, 23)).shape == (1, 3)


def test_a_layer_that_is_called_twice_is_one_layer():
    model = resolve(str(STORED / "keras3_separable.keras")).model
    calls = [node.target for node in model.graph.nodes if node.op == "call_module"]
    assert calls.count("conv2d") == 3
    assert sum(isinstance(layer, SamePad2d) for layer in model.modules()) == 2


def test_only_what_the_network_shows_stays_in_training():
    model = resolve(str(STORED / "keras2_flatten.keras")).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model.train()(torch.rand(4, 3, 11, 9)).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert before.keys() == model.state_dict().keys()


# ------------------------------------------------------------ models by description


def entry(kind, name, options, *inputs, module="keras.layers", list_of_inputs=False):
    tensors = [{"class_name": "__keras_tensor__", "config": {"keras_history": [one, 0, 0]}} for one in inputs]
    args = [[*tensors]] if list_of_inputs else tensors
    config = {"name": name, "trainable": True, "dtype": "float32", **options}
    nodes = [{"args": args, "kwargs": {}}] if inputs else []
    return {"module": module, "class_name": kind, "name": name, "config": config, "inbound_nodes": nodes}


def keras_file(path, layers, weights=None, *, output=None, name="model", inputs=("image",), class_name="Functional"):
    """A ``.keras`` archive; ``weights``: for each path its arrays."""
    config = {
        "name": name,
        "layers": layers,
        "input_layers": [[one, 0, 0] for one in inputs],
        "output_layers": [[one, 0, 0] for one in output or [layers[-1]["name"]]],
    }
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for group, arrays in (weights or {}).items():
            for index, array in enumerate(arrays):
                file[f"layers/{group}/vars/{index}"] = np.asarray(array, "float32")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0"}))
        archive.writestr("config.json", json.dumps({"class_name": class_name, "config": config}))
        archive.writestr("model.weights.h5", content.getvalue())
    return str(path)


IMAGE = entry("InputLayer", "image", {"batch_shape": [None, 6, 5, 2]})
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(6, 5, 2, 3))


def dense(inputs, *, features=2):
    return entry("Dense", "dense", {"units": 3}, inputs), {"dense": [RNG.normal(size=(features, 3)), [0.1, 0.2, 0.3]]}


def test_flattened_features_are_in_keras_order(tmp_path):
    layer, weights = dense("flatten", features=60)
    path = keras_file(tmp_path / "a.keras", [IMAGE, entry("Flatten", "flatten", {}, "image"), layer], weights)
    images = RNG.normal(size=(2, 6, 5, 2)).astype("float32")
    kernel, bias = weights["dense"]
    answer = resolve(path).model(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(answer.detach(), images.reshape(2, 60) @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_flattened_features_that_meet_others_are_put_in_keras_order(tmp_path):
    layers = [
        IMAGE,
        entry("Flatten", "flatten", {}, "image"),
        entry("Permute", "permute", {"dims": [2, 1, 3]}, "image"),
        entry("Flatten", "turned", {}, "permute"),
        entry("Add", "add", {}, "flatten", "turned", list_of_inputs=True),
        entry("Concatenate", "both", {"axis": -1}, "add", "turned", list_of_inputs=True),
    ]
    layer, weights = dense("both", features=120)
    path = keras_file(tmp_path / "a.keras", [*layers, layer], weights)
    images = RNG.normal(size=(2, 6, 5, 2)).astype("float32")
    turned = images.transpose(0, 2, 1, 3).reshape(2, 60)
    both = np.concatenate([images.reshape(2, 60) + turned, turned], 1)
    kernel, bias = weights["dense"]
    answer = resolve(path).model(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(answer.detach(), both @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_channels_first_is_read(tmp_path):
    image = entry("InputLayer", "image", {"batch_shape": [None, 2, 6, 5]})
    layers = [
        image,
        entry("MaxPooling2D", "pool", {"pool_size": [1, 1], "data_format": "channels_first"}, "image"),
        entry("Flatten", "flatten", {"data_format": "channels_first"}, "pool"),
    ]
    layer, weights = dense("flatten", features=60)
    path = keras_file(tmp_path / "a.keras", [*layers, layer], weights)
    images = RNG.normal(size=(2, 2, 6, 5)).astype("float32")
    kernel, bias = weights["dense"]
    source = resolve(path)
    assert (source.input_size, source.channels) == ((6, 5), 2)
    expected = images.transpose(0, 2, 3, 1).reshape(2, 60) @ kernel + bias  # Keras flattens channels last always
    np.testing.assert_allclose(source.model(torch.from_numpy(images)).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "largest", "word"),
    [
        ("vgg16", "caffe", "bgr"),
        ("mobilenetv2_0.35_96", "tf", "rgb"),
        ("densenet121", "imagenet", "rgb"),
        ("own", "", ""),
    ],
)
def test_preprocess_input_is_known_by_the_networks_name(name, largest, word, tmp_path):
    image = entry("InputLayer", "image", {"batch_shape": [None, 8, 8, 3]})
    layer, weights = dense("pool", features=3)
    path = keras_file(
        tmp_path / "a.keras", [image, entry("GlobalAveragePooling2D", "pool", {}, "image"), layer], weights, name=name
    )
    source = resolve(path)
    if not word:
        assert source.preprocessing is None
        assert source.notes == ()
        return
    assert source.preprocessing == Preprocessing.stated(largest, Preprocessing(8))
    assert any(f"by the network's name {name.split('_')[0]}" in note for note in source.notes)


# ------------------------------------------------------------ refused


def refused(path, *words, kind=CamifyError):
    with pytest.raises(kind) as caught:
        resolve(str(path))
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_layers_that_are_code_are_refused_all_at_once(tmp_path):
    layers = [
        IMAGE,
        entry("Lambda", "double", {"function": "never run"}, "image"),
        entry("MyLayer", "mine", {}, "double", module="my_code"),
        entry("Conv2D", "conv", {"activation": "my_activation"}, "mine"),
    ]
    path = keras_file(tmp_path / "a.keras", layers)
    refused(path, "double (Lambda)", "mine (MyLayer)", "the activation my_activation", "onnx", kind=ConversionError)
    refused(keras_file(tmp_path / "b.keras", layers, class_name="MyModel"), "MyModel", "Python code")


def test_what_is_no_classifier_of_one_image_is_refused(tmp_path):
    other = entry("InputLayer", "other", {"batch_shape": [None, 6, 5, 2]})
    layer, weights = dense("pool")
    pool = entry("GlobalMaxPooling2D", "pool", {}, "image")
    refused(keras_file(tmp_path / "a.keras", [IMAGE, other, pool], inputs=("image", "other")), "takes 2 inputs")
    refused(keras_file(tmp_path / "b.keras", [IMAGE]), "gives image (6, 5, 2)")
    two = keras_file(tmp_path / "c.keras", [IMAGE, pool, layer], weights, output=["pool", "dense"])
    refused(two, "pool (2,), dense (3,)")
    one = keras_file(tmp_path / "d.keras", [IMAGE, pool, layer], weights, output=["image", "dense"])
    assert resolve(one).notes == ("of several outputs dense is used, image left out",)
    numbers = entry("InputLayer", "image", {"batch_shape": [None, 7]})
    refused(keras_file(tmp_path / "e.keras", [numbers]), "no images")


def test_weights_that_contradict_the_layers_are_refused(tmp_path):
    layer, _ = dense("pool")
    layers = [IMAGE, entry("GlobalMaxPooling2D", "pool", {}, "image"), layer]
    refused(keras_file(tmp_path / "a.keras", layers), "layer dense (Dense)", "0 weights, it takes 2")
    wrong = {"dense": [np.zeros((5, 3)), np.zeros(3)]}
    refused(keras_file(tmp_path / "b.keras", layers, wrong), "dense, kernel", "(5, 3)", "(2, 3)")
    nan = {"dense": [np.full((2, 3), np.nan), np.zeros(3)]}
    refused(keras_file(tmp_path / "c.keras", layers, nan), "dense, kernel", "NaN")
    endless = [*layers[:1], entry("ReLU", "a", {}, "b"), entry("ReLU", "b", {}, "a")]
    refused(keras_file(tmp_path / "d.keras", endless), "needs its own output")
    batch = layers[1] | {"inbound_nodes": []}
    refused(keras_file(tmp_path / "e.keras", [IMAGE, batch]), "'pool'")


def test_what_lies_in_other_files_or_needs_a_plug_in_is_refused(tmp_path):
    layer, weights = dense("pool")
    layers = [IMAGE, entry("GlobalMaxPooling2D", "pool", {}, "image"), layer]
    kernel, bias = (np.asarray(array, "float32") for array in weights["dense"])
    (tmp_path / "raw").write_bytes(kernel.tobytes())

    def file(name, write):
        path = Path(keras_file(tmp_path / f"{name}.keras", layers, weights))
        content = io.BytesIO()
        with h5py.File(content, "w") as stored:
            group = stored.create_group("layers/dense/vars")
            group["1"] = bias
            write(group)
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr("model.weights.h5", content.getvalue())
        return path

    def virtual(group):
        layout = h5py.VirtualLayout((2, 3), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "k", (2, 3))
        group.create_virtual_dataset("0", layout)

    raw = str(tmp_path / "raw")
    cases = {
        "external": (lambda g: g.create_dataset("0", (2, 3), "f4", external=[(raw, 0, 24)]), "another file"),
        "virtual": (virtual, "another file"),
        "link": (lambda g: g.__setitem__("0", h5py.ExternalLink("other.h5", "/k")), "ExternalLink"),
        "soft": (lambda g: g.__setitem__("0", h5py.SoftLink("/layers/dense/vars/1")), "SoftLink"),
        "text": (lambda g: g.create_dataset("0", (2, 3), h5py.string_dtype()), "not floats"),
        "whole": (lambda g: g.create_dataset("0", data=kernel.astype("int8")), "int8"),
    }
    for name, (write, word) in cases.items():
        refused(file(name, write), "dense, kernel" if "Link" not in word else "layers/dense/vars/0", word)
    packed = file("packed", lambda g: g.create_dataset("0", data=kernel, compression="gzip", shuffle=True))
    assert resolve(str(packed)).model(torch.rand(2, 2, 6, 5)).shape == (2, 3)


def test_archives_that_unpack_to_far_more_are_not_read(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (2**25 + 1))
        archive.writestr("model.weights.h5", b"")
    refused(path, "config.json unpacks to")


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused(tmp_path / "none.keras", "no such file", kind=CheckpointError)
    refused(tmp_path / "none.h5", "no such file", kind=CheckpointError)


def test_weights_alone_are_refused_with_the_lines_that_make_a_model(tmp_path):
    for name in ("layer_names", "layers"):
        path = tmp_path / f"{name}.weights.h5"
        with h5py.File(path, "w") as file:
            file.create_group("layers/dense/vars") if name == "layers" else file.attrs.create("layer_names", [b"dense"])
        refused(path, "without its layers", 'model.save("model.keras")', kind=ConversionError)
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    refused(path, "no Keras model", kind=CheckpointError)


def test_h5py_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    path = STORED / "keras3_flatten.keras"
    refused(path, "pip install 'camify[keras]'", kind=ConversionError)


# ------------------------------------------------------------ damaged


def damaged(content, rng):
    """Some bytes changed, or the end cut off."""
    changed = bytearray(content)
    front = len(changed) if rng.random() < 0.5 else min(len(changed), 3000)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        changed[rng.randrange(front)] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))]) if rng.random() < 0.1 else bytes(changed)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if not str(key).endswith(("initializer", "regularizer", "constraint")):
            yield from places(item, (*path, key))


def contradicted(config, rng):
    """A description with other values at some places."""
    config = json.loads(json.dumps(config))
    values = [None, -1, 0, 2**40, 1.5, "", "x" * 300, [], {}, [1, 2, 3], True, "same", [["a", 0, 0, {}]]]
    *path, last = rng.choice([place for place in places(config) if place])
    owner = config
    for key in path:
        owner = owner[key]
    owner[last] = rng.choice(values)
    return config


def broken_files(count, folder):
    rng = random.Random(5)
    archives, files = sorted(STORED.glob("*.keras")), sorted(STORED.glob("*.h5"))
    for index in range(count):
        path = folder / f"{index}.{('keras', 'h5')[index % 2]}"
        if index % 2:
            path.write_bytes(damaged(rng.choice(files).read_bytes(), rng))
        else:
            with zipfile.ZipFile(rng.choice(archives)) as archive, zipfile.ZipFile(path, "w") as other:
                config, content = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
                in_weights = index % 4 == 0
                other.writestr("config.json", json.dumps(config if in_weights else contradicted(config, rng)))
                other.writestr("model.weights.h5", damaged(content, rng) if in_weights else content)
        yield path


def read_all(count, folder):
    refusals = 0
    for path in broken_files(count, folder):
        try:
            resolve(str(path))
        except CamifyError as error:
            refusals += str(path) in str(error)
        path.unlink()
    return refusals


def test_a_damaged_file_is_one_sentence(tmp_path):
    assert read_all(60, tmp_path) > 20
    (tmp_path / "a.keras").write_bytes(b"")
    refused(tmp_path / "a.keras", "damaged", kind=CheckpointError)
    content = bytearray((STORED / "keras3_flatten.h5").read_bytes())
    heap = content.index(b"GCOL")  # a text of no size, for whose end HDF5's library would look forever
    content[heap + 16 : heap + 32] = bytes(16)
    (tmp_path / "a.h5").write_bytes(content)
    refused(tmp_path / "a.h5", "damaged", kind=CheckpointError)


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path):
    assert read_all(1000, tmp_path) > 400


# ------------------------------------------------------------ keras.applications

SMALLEST = {  # of each family: a side that its strides do not divide where it takes one, and what its inputs are
    "VGG16": 64, "ResNet50": 65, "ResNet50V2": 65, "MobileNet": 65, "MobileNetV2": 65, "MobileNetV3Small": 65,
    "DenseNet121": 65, "Xception": 76, "InceptionV3": 139, "InceptionResNetV2": 139, "EfficientNetB0": 65,
    "EfficientNetV2B0": 65, "ConvNeXtTiny": 64,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("family", SMALLEST)
@pytest.mark.filterwarnings("ignore")
def test_every_family_of_keras_applications_equals_keras(family, suffix, tmp_path, monkeypatch):
    """NASNet is made by TensorFlow only; it was compared by hand."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("keras was imported with another backend")
    side, rng = SMALLEST[family], np.random.default_rng(0)
    options = {"weights": None, "classes": 5, "classifier_activation": None}
    model = getattr(keras.applications, family)(input_shape=(side, side, 3), **options)
    for variable in model.weights:
        kind = variable.path.split("/")[-1]
        if kind in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype("float32"))
        elif kind in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, variable.shape).astype("float32"))
    model.save(tmp_path / f"model.{suffix}")
    source = resolve(str(tmp_path / f"model.{suffix}"))
    largest = 255 if any("own normalization" in note or "itself" in note for note in source.notes) else 1
    images = pictures((side, side, 3), largest)
    with torch.no_grad():
        expected = model(images.permute(0, 2, 3, 1).numpy(), training=False).cpu()
        answer = source.model(prepared(source, images, largest) if largest > 1 else images)
    error = float((answer - expected).abs().max() / expected.abs().max())
    print(f"{family} .{suffix}: {error:.1e}")
    assert error <= 1e-5
    if suffix == "h5":
        return
    for head in ("gap", "direct", "recast"):
        net = camify.convert(source, head=head, input_size=source.input_size)
        net.save_pretrained(tmp_path / head)
        inputs = prepared(source, images, largest) if largest > 1 else images
        torch.testing.assert_close(camify.load(tmp_path / head)(inputs), net.eval()(inputs))
