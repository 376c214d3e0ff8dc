"""Features by onnxruntime: the same results as by torch, and a reason wherever torch runs them instead."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.evaluation import onnx_features
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.network import explained_network
from camify.evaluation.onnx_features import OnnxFeatures, with_onnx_features
from camify.sources import Source
from camify.sources.demo_network import TinyVGG

pytest.importorskip("onnxruntime")
PREPROCESSING = Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Residual(torch.nn.Module):
    """Three convolutions with norms, one past which a shortcut flows, and a linear head behind global pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = self._step(3, 8, 4), self._step(8, 8, 1), self._step(8, 12, 2)
        self.fc = torch.nn.Linear(12, 4)

    @staticmethod
    def _step(before, after, stride):
        convolution = torch.nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        return torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(after), torch.nn.ReLU())

    def forward(self, images):
        value = self.stem(images)
        return self.fc(self.outer(value + self.inner(value)).mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)).resize((60, 80)).save(path)
    return paths


def network_of(model, methods=("cam",), **more):
    return explained_network(Source(model, "here", preprocessing=PREPROCESSING), "here", methods, **more)


def run(model, files, out, engine, methods=("cam",), options=None, layer=None, method_options=None):
    network = network_of(model, methods, layer=layer, options=method_options)
    return explain_files(network, files, out, options or ExplainOptions(), batch_size=2, workers=0, engine=engine)


def assert_same_results(one, other):
    rows = [
        {row["name"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
        for out in (one, other)
    ]
    assert rows[0].keys() == rows[1].keys()
    for name, row in rows[0].items():
        raw, other_raw = np.load(one / row["raw_maps"]), np.load(other / rows[1][name]["raw_maps"])
        np.testing.assert_allclose(raw, other_raw, rtol=0, atol=1e-4 * np.abs(raw).max())
        for entry, other_entry in zip(row["classes"], rows[1][name]["classes"], strict=True):
            assert entry["index"] == other_entry["index"]
            assert entry["logit"] == pytest.approx(other_entry["logit"], rel=1e-4)


@pytest.mark.parametrize(
    ("methods", "layer"),
    [
        (("cam", "gradcam", "hirescam"), None),
        (("scorecam",), None),
        (("fullgrad",), None),  # gradients by the image: torch runs those
        (("smoothgradcam++", "reciprocam"), None),
        (("gradcam",), "stem.2"),
        (("layercam",), ("stem.2", "outer.2")),
    ],
)
def test_results_are_those_of_torch(residual, files, tmp_path, methods, layer):
    plain = run(residual, files, tmp_path / "torch", "torch", methods, layer=layer)
    fast = run(residual, files, tmp_path / "onnx", "onnxruntime", methods, layer=layer)
    assert (plain.engine, fast.engine) == ("torch", "onnxruntime")
    assert_same_results(tmp_path / "torch", tmp_path / "onnx")


def test_views_of_other_sizes_are_run_by_torch(residual, files, tmp_path):
    for engine in ("torch", "onnxruntime"):
        network = network_of(residual, ("cam", "gradcam"), augmentations=["flip", "shifts", "sizes"])
        explain_files(network, files, tmp_path / engine, ExplainOptions(), workers=0, engine=engine)
    assert_same_results(tmp_path / "torch", tmp_path / "onnxruntime")


def test_a_cam_net_is_run_by_onnxruntime_and_left_as_it_was(files, tmp_path):
    net = camify.convert(TinyVGG(4), head="direct", input_size=96, seed=0).eval()
    net.box_rule = camify.BoxRule(flip=True)
    run(net, files, tmp_path / "torch", "torch")
    assert run(net, files, tmp_path / "onnx", "onnxruntime").engine == "onnxruntime"
    assert net.known_features is None
    assert_same_results(tmp_path / "torch", tmp_path / "onnx")


def test_a_run_that_goes_on_with_another_engine_equals_one_that_was_not_interrupted(residual, files, tmp_path):
    run(residual, files, tmp_path / "whole", "torch")
    run(residual, files[:3], tmp_path / "parts", "onnxruntime")
    assert run(residual, files, tmp_path / "parts", "torch").before == 3
    assert_same_results(tmp_path / "whole", tmp_path / "parts")


def test_features_are_those_of_the_module_for_any_number_of_images():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    images = torch.randn(9, 3, 16, 16)
    with torch.no_grad():
        features = OnnxFeatures(module, images)
        for count in (1, 2, 4, 5, 9):
            torch.testing.assert_close(features(images[:count])[0], module(images[:count]), rtol=1e-4, atol=1e-5)
        other = torch.randn(1, 3, 20, 24)
        torch.testing.assert_close(features(other)[0], module(other), rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert features(images)[0].dtype is module(images).dtype
        last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(features(last)[0], module(images), rtol=1e-4, atol=1e-5)


# --- when torch runs them, and why -------------------------------------------------------------------------


@pytest.fixture
def pays(monkeypatch):
    monkeypatch.setattr(onnx_features, "_LEAST_SECONDS", 0.0)


def reason_of(model, engine="auto", precision="fp32", **more):
    fast, reason = with_onnx_features(network_of(model, **more), torch.randn(4, 3, 96, 96), engine, 1000, precision)
    assert fast is None
    return reason


@pytest.mark.usefixtures("pays")
def test_what_is_faster_is_taken(residual, monkeypatch):
    network, images = network_of(residual), torch.randn(4, 3, 96, 96)
    monkeypatch.setattr(onnx_features, "_WORTH_IT", 1e9)
    fast, reason = with_onnx_features(network, images, "auto", 1000, "fp32")
    assert fast is not None
    assert "of torch's time" in reason
    monkeypatch.setattr(onnx_features, "_WORTH_IT", 0.0)
    assert "of torch's time" in reason_of(residual)


def test_few_images_are_not_worth_an_export(residual, monkeypatch):
    monkeypatch.setattr(onnx_features, "_LEAST_SECONDS", 1e9)
    assert "hardly pay" in reason_of(residual)


@pytest.mark.usefixtures("pays")
def test_reduced_precision_is_torchs(residual, files, tmp_path):
    assert "bf16" in reason_of(residual, precision="bf16")
    with pytest.raises(camify.ConfigError, match="bf16"):
        run(residual, files, tmp_path / "out", "onnxruntime", options=ExplainOptions(precision="bf16"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("pays")
def test_other_weights_than_float32_are_torchs(residual, files, tmp_path):
    double = copy.deepcopy(residual).double()
    assert "float64" in reason_of(double)
    with pytest.raises(camify.ConfigError, match="float64"):
        run(double, files, tmp_path / "out", "onnxruntime")


class FixedBatch(torch.nn.Module):
    """Its exported graph holds the number of images as it was in the export."""

    def forward(self, images):
        return images.reshape([int(side) for side in images.shape])


def test_a_graph_that_does_not_run_on_other_batches_is_refused():
    features = OnnxFeatures(FixedBatch(), torch.rand(4, 3, 5, 5))
    with pytest.raises(camify.ConversionError, match="does not run on"):
        features(torch.rand(4, 3, 5, 5))


@pytest.mark.usefixtures("pays")
def test_without_onnxruntime_torch_runs_and_the_reason_names_the_extra(residual, files, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert "camify[onnx]" in reason_of(residual)
    with pytest.raises(camify.ConfigError, match=r"camify\[onnx\]"):
        run(residual, files, tmp_path / "out", "onnxruntime")


@pytest.mark.usefixtures("pays")
def test_other_values_are_not_taken(residual, files, tmp_path, monkeypatch):
    right = OnnxFeatures.__call__
    monkeypatch.setattr(OnnxFeatures, "__call__", lambda self, images: tuple(1.001 * v for v in right(self, images)))
    assert "other maps or logits" in reason_of(residual)
    with pytest.raises(camify.ConversionError, match="other maps or logits"):
        run(residual, files, tmp_path / "out", "onnxruntime")


class FromTheBatch(Residual):
    """What it says of an image depends on those beside it."""

    def forward(self, images):
        return super().forward(images - images.mean(0, keepdim=True))


@pytest.mark.usefixtures("pays")
def test_a_network_whose_images_are_not_independent_is_torchs(files, tmp_path):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="depend on which others are in its batch"):
        reason = reason_of(FromTheBatch().eval(), methods=("gradcam",))
    assert "other maps or logits" in reason


class Untraceable(torch.nn.Module):
    """Which of its steps run depends on the image."""

    def __init__(self):
        super().__init__()
        self.body = TinyVGG(4)

    def forward(self, images):
        return self.body(images if float(images.mean()) < 1e9 else images * 1)


@pytest.mark.usefixtures("pays")
def test_a_network_that_cannot_be_traced_is_torchs(files, tmp_path):
    torch.manual_seed(0)
    model = Untraceable().eval()
    assert "cannot follow" in reason_of(model, methods=("gradcam",))
    with pytest.raises(camify.ConversionError, match=r"cannot follow .* Choose torch or auto"):
        run(model, files, tmp_path / "out", "onnxruntime", methods=("gradcam",))


def test_an_unknown_engine_is_refused(residual, files, tmp_path):
    with pytest.raises(camify.ConfigError, match="auto, torch, onnxruntime"):
        run(residual, files, tmp_path / "out", "tensorrt")


def test_the_command_says_which_engine_ran(files, tmp_path, capsys):
    arguments = ["--model", "camify/tiny_vgg", "--method", "gradcam", "--out", str(tmp_path / "out")]
    main(["explain", *map(str, files), *arguments, "--workers", "0", "--engine", "onnxruntime"])
    assert "Features by onnxruntime: " in capsys.readouterr().out
