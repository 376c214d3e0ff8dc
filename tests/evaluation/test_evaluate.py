"""Figures of an evaluation, beside what follows from the network and the pictures by another way."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torchvision.ops import box_iou

import camify
from camify.evaluation import evaluate
from camify.maps import upsample
from camify.metrics import (
    EnergyPointingGame,
    GridPointingGame,
    LocalizationAccuracy,
    MaxBoxAccuracy,
    PointingGame,
)
from camify.metrics.functional import (
    area_under_curve,
    blurred,
    center_gaussian,
    deletion_curves,
    hard_subset,
    insertion_curves,
    mosaics,
)

from .conftest import METHODS, NAMES, PREPROCESSING, SAMPLE, SHOWN


@pytest.fixture(scope="session")
def by_hand(net, root):
    """Inputs, boxes at their size, labels, logits and heats, read without the evaluation's readers."""
    rows = list(csv.DictReader((root / "boxes.csv").read_text().splitlines()))
    images, boxes, labels = [], [], []
    for name in sorted(SHOWN):
        for path in sorted((root / "val" / name).iterdir()):
            images.append(PREPROCESSING.read(path))
            own = [r for r in rows if r["image"] == f"val/{name}/{path.name}" and r["label"] == name]
            with Image.open(path) as picture:
                factors = torch.tensor([32 / picture.width, 32 / picture.height] * 2)
            pixels = [[float(r[key]) for key in ("x0", "y0", "x1", "y1")] for r in own]
            boxes.append(torch.tensor(pixels).reshape(-1, 4) * factors)
            labels.append(NAMES.index(name))
    inputs, classes = torch.stack(images), torch.tensor(labels)
    with torch.no_grad():
        logits = net(inputs)
    heats = camify.explain(net, inputs, method=METHODS, targets=classes)
    raw = camify.explain(net, inputs, method=METHODS, targets=classes, normalize=None, size=None)
    return SimpleNamespace(images=inputs, boxes=boxes, labels=classes, logits=logits, heats=heats, raw=raw)


def largest_box_iou(heat, threshold, truth):
    """The IoU of the tight box of the component of most pixels, its holes included."""
    parts, count = scipy.ndimage.label(heat >= np.float32(threshold), structure=np.ones((3, 3)))
    sizes = [scipy.ndimage.binary_fill_holes(parts == number + 1).sum() for number in range(count)]
    y, x = scipy.ndimage.find_objects(parts)[int(np.argmax(sizes))]
    box = torch.tensor([[x.start, y.start, x.stop, y.stop]]).double()
    return float(box_iou(box, truth.double()).max())


def likeness(maps, others):
    """Pearson's correlation of every two maps."""
    pairs = (torch.stack(pair).flatten(1) for pair in zip(maps, others, strict=True))
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])


def test_accuracy(found, by_hand):
    order = by_hand.logits.argsort(1, descending=True)
    assert found.accuracy["top1"].value == pytest.approx(float((order[:, 0] == by_hand.labels).double().mean()))
    hits = (order[:, :5] == by_hand.labels[:, None]).any(1)
    assert found.accuracy["top5"].value == pytest.approx(float(hits.double().mean()))
    assert found.accuracy["top1"].count == 12


@pytest.mark.parametrize("method", METHODS)
def test_boxes_by_brute_force(found, by_hand, method):
    boxed = [index for index, truth in enumerate(by_hand.boxes) if len(truth)]
    assert len(boxed) == 11
    heats = by_hand.heats[method].numpy()
    ious = np.array([[largest_box_iou(heats[i], t / 100, by_hand.boxes[i]) for i in boxed] for t in range(100)])
    shares = (ious >= 0.5).mean(1)
    figures = found.localization[method]
    assert figures["max_box_acc_v1"].value == pytest.approx(shares.max())
    assert figures["threshold"].value == pytest.approx(shares.argmax() / 100)
    assert figures["max_box_acc_v1"].count == 11


@pytest.mark.parametrize("method", [*METHODS, "center Gaussian"])
@pytest.mark.parametrize("part", ["localization", "hard"])
def test_localization_equals_the_metrics(found, by_hand, method, part):
    heats = by_hand.heats[method] if method in METHODS else center_gaussian(32, 32).expand(12, 32, 32)
    evidence = heats
    if method in METHODS:
        raw = by_hand.raw[method]
        evidence = upsample(raw if method == "cam" else raw.relu(), (32, 32))
    hard = hard_subset(by_hand.boxes, [(32, 32)] * 12)
    assert 0 < hard.sum() < 11
    kept = [i for i, truth in enumerate(by_hand.boxes) if len(truth) and (part == "localization" or hard[i])]
    boxes, heats, evidence = [by_hand.boxes[i] for i in kept], heats[kept], evidence[kept]
    one, two, local = MaxBoxAccuracy(1), MaxBoxAccuracy(2), LocalizationAccuracy()
    point, energy = PointingGame(), EnergyPointingGame()
    for metric in (one, two):
        metric.update(heats, boxes)
    local.update(heats, boxes, by_hand.logits[kept], by_hand.labels[kept])
    point.update(heats, boxes)
    energy.update(evidence, boxes)
    first, second, third = one.compute(), two.compute(), local.compute()
    wanted = {
        "max_box_acc_v1": first["max_box_acc"],
        "max_box_acc_v2": second["max_box_acc"],
        **{f"v2_{iou}": curve.max() for iou, curve in zip((0.3, 0.5, 0.7), second["curve"], strict=True)},
        "over_center_box": first["max_box_acc"] - first["center_box_acc"],
        "gt_known": third["gt_known"],
        "top1_loc": third["top1"],
        "top5_loc": third["top5"],
        "threshold": first["best_threshold"],
        "pointing": point.compute()["accuracy"],
        "energy": energy.compute()["energy"],
    }
    figures = getattr(found, part)[method]
    assert figures.keys() == wanted.keys()
    for name, value in wanted.items():
        assert figures[name].value == pytest.approx(float(value), abs=1e-5), name
        assert figures[name].count == len(kept)


def test_fixed_boxes_are_the_metrics_baselines(found, by_hand):
    boxed = [i for i, truth in enumerate(by_hand.boxes) if len(truth)]
    boxes, heats = [by_hand.boxes[i] for i in boxed], by_hand.heats["cam"][boxed]
    two, local, energy, point = MaxBoxAccuracy(2), LocalizationAccuracy(), EnergyPointingGame(), PointingGame()
    for metric in (two, energy, point):
        metric.update(heats, boxes)
    local.update(heats, boxes, by_hand.logits[boxed], by_hand.labels[boxed])
    center, whole = found.localization["center box"], found.localization["whole image"]
    assert center["max_box_acc_v2"].value == pytest.approx(float(two.compute()["center_box_acc"]))
    assert whole["max_box_acc_v2"].value == pytest.approx(float(two.compute()["whole_image_acc"]))
    for name, other in (("gt_known", "center_gt_known"), ("top1_loc", "center_top1"), ("top5_loc", "center_top5")):
        assert center[name].value == pytest.approx(float(local.compute()[other]))
    assert whole["energy"].value == pytest.approx(float(energy.compute()["uniform_energy"]), abs=1e-6)
    assert center["pointing"].value == pytest.approx(float(point.compute()["center_accuracy"]))
    assert center["over_center_box"].value == 0
    assert found.hard["center box"]["max_box_acc_v1"].value == 0
    assert "threshold" not in center
    assert np.isnan(center["energy"].value)
    hard = hard_subset(boxes, [(32, 32)] * 11, 0.7).double().mean()
    assert found.hard_share["0.7"].value == pytest.approx(float(hard))


def test_a_given_threshold_is_that_of_the_loc_figures(net, root, by_hand):
    found = evaluate(net, root, threshold=0.215, faithfulness=0, mosaics=0)
    boxed = [i for i, truth in enumerate(by_hand.boxes) if len(truth)]
    ious = [largest_box_iou(by_hand.heats["cam"][i].numpy(), 0.215, by_hand.boxes[i]) for i in boxed]
    right = (by_hand.logits.argmax(1) == by_hand.labels)[boxed].numpy()
    assert found.localization["cam"]["gt_known"].value == pytest.approx(np.mean(np.array(ious) >= 0.5))
    assert found.localization["cam"]["top1_loc"].value == pytest.approx(np.mean((np.array(ious) >= 0.5) & right))
    assert found.faithfulness == {}
    assert "grid" not in found.without_boxes["cam"]


def test_mosaics_equal_the_metric(found, net, by_hand):
    """The plan is drawn from the labels: the same as when all images are at hand."""
    images, classes = mosaics(by_hand.images, by_hand.labels, seed=7)
    assert len(images) == 3
    with torch.no_grad():
        maps = net.forward_with_maps(images)[1]
    metric = GridPointingGame()
    for cell in range(4):
        own = maps[torch.arange(3), classes[:, cell]]
        metric.update(upsample(own, (64, 64)), torch.full((3,), cell))
    grid = found.without_boxes["cam"]["grid"]
    assert grid.value == pytest.approx(float(metric.compute()["grid_pointing"]), abs=1e-6)
    assert grid.count == 3
    means = [found.classes[NAMES.index(name)]["cam"]["grid"] for name in SHOWN]
    assert np.mean(means) == pytest.approx(grid.value)


@pytest.mark.parametrize("method", METHODS)
def test_the_sample_by_hand(found, net, by_hand, method):
    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(7))[:SAMPLE].sort().values
    images = by_hand.images[drawn]
    with torch.no_grad():
        scores, targets = net(images).softmax(1).max(1)

    def heat(inputs):
        return camify.explain(net, inputs, method=method, targets=targets)

    own = heat(images)
    masked = images * own[:, None]
    with torch.no_grad():
        after = net(masked).softmax(1)[torch.arange(SAMPLE), targets]
    like = likeness(own, heat(masked))
    coherency, covered = (1 + like) / 2, own.mean((1, 2))
    drop = (scores - after).clamp(min=0) / scores
    mirrored = heat(images.flip(-1)).flip(-1)
    flip = likeness(own, mirrored)
    padded = torch.nn.functional.pad(images, (4, 0, 4, 0), mode="replicate")[..., :32, :32]
    shift = likeness(own[:, :28, :28], heat(padded)[:, 4:, 4:])
    wanted = {
        "drop": drop,
        "increase": (after > scores).float(),
        "coherency": coherency,
        "complexity": covered,
        "adcc": 3 / (1 / coherency + 1 / (1 - covered) + 1 / (1 - drop)),
        "insertion": area_under_curve(insertion_curves(net, images, own, targets, steps=32, baseline=blurred(images))),
        "deletion": area_under_curve(deletion_curves(net, images, own, targets, steps=32, baseline=0.0)),
    }
    figures = found.faithfulness[method]
    assert figures.keys() == wanted.keys()
    for name, values in wanted.items():
        assert figures[name].value == pytest.approx(float(values.mean()), abs=1e-4), name
        assert figures[name].count == SAMPLE
    assert found.without_boxes[method]["flip"].value == pytest.approx(float(flip.mean()), abs=1e-4)
    assert found.without_boxes[method]["shift"].value == pytest.approx(float(shift.mean()), abs=1e-4)


def test_maps_that_know_nothing_are_masked_too(found, net, by_hand):
    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(7))[:SAMPLE]
    images = by_hand.images[drawn]
    with torch.no_grad():
        scores, targets = net(images).softmax(1).max(1)
        after = net(images * center_gaussian(32, 32)).softmax(1)[torch.arange(SAMPLE), targets]
    drop = ((scores - after).clamp(min=0) / scores).mean()
    assert found.faithfulness["center Gaussian"]["drop"].value == pytest.approx(float(drop), abs=1e-5)
    assert found.faithfulness.keys() == {*METHODS, "center Gaussian", "random map"}
    assert "coherency" not in found.faithfulness["random map"]


def test_figures_by_class(found, by_hand):
    cut = round(found.localization["cam"]["threshold"].value * 100) / 100
    for name in SHOWN:
        number = NAMES.index(name)
        own = [i for i, label in enumerate(by_hand.labels.tolist()) if label == number]
        boxed = [i for i in own if len(by_hand.boxes[i])]
        heats = by_hand.heats["cam"].numpy()
        hits = [largest_box_iou(heats[i], cut, by_hand.boxes[i]) >= 0.5 for i in boxed]
        figures = found.classes[number]
        assert figures["cam"]["max_box_acc_v1"] == pytest.approx(np.mean(hits))
        assert figures["network"]["count"] == 3
        assert figures["network"]["with_boxes"] == len(boxed)
        assert figures["network"]["top1"] == pytest.approx(
            float((by_hand.logits[own].argmax(1) == number).double().mean())
        )
    assert found.classes.keys() == {NAMES.index(name) for name in SHOWN}


def test_batches_and_random_draws_do_not_depend_on_each_other(found, net, root):
    torch.manual_seed(99)
    other = evaluate(net, root, methods=METHODS, batch_size=3, faithfulness=SAMPLE, seed=7)
    for part in ("localization", "hard", "without_boxes", "faithfulness"):
        for name, figures in getattr(found, part).items():
            for key, one in figures.items():
                again = getattr(other, part)[name][key]
                pair = [(x.value, x.low, x.high, x.count) for x in (one, again)]
                assert pair[0] == pytest.approx(pair[1], abs=1e-5, nan_ok=True), (part, name, key)


def test_the_network_is_left_as_it_was(net, root):
    net.train()
    net.features[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        evaluate(net, root, methods=METHODS, limit=4, faithfulness=1)
        assert net.training
        assert not net.features[0].training
        assert all(parameter.grad is None for parameter in net.parameters())
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    finally:
        net.eval()


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_exported_file_gives_the_figures_of_its_network(net, root, tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"model{suffix}"
    camify.export(net, file, input_size=32)
    options = {"faithfulness": 2, "mosaics": 2, "seed": 7}
    ours, theirs = evaluate(net, root, **options), evaluate(str(file), root, **options)
    assert theirs.accuracy == ours.accuracy
    for key, figure in ours.localization["cam"].items():
        assert theirs.localization["cam"][key].value == pytest.approx(figure.value, abs=1e-6)
    for key, figure in ours.faithfulness["cam"].items():
        assert theirs.faithfulness["cam"][key].value == pytest.approx(figure.value, abs=1e-4)
    with pytest.raises(camify.ConfigError, match="cam is what it can show"):
        evaluate(str(file), root, methods=["gradcam"])
