"""Half precision and int8 say what they lose, and lose little on a network whose answers are not ties."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import camify
from camify.errors import ConfigError
from camify.exporters import open_exported
from tests.exporters.conftest import SIZE


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_the_loss_is_measured_on_images_that_did_not_calibrate(net, tmp_path, precision):
    images = torch.randn(24, 3, SIZE, SIZE)
    with torch.no_grad():
        logits, maps = net.forward_with_maps(images[1::2])
    labels = torch.zeros(24, dtype=torch.long)
    labels[1::2] = logits.argmax(1)
    exported = camify.export(net, tmp_path / "model.onnx", precision=precision, images=images, labels=labels)
    session = onnxruntime.InferenceSession(str(exported.path))
    theirs = session.run(None, {"image": images[1::2].numpy()})
    top = logits.argmax(1)
    pairs = zip(maps[torch.arange(12), top].numpy(), theirs[1][np.arange(12), top], strict=True)
    expected = np.mean([np.corrcoef(ours.ravel(), one.ravel())[0, 1] for ours, one in pairs])
    assert exported.loss.images == 12
    assert exported.loss.map_correlation == pytest.approx(expected, abs=1e-4)
    assert exported.loss.agreement == np.mean(theirs[0].argmax(1) == top.numpy())
    assert exported.loss.accuracy == (1.0, exported.loss.agreement)
    assert exported.loss.map_correlation > 0.99
    assert open_exported(exported.path).record["precision"] == precision
    kinds = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert ("QuantizeLinear" in kinds) == (precision == "int8")
    assert ("Cast" in kinds) == (precision == "fp16")


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.pt2", {"precision": "int8"}), ("a.onnx", {"precision": "int8"}), ("a.onnx", {"precision": "int4"}),
     ("a.onnx", {"precision": "fp16", "boxes": True, "images": torch.randn(4, 3, SIZE, SIZE)}),
     ("a.onnx", {"precision": "int8", "dynamic": False, "images": torch.randn(2, 3, SIZE, SIZE)})],
)  # fmt: skip
def test_what_cannot_be_is_refused(net, tmp_path, name, options):
    with pytest.raises(ConfigError, match="precision"):
        camify.export(net, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []
