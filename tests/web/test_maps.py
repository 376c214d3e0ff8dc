"""The page's own numbers, in node, are those of Python: probabilities, maps, heat, boxes, colors."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camify.web
from camify.boxes import DEFAULT_RULE, BoxRule
from camify.drawing.primitives import heated_picture, tint_parts
from camify.maps import class_maps, map_weight, upsample
from camify.normalizers import NORMALIZERS, normalize_maps
from camify.task import Classes

MAPS = Path(camify.web.__file__).with_name("maps.js")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def in_node(cases, expression):
    """What an expression of the functions of maps.js gives for each case, in one process."""
    code = (
        f'import * as maps from "{MAPS.as_uri()}"; import {{ readFileSync }} from "node:fs";'
        'const cases = JSON.parse(readFileSync(0, "utf8"));'
        "const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);"
        f"console.log(JSON.stringify(cases.map((c) => {expression}), plain));"
    )
    command = [NODE, "--input-type=module", "-e", code]
    result = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def blobs(count, height, width, cells=7):
    """Smooth random maps."""
    return upsample(torch.randn(count, cells, cells + 2), (height, width))


TASKS = [
    ("multiclass", None, 4), ("multilabel", None, 4), ("binary", None, 1), ("binary", ("sick",), 1),
    ("binary", ("well", "sick"), 1),
]  # fmt: skip


@pytest.mark.parametrize(("task", "names", "count"), TASKS)
def test_probabilities_and_ranks(task, names, count):
    classes, logits = Classes.of(task, names, count), torch.randn(6, count) * 4
    network = {"task": task, "positive": classes.positive}
    answers = in_node(
        [{"network": network, "outputs": {"logits": row.tolist()}} for row in logits],
        "(() => { const l = maps.classLogits(c.network, c.outputs);"
        " return { l, p: maps.probabilities(c.network, l), order: maps.ranked(c.network, l) } })()",
    )
    two_sided = classes.two_sided(logits)
    np.testing.assert_allclose([a["l"] for a in answers], two_sided, rtol=1e-6)
    np.testing.assert_allclose([a["p"] for a in answers], classes.probabilities(two_sided), rtol=1e-5)
    assert [a["order"] for a in answers] == classes.ranked(two_sided, two_sided.shape[1]).tolist()


@pytest.mark.parametrize(("task", "names", "count"), TASKS)
def test_maps_of_every_kind_and_class(task, names, count):
    classes, exclusive = Classes.of(task, names, count), task != "multilabel"
    features, weight, shared = torch.randn(1, 5, 3, 4), torch.randn(count, 5), torch.randn(5)
    outputs = {"logits": [0.0] * count, "height": 3, "width": 4}
    outputs["maps"] = class_maps(features, weight).flatten().tolist()
    own = map_weight(weight, "object", shared, exclusive=exclusive)  # as exported files have it
    outputs["objectMaps"] = class_maps(features, own).flatten().tolist()
    network = {"task": task, "positive": classes.positive}
    kinds = [(kind, k) for kind in ("plain", "contrast", "object") for k in range(classes.count(count))]
    answers = in_node(
        [{"network": network, "outputs": outputs, "kind": kind, "index": k} for kind, k in kinds],
        "maps.classMap(c.network, c.outputs, c.index, c.kind)",
    )
    for (kind, k), answer in zip(kinds, answers, strict=True):
        wanted = map_weight(classes.two_sided(weight, 0), kind, shared, exclusive=exclusive)[k]
        np.testing.assert_allclose(answer, class_maps(features, wanted[None]).flatten(), atol=1e-5)


def test_a_mirrored_map_is_turned_back():
    one, other = torch.randn(2, 3, 4)
    (answer,) = in_node(
        [{"map": one.flatten().tolist(), "mirrored": other.flatten().tolist()}], "maps.mapToCut(c.map, c.mirrored, 4)"
    )
    np.testing.assert_allclose(answer, ((one + other.flip(-1)) / 2).flatten(), rtol=1e-6)


@pytest.mark.parametrize("size", [(20, 31), (7, 9), (3, 2), (1, 1)])
def test_upsampling(size):
    maps = torch.randn(2, 7, 9)
    cases = [{"map": map_HW.flatten().tolist(), "size": size} for map_HW in maps]
    answers = in_node(cases, "maps.upsampled(c.map, 7, 9, ...c.size)")
    np.testing.assert_allclose(answers, upsample(maps, size).flatten(1), atol=1e-5)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda normalizer: f"{normalizer.name} {normalizer.percentile}")
def test_normalizers(normalizer):
    maps = blobs(5, 12, 15)
    maps[1] -= 10  # no positive evidence
    maps[2] = 1 / 3  # nothing
    maps[3] = 0
    maps[3, 0, :3] = torch.tensor([1.0, 0.5, 2.0])  # the percentile is the minimum
    rule = {"normalizer": normalizer.name, "percentile": normalizer.percentile}
    answers = in_node(
        [{"map": map_HW.flatten().tolist(), "rule": rule} for map_HW in maps],
        "maps.normalized(Float32Array.from(c.map), c.rule)",
    )
    np.testing.assert_allclose(answers, normalize_maps(maps, *normalizer).flatten(1), atol=1e-5)


@pytest.mark.parametrize("regions", ["largest", "all"])
@pytest.mark.parametrize("threshold", ["otsu", 0.5])
def test_thresholds_and_boxes(threshold, regions):
    """Against OpenCV's outlines: regions with holes, others inside them, noise, ties, nothing."""
    rule, size = BoxRule(threshold=threshold, regions=regions), (24, 30)
    maps = torch.cat([blobs(6, *size), torch.rand(4, *size), torch.zeros(6, *size)])
    maps[10, 2:20, 3:22] = 1  # a frame, and a smaller filled region of more pixels of its own in it
    maps[10, 3:19, 4:21] = 0
    maps[10, 6:16, 6:18] = 1
    maps[11, 3:6, 2:5] = maps[11, 3:6, 20:23] = maps[11, 12:15, 1:4] = 1  # equally large
    maps[12, 0, 0] = maps[12, 1, 1] = maps[12, 2, 2] = 1  # joined by corners
    maps[13] = 1  # the same everywhere
    maps[14, 5, :] = 1
    about = {"rule": rule.to_dict(), "input_size": size}
    answers = in_node(
        [{"network": about, "map": map_HW.flatten().tolist()} for map_HW in maps],
        f"maps.boxesOf(c.network, {{ height: {size[0]}, width: {size[1]} }}, Float32Array.from(c.map), 48, 15)",
    )
    scale = torch.tensor([0.5, 2.0, 0.5, 2.0])
    for answer, boxes in zip(answers, rule.boxes(maps, size), strict=True):
        np.testing.assert_allclose(np.array(answer["boxes"]).reshape(-1, 4), boxes * scale)


def test_the_default_rule():
    maps, size = torch.randn(8, 7, 7), (56, 56)
    about = {"rule": DEFAULT_RULE.to_dict(), "input_size": size}
    answers = in_node(
        [{"network": about, "map": map_HW.flatten().tolist()} for map_HW in maps],
        "maps.boxesOf(c.network, { height: 7, width: 7 }, Float32Array.from(c.map), 56, 56)",
    )
    for answer, boxes in zip(answers, DEFAULT_RULE.boxes(maps, size), strict=True):
        np.testing.assert_allclose(answer["boxes"], boxes, atol=1.01)  # a pixel at the threshold falls to either side


def test_the_picture_under_heat_is_that_of_pythons_overlays():
    map_HW = torch.randn(5, 6)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    wanted, note = heated_picture(picture, map_HW, float(map_HW.max()), "inferno")
    assert note == ""
    case = {
        "map": map_HW.flatten().tolist(), "pixels": np.asarray(picture.convert("RGBA")).flatten().tolist(),
        "tint": tint_parts("inferno").tolist(),
    }  # fmt: skip
    (answer,) = in_node(
        [case],
        "(() => { const pixels = Uint8ClampedArray.from(c.pixels);"
        " maps.applyTint(pixels, maps.heatLevels(Float32Array.from(c.map), 5, 6, 40, 60).levels, c.tint);"
        " return pixels })()",
    )
    drawn = np.array(answer).reshape(40, 60, 4)[..., :3]
    assert np.abs(drawn - np.asarray(wanted).astype(int)).max() <= 1


def test_what_cannot_be_drawn_is_said():
    notes = in_node(
        [{"map": [-1.0, -2.0]}, {"map": [2.0, 2.0]}, {"map": [1.0, 2.0]}],
        "maps.heatLevels(Float32Array.from(c.map), 1, 2, 4, 4).note",
    )
    assert notes == ["No positive evidence.", "The map is the same everywhere.", ""]
