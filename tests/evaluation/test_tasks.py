"""What the logits mean: probabilities, classes and figures of one-logit, multi-label and softmax-ended networks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.integrate
import torch
from PIL import Image
from torch import nn

import camify
from camify.cli.commands import main
from camify.conversion import Source
from camify.data import Preprocessing
from camify.evaluation import evaluate
from camify.evaluation.comparison import compare_files
from camify.evaluation.engine import ClassLogits, curve_rows
from camify.evaluation.network import explained_network, short_names
from camify.metrics.functional import area_under_curve, blurred, deletion_curves, insertion_curves
from camify.model import CAMNet


def small(bias, seed=0):
    torch.manual_seed(seed)
    net = CAMNet(nn.Sequential(nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.ReLU()), nn.Linear(4, len(bias))).eval()
    net.classifier.weight.data *= 0.01
    net.classifier.bias.data = torch.tensor(bias)
    net.preprocessing = Preprocessing(32)
    return net


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def two_folders(tmp_path):
    """Dark pictures in ``healthy``, bright ones in ``tumor``."""
    rng = np.random.default_rng(1)
    for name, low in (("healthy", 0), ("tumor", 150)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def entries(out):
    return [json.loads(line)["classes"] for line in (out / "results.jsonl").read_text().splitlines()]


def explained(net, photo, tmp_path, *more):
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    folder = net.save_pretrained(tmp_path / f"net{len(list(tmp_path.iterdir()))}")
    main(["explain", str(photo), "--model", str(folder), "--out", str(out), "--device", "cpu", *more])
    return entries(out)[0]


def test_one_logit_of_minus_four_is_a_probability_of_18_in_a_thousand(photo, tmp_path):
    net = small([-4.0])
    net.class_names = ["tumor"]
    with torch.no_grad():
        logit = float(net(Preprocessing(32).read(photo)[None]))
    (entry,) = explained(net, photo, tmp_path)
    assert entry["class"] == "tumor"
    assert entry["probability"] == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=1e-6)
    assert entry["probability"] == pytest.approx(0.018, abs=2e-3)
    first, second = explained(net, photo, tmp_path, "--topk", "2")
    assert [first["class"], second["class"]] == ["tumor", "not tumor"]
    assert second["logit"] == pytest.approx(-logit)
    assert first["probability"] + second["probability"] == pytest.approx(1)


def test_with_two_names_the_predicted_class_comes_first(photo, tmp_path):
    net = small([-4.0])
    net.class_names = ["healthy", "tumor"]
    first, second = explained(net, photo, tmp_path, "--topk", "2")
    assert [first["class"], second["class"]] == ["healthy", "tumor"]
    assert first["probability"] == pytest.approx(0.982, abs=2e-3)
    (only,) = explained(net, photo, tmp_path, "--targets", "tumor")
    assert only["probability"] == pytest.approx(0.018, abs=2e-3)


def test_three_labels_that_are_all_there_are_98_percent_each(photo, tmp_path, capsys):
    net = small([4.0, 4.0, 4.0])
    net.class_names, net.task = ["cat", "dog", "car"], "multilabel"
    assert [entry["probability"] for entry in explained(net, photo, tmp_path, "--topk", "3")] == pytest.approx(
        [0.982] * 3, abs=2e-3
    )
    net.task = "multiclass"
    labels = explained(net, photo, tmp_path, "--topk", "3", "--task", "multilabel")
    assert [entry["probability"] for entry in labels] == pytest.approx([0.982] * 3, abs=2e-3)
    assert "Assumed" not in capsys.readouterr().out


def test_a_task_that_had_to_be_assumed_is_said(photo, tmp_path, capsys):
    arguments = ["explain", photo, "--model", "camify/tiny_vgg", "--method", "gradcam", "--device", "cpu"]
    main([str(argument) for argument in [*arguments, "--out", tmp_path / "one"]])
    assert "Assumed: classes exclude each other (task multiclass)" in capsys.readouterr().out
    main([str(argument) for argument in [*arguments, "--out", tmp_path / "two", "--task", "multilabel"]])
    assert "Assumed: classes" not in capsys.readouterr().out
    (entry,) = entries(tmp_path / "two")[0]
    assert entry["probability"] == pytest.approx(torch.tensor(entry["logit"]).sigmoid().item(), abs=1e-5)
    with pytest.raises(SystemExit):
        main([str(argument) for argument in [*arguments, "--out", tmp_path / "three", "--task", "binary"]])
    assert "the network has 6 logits" in capsys.readouterr().err


def bright(sign=1.0):
    """One logit, positive for bright pictures."""
    net = CAMNet(nn.Conv2d(3, 2, 4, stride=4), nn.Linear(2, 1)).eval()
    net.features.weight.data.fill_(sign / 48)
    net.features.bias.data.zero_()
    net.classifier.weight.data.fill_(3.0)
    net.classifier.bias.data.zero_()
    net.preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return net


@pytest.mark.parametrize("names", [None, ["healthy", "tumor"], ["tumor"]])
def test_a_network_of_one_logit_is_measured_on_two_folders(two_folders, names):
    net = bright()
    net.class_names = names
    result = evaluate(net, two_folders, methods=["cam", "gradcam"], faithfulness=2, mosaics=0)
    assert result.accuracy["top1"].value == 1
    facts = dict(result.facts)
    assert "which speaks for tumor" in facts["task"]
    if names is None:
        assert "speaks for the second, tumor, against healthy" in facts["images"]
    if names == ["tumor"]:
        assert "healthy was taken for the absence of tumor" in facts["images"]
    images = torch.stack([net.preprocessing.read(path) for path in sorted(two_folders.rglob("*.png"))])
    with torch.no_grad():
        scores = net(images).sigmoid()[:, 0]
    wanted = torch.cat([1 - scores[:3], scores[3:]])  # of each folder's own class
    own = dict(zip(sorted(two_folders.rglob("*.png")), wanted.tolist(), strict=True))
    for path, value in zip(result.data.images.files, result.answers.probabilities.tolist(), strict=True):
        assert value == pytest.approx(own[path], abs=1e-6)
    net.class_names = ["cat", "dog"]
    with pytest.raises(camify.ConfigError, match="no class of the network"):
        evaluate(net, two_folders, mosaics=0, faithfulness=0)
    net.class_names = names
    assert evaluate(bright(-1.0), two_folders, mosaics=0, faithfulness=0).accuracy["top1"].value == 0


def test_multi_label_accuracy_says_what_it_asks(two_folders):
    net = small([0.0, 1.0, 2.0])
    net.class_names, net.task = ["healthy", "tumor", "scar"], "multilabel"
    result = evaluate(net, two_folders, mosaics=0, faithfulness=2)
    assert "labels do not exclude each other" in dict(result.facts)["task"]
    images = torch.stack([net.preprocessing.read(path) for path in sorted(two_folders.rglob("*.png"))])
    with torch.no_grad():
        wanted = net(images).sigmoid()[torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])]
    torch.testing.assert_close(result.answers.probabilities, wanted)


def test_a_softmax_is_not_taken_twice(two_folders):
    torch.manual_seed(0)
    bare = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    ).eval()
    bare[4].weight.data *= 8
    ended = nn.Sequential(*bare, nn.Softmax(1)).eval()
    for net in (bare, ended):
        net.preprocessing, net.class_names = Preprocessing(32), ["healthy", "tumor"]
    options = {"methods": ["gradcam"], "faithfulness": 4, "mosaics": 0}
    ours, theirs = evaluate(ended, two_folders, **options), evaluate(bare, two_folders, **options)
    torch.testing.assert_close(ours.answers.probabilities, theirs.answers.probabilities)
    for key, figure in theirs.faithfulness["gradcam"].items():
        assert ours.faithfulness["gradcam"][key].value == pytest.approx(figure.value, abs=1e-5), key
    network = explained_network(Source(ended, "ended", None, preprocessing=Preprocessing(32)), "ended", ["gradcam"])
    assert not any("assumed: classes" in note for note in network.notes), "the softmax says it"
    images, heat, targets = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32), torch.tensor([0, 1])
    with network.observe(images) as forward:
        rows = curve_rows(ClassLogits(forward), images, heat, targets, batch_size=7, steps=8)
    for name, curves in (("insertion", insertion_curves), ("deletion", deletion_curves)):
        wanted = area_under_curve(curves(bare, images, heat, targets, steps=8))
        torch.testing.assert_close(rows[name], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("names", [None, ["tumor"], ["healthy", "tumor"]])
def test_curves_of_one_logit_are_those_of_its_sigmoid(names):
    net = bright()
    net.class_names = names
    network = explained_network(Source(net, "net", names, preprocessing=net.preprocessing), "net", ["cam"])
    images, heat = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32)
    with network.observe(images) as forward:
        targets = torch.tensor([0, 1])
        rows = curve_rows(ClassLogits(forward), images, heat, targets, batch_size=5, steps=4)
    own = curve_rows(net, images, heat, targets, batch_size=5, steps=4)
    torch.testing.assert_close(own, rows, atol=1e-6, rtol=1e-5)
    stands_for = 1 if names is not None and len(names) == 2 else 0
    for name, start, end in (("insertion", None, images), ("deletion", images, torch.zeros_like(images))):
        start = blurred(images) if start is None else start
        order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
        for n in range(2):
            heights = []
            for step in range(5):
                mask = torch.zeros(1024, dtype=torch.bool)
                mask[order[n, : step * 1024 // 4]] = True
                mixed = torch.where(mask.reshape(32, 32), end[n], start[n])
                with torch.no_grad():
                    p = float(net(mixed[None]).sigmoid())
                heights.append(p if int(targets[n]) == stands_for else 1 - p)
            assert float(rows[name][n]) == pytest.approx(scipy.integrate.trapezoid(heights, dx=0.25), abs=1e-5)


def test_networks_of_one_logit_are_compared_with_the_absence_as_the_class_not_present(photo, tmp_path):
    net = small([-4.0])
    net.class_names = ["tumor"]
    folder = net.save_pretrained(tmp_path / "net")
    out = compare_files([str(photo)], [str(folder)], ["cam"], out=str(tmp_path / "out"), figures=1)
    document = json.loads((out / "compare.json").read_text())
    (image,) = document["images"]
    assert (image["compared_class"], image["absent_class"]) == ("tumor", "not tumor")
    assert image["probabilities"][0] == pytest.approx([0.018, 0.982], abs=2e-3)
    assert document["facts"]["task"] == f"{short_names([str(folder)])[0]}: binary"
