"""One rule cuts boxes: what explain, compare and evaluate write is what ``predict_boxes`` gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.boxes import DEFAULT_RULE, OTSU, BoxRule
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.evaluation import evaluate
from camify.evaluation.comparison import compare_files
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.network import box_maps, explained_network
from camify.methods import make_methods, observe
from camify.metrics.functional import iou_with_best_box
from camify.model import CAMNet
from camify.sources import Source

RULES = {
    "default": None,
    "ivr": BoxRule("ivr", 45.0, threshold=0.3, count=9, accuracy=0.5),
    "positive weights": BoxRule("max", threshold=0.6, clamp_weights=True),
    "pas": BoxRule("pas", 90.0, threshold=0.35, source="mosaics"),
    "object, mirrored, finer, Otsu": BoxRule("pas", 90.0, OTSU, kind="object", flip=True, map_stride=2),
}


def network(rule):
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()]
    net = CAMNet(nn.Sequential(*layers), nn.Linear(8, 3)).eval()
    net.object_weight, net.object_map = torch.linspace(-1, 1, 8), {}
    net.class_names, net.preprocessing, net.box_rule = ["ant", "bee", "cat"], Preprocessing((48, 64)), rule
    return net


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(2)
    for index, (width, height) in enumerate([(128, 48), (64, 96), (77, 50)]):
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        (tmp_path / "in" / "bee").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / "in" / "bee" / f"{index}.png")
    return sorted((tmp_path / "in" / "bee").iterdir())


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_explained_boxes_are_those_of_predict_boxes(rule, photos, tmp_path):
    net = network(rule)
    explained = explained_network(Source.of(net), "here", ("cam", "gradcam"))
    done = explain_files(explained, photos, tmp_path / "out", ExplainOptions(topk=2), batch_size=2)
    images = torch.stack([net.preprocessing.read(path) for path in photos])
    with torch.no_grad():
        ranked = net(images).topk(2).indices
    assert any(len(own) for own in net.predict_boxes(images, ranked[:, 0], rule=rule))
    for t in range(2):
        boxes = net.predict_boxes(images, ranked[:, t], rule=rule)
        for line, own in zip(lines(tmp_path / "out"), boxes, strict=True):
            height, width = line["size"]
            box = line["classes"][t]["maps"]["cam"]["box"]
            if not len(own):  # the map shows nothing
                assert box is None
                continue
            wanted = own[0] * torch.tensor([width / 64, height / 48] * 2)
            assert box == pytest.approx(wanted.tolist(), abs=0.051)
    record = json.loads((tmp_path / "out" / "explain.json").read_text())["box_rules"]
    assert record["cam"]["threshold"] == (rule or DEFAULT_RULE).threshold
    assert record["cam"]["normalizer"] == (rule or DEFAULT_RULE).normalizer
    assert record["gradcam"] == DEFAULT_RULE.to_dict()
    assert done.box_rules["cam"] == (rule or DEFAULT_RULE)


def test_a_given_threshold_overrides_the_rule_and_is_said(photos, tmp_path, capsys):
    net = network(RULES["ivr"])
    folder = net.save_pretrained(tmp_path / "net")
    arguments = ["explain", *photos, "--model", folder, "--device", "cpu", "--out"]
    main([str(argument) for argument in [*arguments, tmp_path / "own"]])
    assert "Boxes: cam: ivr 45 >= 0.3 (the network's rule, from boxes)" in capsys.readouterr().out
    main([str(argument) for argument in [*arguments, tmp_path / "given", "--threshold", "0.8"]])
    assert "threshold as given: cam: ivr 45 >= 0.8" in capsys.readouterr().out
    images = torch.stack([net.preprocessing.read(path) for path in photos])
    boxes = net.predict_boxes(images, rule=BoxRule("ivr", 45.0, threshold=0.8))
    for line, (box,) in zip(lines(tmp_path / "given"), boxes, strict=True):
        height, width = line["size"]
        wanted = box * torch.tensor([width / 64, height / 48] * 2)
        assert line["classes"][0]["maps"]["cam"]["box"] == pytest.approx(wanted.tolist(), abs=0.051)
    record = json.loads((tmp_path / "given" / "explain.json").read_text())
    assert (record["threshold"], record["box_rules"]["cam"]["threshold"]) == (0.8, 0.8)
    explained = explained_network(Source.of(net), str(folder), ("cam",))
    with pytest.raises(camify.ConfigError, match=r"other settings \(threshold, box_rules\)"):
        explain_files(explained, photos, tmp_path / "given", ExplainOptions(threshold=0.7))


def test_a_pixel_at_the_threshold_belongs_to_the_box():
    net = CAMNet(nn.Identity(), nn.Linear(1, 1, bias=False)).eval()
    net.classifier.weight.data.fill_(1.0)
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1:3] = torch.tensor([1.0, 0.5])
    assert net.predict_boxes(image, rule=BoxRule())[0].tolist() == [[1, 1, 3, 2]]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_compared_boxes_agree_as_those_of_predict_boxes(rule, photos, tmp_path):
    folders = []
    for name, seed_rule in (("one", rule), ("two", BoxRule(threshold=0.2))):
        net = network(seed_rule)
        net.classifier.weight.data += 0.1 * (name == "two")
        folders.append(net.save_pretrained(tmp_path / name))
    out = compare_files(
        [str(path) for path in photos], list(map(str, folders)), ["cam"], out=str(tmp_path / "out"), figures=0
    )
    document = json.loads((out / "compare.json").read_text())
    nets = [camify.load(folder) for folder in folders]
    images = torch.stack([nets[0].preprocessing.read(path) for path in photos])
    with torch.no_grad():
        classes = nets[0](images).argmax(1)
    first, second = (net.predict_boxes(images, classes, rule=net.box_rule) for net in nets)
    ious = [float(iou_with_best_box(a, b)) for a, b in zip(first, second, strict=True)]
    mean = document["groups"]["overall"]["agreement"]["box_iou"]["mean"]
    assert mean[0][1] == pytest.approx(np.mean(ious), abs=1e-5)
    assert document["box_rules"]["two: cam"]["threshold"] == 0.2


def test_evaluate_measures_the_networks_own_rule(photos, tmp_path):
    table = ["image,x0,y0,x1,y1,label", *(f"bee/{path.name},5,5,60,45,bee" for path in photos)]
    (tmp_path / "in" / "boxes.csv").write_text("\n".join(table))
    net = network(RULES["positive weights"])
    result = evaluate(net, tmp_path / "in", methods=["cam", "gradcam"], faithfulness=0, mosaics=0)
    images = torch.stack([net.preprocessing.read(path) for path in photos])
    hits = []
    for path, own in zip(photos, net.predict_boxes(images, torch.ones(3, dtype=torch.long)), strict=True):
        with Image.open(path) as file:
            width, height = file.size
        truth = torch.tensor([[5.0, 5, 60, 45]]) * torch.tensor([64 / width, 48 / height] * 2)
        hits.append(float(iou_with_best_box(own, truth)) >= 0.5)
    assert result.localization["cam"]["box_rule"].value == pytest.approx(np.mean(hits))
    assert "box_rule" not in result.localization["gradcam"]
    net.box_rule = None
    assert "box_rule" not in evaluate(net, tmp_path / "in", faithfulness=0, mosaics=0).localization["cam"]


def test_object_maps_of_one_logit_share_the_object_on_both_sides():
    torch.manual_seed(0)
    net = camify.CAMNet(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 1)).eval()
    net.class_names, images, targets = ["no", "yes"], torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    net.object_weight, net.object_map = torch.randn(4), {"source": "test"}
    rule = BoxRule(kind="object")
    method = make_methods(net, ["cam"])["cam"]
    with torch.no_grad(), observe(net, images, task="binary") as forward:
        maps = box_maps(method, rule, forward, method.raw_maps(forward, targets), targets)
        features = net.forward_features(images)
    weight = torch.cat([-net.classifier.weight, net.classifier.weight]) + net.object_weight
    expected = torch.einsum("nchw,nc->nhw", features, weight[targets])
    torch.testing.assert_close(maps, expected.detach())
