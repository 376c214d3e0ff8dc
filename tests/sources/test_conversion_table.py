"""The table of docs/guide/sources.md: what was seen to convert, from which kind of file.

    CAMIFY_WRITE_TABLE=1 python -m pytest -m slow tests/sources/test_conversion_table.py

writes it anew. Networks have random weights, with biases and statistics that are not those of a fresh network.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings

import pytest
import torch
import torchvision

import camify
from camify.errors import CamifyError
from camify.sources import resolve
from tests.documents import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PAGE = ROOT / "docs" / "guide" / "sources.md"
START, END = "<!-- table: what was seen to convert -->", "<!-- end of table -->"
TITLE = "| file | network | it is | `gap` | `direct` | `recast` |\n|---|---|---|---|---|---|\n"
SIDES = {"alexnet": 224, "inception_v3": 128}  # others: 64
OLD = [
    "alexnet",
    "squeezenet1_1",
    "resnet18",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "regnet_x_400mf",
    "convnext_tiny",
    "swin_t",
]
NEW = ["squeezenet1_1", "resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "googlenet"]
KERAS = [
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "DenseNet121",
    "Xception",
    "InceptionV3",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ConvNeXtTiny",
]
KERAS_SIDES = {"Xception": 96, "InceptionV3": 139}


def shaken(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.mul_(1 + 0.3 * torch.rand(value.shape, generator=generator))
            elif value.dim() == 1 and value.is_floating_point():
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return network.eval()


def onnx_file(name, folder, *, dynamo):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = shaken(torchvision.models.get_model(name, weights=None, num_classes=5, **options))
    side, path, printed = SIDES.get(name, 64), folder / "net.onnx", io.StringIO()
    image = torch.randn(1, 3, side, side)
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), path, dynamo=dynamo, **({} if dynamo else {"opset_version": 13}))
    return path


def keras_file(name, folder):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    side = KERAS_SIDES.get(name, 64)
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(input_shape=(side, side, 3), weights=None, classes=5)
    model.save(folder / "net.keras")
    return folder / "net.keras"


KINDS = {
    "ONNX, torch's exporter of `dynamo=False`": (OLD, lambda name, folder: onnx_file(name, folder, dynamo=False)),
    "ONNX, torch's exporter": (NEW, lambda name, folder: onnx_file(name, folder, dynamo=True)),
    "Keras": (KERAS, keras_file),
}


def cell(source, head, folder):
    """What became of a conversion that is saved and loaded again."""
    try:
        net = camify.convert(source, head=head, **({"head_channels": 8} if head == "gap" else {}))
        net.save_pretrained(folder / head)
        camify.load(folder / head)
    except CamifyError:
        return "no"
    error = net.certificate.legacy_error
    if error is None:
        return "new head"
    return "kept exactly" if error <= 1e-4 else "kept, pools last"


def row(kind, name, folder):
    source = resolve(str(KINDS[kind][1](name, folder)))
    assert not source.no_gradients, source.no_gradients
    verdict = camify.inspect(source).verdict
    cells = [cell(source, head, folder) for head in ("gap", "direct", "recast")]
    return f"| {kind} | {name} | {verdict} | {' | '.join(cells)} |\n"


def written():
    """The rows of the page, by kind and network."""
    table = PAGE.read_text().partition(START)[2].partition(END)[0]
    return {tuple(re.findall(r"[^|]+", line)[:2]): f"{line}\n" for line in table.splitlines() if line.startswith("| ")}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (names, _) in KINDS.items() for name in names])
def test_the_table_says_what_is_seen(kind, name, tmp_path):
    seen = row(kind, name, tmp_path)
    if os.environ.get("CAMIFY_WRITE_TABLE"):
        before, rest = PAGE.read_text().split(START)
        rows = {**written(), (f" {kind} ", f" {name} "): seen}
        order = [(f" {k} ", f" {n} ") for k, (names, _) in KINDS.items() for n in names]
        table = TITLE + "".join(rows[key] for key in order if key in rows)
        PAGE.write_text(f"{before}{START}\n\n{table}\n{END}{rest.split(END)[1]}")
    assert written()[f" {kind} ", f" {name} "] == seen
