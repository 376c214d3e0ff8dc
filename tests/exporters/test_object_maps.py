"""Exported files of a network with object maps give them beside the class maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import camify
from camify.exporters import open_exported

pytestmark = pytest.mark.slow


def network(task: str = "multiclass") -> camify.CAMNet:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.ReLU())
    net = camify.CAMNet(features, nn.Linear(6, 4)).eval()
    net.task, net.preprocessing = task, {"size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    camify.fit_object_map(net, torch.randn(8, 3, 32, 32))
    return net


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".onnx", "object"), (".pt2", None), (".pt2", "contrast"), pytest.param(".pt2", "object", marks=pytest.mark.slow)],
)
def test_they_are_an_output_beside_the_class_maps(tmp_path, suffix, kind):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    net, images = network(), torch.randn(3, 3, 32, 32)
    if kind is not None:
        net.box_rule = camify.BoxRule(kind=kind, threshold=0.4)
    done = camify.export(net, tmp_path / f"net{suffix}", boxes=kind is not None)
    assert done.outputs == ("logits", "maps", "object_maps", *(("boxes",) if kind else ()))
    outputs = open_exported(done.path)(images)
    with torch.no_grad():
        for name, key in (("maps", "plain"), ("object_maps", "object")):
            torch.testing.assert_close(outputs[name], net.forward_with_maps(images, kind=key)[1], atol=1e-4, rtol=1e-3)
    if kind:
        torch.testing.assert_close(outputs["boxes"], torch.cat(net.predict_boxes(images)))
    loaded = camify.sources.resolve(str(done.path)).model
    assert loaded.object_map == net.object_map
    with torch.no_grad():
        for key in ("plain", "contrast", "object"):
            for one, other in zip(
                net.forward_with_maps(images, kind=key), loaded.forward_with_maps(images, kind=key), strict=True
            ):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_of_classes_that_do_not_exclude_each_other(tmp_path):
    net, images = network("multilabel"), torch.randn(2, 3, 32, 32)
    done = camify.export(net, tmp_path / "net.pt2")
    with torch.no_grad():
        expected = net.forward_with_maps(images, kind="object")[1]
        torch.testing.assert_close(open_exported(done.path)(images)["object_maps"], expected, atol=1e-4, rtol=1e-3)
        loaded = camify.sources.resolve(str(done.path)).model
        torch.testing.assert_close(loaded.forward_with_maps(images, kind="object")[1], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "contrast", "object"])
def test_explain_gives_the_map_of_a_kind(kind):
    net, images = network(), torch.randn(2, 3, 32, 32)
    raw = camify.explain(net, images, kind=kind, targets=1, normalize=None, size=None)
    with torch.no_grad():
        torch.testing.assert_close(raw, net.forward_with_maps(images, kind=kind)[1][:, 1])
