"""Exported files give what the network gives, in their own runtimes, and say what is needed to use them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion
from torchvision.transforms import v2

import camify
from camify.boxes import DEFAULT_RULE, OTSU, BoxRule, component_boxes
from camify.errors import CheckpointError, ConfigError
from camify.exporters import open_exported
from camify.exporters.metadata import file_metadata, read_record
from camify.exporters.network import prepared
from camify.maps import select, upsample
from camify.normalizers import normalize_maps
from camify.sources import resolve
from tests.exporters.conftest import SIZE, network

SUFFIXES = pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
SHAPES = [(1, SIZE, SIZE), (5, SIZE, SIZE), (2, 48, 36)]


def run(path, image):
    """The outputs by name, in the runtime that people have."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path))
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))
    found = torch.export.load(path).module()(image)
    return dict(zip(open_exported(path).record["outputs"], (value.numpy() for value in found), strict=True))


@SUFFIXES
def test_logits_and_maps_at_several_sizes_and_batches(net, files, suffix):
    assert files[suffix].dynamic == ("batch", "height", "width")
    for count, height, width in SHAPES:
        image = torch.randn(count, 3, height, width)
        found = run(files[suffix].path, image)
        with torch.no_grad():
            logits, maps = net.forward_with_maps(image)
        np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
        np.testing.assert_allclose(found["maps"], maps, atol=1e-4)
        np.testing.assert_allclose(found["maps"].mean((2, 3)) + net.classifier.bias.detach().numpy(), logits, atol=1e-4)
        assert found.keys() == {"logits", "maps"}


@SUFFIXES
@pytest.mark.parametrize("size", [(SIZE, SIZE), (50, 70), (20, 40)])
def test_pictures_go_in_as_they_are_read(net, files, suffix, size):
    """Against torchvision's own transforms, in float: the file does not round in between."""
    pictures = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    transform = v2.Compose([
        v2.ToDtype(torch.float32, scale=True), v2.Resize((SIZE, SIZE), antialias=True),
        v2.Normalize(net.preprocessing.mean, net.preprocessing.std),
    ])  # fmt: skip
    with torch.no_grad():
        logits, maps = net.forward_with_maps(transform(pictures.permute(0, 3, 1, 2)))
    found = run(files[suffix, "pictures"].path, pictures)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found["maps"], maps, atol=1e-4)


@pytest.mark.parametrize("input_format", ["bgr", "grayscale"])
def test_pictures_become_what_the_network_was_trained_on(input_format):
    """Against the channels by hand: what goes in is always RGB."""
    gray = input_format == "grayscale"
    layers = (nn.Conv2d(1 if gray else 3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net = camify.convert(nn.Sequential(*layers).eval(), input_size=SIZE, head="direct")
    numbers = ([0.4], [0.2]) if gray else ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    net.preprocessing = {"size": SIZE, "mean": numbers[0], "std": numbers[1], "input_format": input_format}
    red, green, blue = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    pixels = [0.2989 * red + 0.587 * green + 0.114 * blue] if gray else [blue, green, red]
    channels = [(p / 255 - mean) / std for p, mean, std in zip(pixels, *numbers, strict=True)]
    file = prepared(net, preprocess=True, boxes=False)
    with torch.no_grad():
        logits, _ = file(torch.stack([red, green, blue], dim=-1)[None])
        torch.testing.assert_close(logits, net(torch.stack(channels)[None]), rtol=1e-4, atol=1e-5)


@SUFFIXES
def test_boxes_are_those_of_the_metrics(net, files, suffix):
    """In pixels of the given pictures, of the top-1 class, from OpenCV's components."""
    pictures = torch.randint(0, 256, (6, 80, 48, 3), dtype=torch.uint8)
    found = run(files[suffix, "pictures"].path, pictures)
    top = select(torch.from_numpy(found["maps"]), torch.from_numpy(found["logits"]).argmax(1))
    heat = normalize_maps(upsample(top, (SIZE, SIZE)), "minmax")
    for one, box in zip(heat.numpy(), found["boxes"], strict=True):
        (expected,) = component_boxes(one >= np.float32(0.4), largest=True)
        np.testing.assert_allclose(box, expected * np.array([48, 80, 48, 80]) / SIZE, atol=1e-4)


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.slow), ".pt2"])
@pytest.mark.slow
def test_a_rule_of_mirrored_finer_object_maps_cut_by_otsu(tmp_path, suffix):
    """Its boxes are those of ``predict_boxes``; loaded as a source, what its own maps cannot give is said."""
    net = network()
    net.object_weight, net.object_map = torch.linspace(-1, 1, net.num_features), {"source": "test"}
    net.box_rule = BoxRule("pas", 90.0, OTSU, kind="object", flip=True, map_stride=1, regions="all")
    exported = camify.export(net, tmp_path / f"boxes{suffix}", boxes=True)
    assert exported.dynamic == ("batch", "height", "width")
    assert "one an image, of the largest region" in str(exported)
    images = torch.randn(3, 3, SIZE, SIZE)
    found = torch.from_numpy(run(exported.path, images)["boxes"])
    wanted = torch.cat([boxes[:1] for boxes in net.predict_boxes(images)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1.01)
    assert open_exported(exported.path).record["box_rule"] == net.box_rule.to_dict()
    source = resolve(str(exported.path))
    assert source.model.box_rule == replace(net.box_rule, map_stride=None)  # it has object maps
    assert "its own are coarser" in " ".join(source.notes)


def test_the_rule_of_a_file_is_used_as_far_as_its_maps_go(tmp_path):
    net = network()
    net.box_rule = BoxRule("ivr", 45.0, 0.3, kind="contrast", flip=True, map_stride=1)
    path = camify.export(net, tmp_path / "model.pt2", dynamic=False).path
    source = resolve(str(path))
    assert "chosen on maps of stride 1; its own are coarser" in " ".join(source.notes)
    rule = replace(net.box_rule, map_stride=None)
    assert source.model.box_rule == rule
    images = torch.randn(2, 3, SIZE, SIZE)
    pairs = zip(source.model.predict_boxes(images), net.predict_boxes(images, rule=rule), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1.01)


def test_without_a_rule_the_default_one_cuts_and_is_recorded():
    net = network()
    net.box_rule = None
    boxes = prepared(net, preprocess=False, boxes=True)
    about = {"preprocess": False, "size": (SIZE, SIZE), "channels": 3}
    assert file_metadata(net, outputs=boxes.outputs, **about)["box_rule"] == DEFAULT_RULE.to_dict()
    assert file_metadata(net, outputs=("logits", "maps"), **about)["box_rule"] is None
    images = torch.randn(4, 3, SIZE, SIZE)
    wanted = torch.cat(net.predict_boxes(images))
    with torch.no_grad():
        torch.testing.assert_close(boxes(images)[2], wanted)


def test_onnx_names_its_axes_and_says_how_to_use_it(net, files):
    model = onnx.load(files[".onnx"].path)
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["class_names"]) == net.class_names
    assert json.loads(properties["preprocessing"]) == net.preprocessing.to_dict()
    assert float(properties["threshold"]) == 0.4
    assert properties["normalizer"] == "minmax"
    assert json.loads(properties["map_stride"]) == [2.0, 2.0]
    assert json.loads(properties["camify.json"])["results"] == net.results
    assert str(camify.__path__[0]).encode() not in files[".onnx"].path.read_bytes()


@pytest.mark.slow
def test_pt2_runs_where_there_is_torch_alone(net, files, tmp_path):
    """In a Python that cannot import camify or torchvision."""
    code = f"""
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("camify", "torchvision", "timm", "pytorch_lightning"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import torch
extra = {{"camify.json": "", "class_names": ""}}
program = torch.export.load({str(files[".pt2"].path)!r}, extra_files=extra)
image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
logits, maps = program.module()(image)
print(json.dumps([logits.tolist(), list(maps.shape), json.loads(extra["class_names"])]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    logits, shape, names = json.loads(done.stdout)
    with torch.no_grad():
        expected = net(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert shape == [1, 4, 16, 16]
    assert names == net.class_names


def test_the_network_is_left_as_it_was(tmp_path):
    net = network().train()
    net.features.get_submodule("norm").eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    camify.export(net, tmp_path / "model.pt2")
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@SUFFIXES
def test_a_file_that_does_not_match_the_network_is_not_left(net, tmp_path, monkeypatch, suffix):
    from camify.exporters import export_file as exporting

    class Wrong(exporting._FILES[suffix][1]):
        def __call__(self, image):
            return {name: value * 1.001 for name, value in super().__call__(image).items()}

    monkeypatch.setitem(exporting._FILES, suffix, (exporting._FILES[suffix][0], Wrong))
    with pytest.raises(CheckpointError, match=r"differ by 1\.0e-03"):
        camify.export(net, tmp_path / f"model{suffix}", dynamic=False)
    assert list(tmp_path.iterdir()) == []


def test_fixed_sizes_are_said(net, tmp_path):
    exported = camify.export(net, tmp_path / "model.pt2", dynamic=False, input_size=(40, 24))
    assert exported.dynamic == ()
    assert exported.shapes == ((2, 3, 40, 24),)
    assert "dynamic axes: none" in str(exported)


class OneSize(torch.nn.Module):
    """Its features run at one size only: the position embedding is added to the map."""

    def __init__(self):
        super().__init__()
        self.conv, self.place = torch.nn.Conv2d(3, 6, 4, stride=4), torch.nn.Parameter(torch.randn(1, 6, 8, 8))
        self.last = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.last((self.conv(x) + self.place).relu().mean((2, 3)))


def test_what_cannot_vary_stays_fixed_and_is_said(tmp_path):
    net = network(OneSize, head="direct")
    exported = camify.export(net, tmp_path / "model.pt2")
    assert exported.dynamic == ("batch",)
    assert set(run(exported.path, torch.randn(3, 3, SIZE, SIZE))) == {"logits", "maps"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("model.pth", {}, "unknown suffix"),
        ("model.pt2", {"opset": 18}, "only .onnx has one"),
        ("model.pt2", {"input_size": 0}, "must be positive"),
        ("model.pt2", {"preprocess": True}, "does not say how"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_is_written(tmp_path, name, options, words):
    net = network()
    net.preprocessing = None
    with pytest.raises(ConfigError, match=words):
        camify.export(net, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_files_are_not_replaced_unasked(net, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        camify.export(net, path)
    assert path.read_text() == "mine"


def test_a_legacy_network_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="takes a CAMNet"):
        camify.export(torch.nn.Linear(2, 2), tmp_path / "model.pt2")


def test_the_record_says_what_the_logits_mean_and_older_ones_are_still_read(files):
    record = open_exported(files[".pt2"].path).record
    assert record["task"] is None, "nobody said"
    assert record["untrained"] == ["cam_conv", "classifier"], "as it was converted"
    older = {key: value for key, value in record.items() if key not in ("task", "untrained")}
    read = read_record(json.dumps(older), "old.onnx")
    assert (read["task"], read["untrained"]) == (None, [])
    for change in ({"task": "regression"}, {"task": "binary"}, {"untrained": "classifier"}, {"class_names": ["a"]}):
        with pytest.raises(CheckpointError, match=r"old\.onnx: .*camify\.json"):
            read_record(json.dumps(record | change), "old.onnx")


def test_an_older_torch_is_refused_before_work_starts(net, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0"))
    with pytest.raises(ConfigError, match=r"needs torch 2\.9 or newer.* installed: 2\.8\.0"):
        camify.export(net, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
