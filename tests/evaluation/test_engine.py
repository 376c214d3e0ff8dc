"""The one engine: its rows against the metrics, whose means they have, and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.ops import box_iou

from camify.evaluation.engine import (
    IOUS,
    answer_rows,
    baseline_rows,
    best_threshold,
    box_hits,
    center_box_hits,
    energy_row,
    faithfulness_rows,
    hits_where,
    map_rows,
    pixel_row,
    pointing_row,
    second_at_best,
    stability_rows,
)
from camify.metrics import (
    ADCC,
    AverageDrop,
    AverageIncrease,
    Coherency,
    Complexity,
    EnergyPointingGame,
    MaxBoxAccuracy,
    PixelAveragePrecision,
    PointingGame,
)
from camify.metrics.functional import area, average_precision, entropy
from camify.task import Classes

BOXES = [
    torch.tensor([[2.0, 3, 18, 20]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 5, 5], [20, 20, 30, 31]]),
    torch.tensor([[11.0, 4, 29, 30]]),
]  # fmt: skip


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(4, 1, 5, 5, generator=generator) - 0.3
    evidence = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")[:, 0]
    low, high = evidence.amin((1, 2), keepdim=True), evidence.amax((1, 2), keepdim=True)
    return (evidence - low) / (high - low), evidence


def known(row):
    return row[~row.isnan()]


def test_rows_have_the_means_of_the_metrics(maps):
    heat, evidence = maps
    rows = map_rows(heat, evidence, boxes=BOXES, threshold=0.4)
    first, second, point, energy = MaxBoxAccuracy(1), MaxBoxAccuracy(2), PointingGame(), EnergyPointingGame()
    for metric, values in ((first, heat), (second, heat), (point, heat), (energy, evidence)):
        metric.update(values, BOXES)
    boxed = torch.tensor([len(own) > 0 for own in BOXES])
    hits = (rows["largest"][boxed] >= 2).double().mean(0)
    torch.testing.assert_close(hits, first.compute()["curve"][0].double(), atol=1e-6, rtol=0)
    every = torch.stack([(rows["all"][boxed] > level).double().mean(0) for level in range(3)])
    torch.testing.assert_close(every, second.compute()["curve"].double(), atol=1e-6, rtol=0)
    assert float(known(rows["pointing_15px"]).mean()) == pytest.approx(float(point.compute()["accuracy"]))
    assert float(known(rows["energy"]).mean()) == pytest.approx(float(energy.compute()["energy"]), abs=1e-6)
    assert rows["pointing_15px"].isnan().tolist() == rows["energy"].isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(rows["entropy"], entropy(evidence))
    torch.testing.assert_close(rows["area"], area(heat))
    fixed = baseline_rows(BOXES, (32, 32), range(4), 0, None)
    center = (fixed["center box"]["largest"][boxed] >= 2).double().mean(0).max()
    assert float(center) == pytest.approx(float(first.compute()["center_box_acc"]))
    assert float(known(fixed["center box"]["pointing_15px"]).mean()) == float(point.compute()["center_accuracy"])
    uniform = float(energy.compute()["uniform_energy"])
    assert float(known(fixed["whole image"]["energy"]).mean()) == pytest.approx(uniform, abs=1e-6)


def test_boxes_by_brute_force(maps):
    heat, evidence = maps
    rows = map_rows(heat, evidence, boxes=BOXES, threshold=0.4)
    for index, truth in enumerate(BOXES):
        parts, count = ndimage.label(heat[index].numpy() >= np.float32(0.4), structure=np.ones((3, 3)))
        sizes = [ndimage.binary_fill_holes(parts == number + 1).sum() for number in range(count)]
        y, x = ndimage.find_objects(parts)[int(np.argmax(sizes))]
        box = torch.tensor([[x.start, y.start, x.stop, y.stop]]).double()
        iou = float(box_iou(box, truth.double()).max()) if len(truth) else -1.0
        assert int(rows["given"][index, 0]) == int(rows["largest"][index, 40]) == int((iou >= IOUS).sum())
        if len(truth):
            assert float(rows["iou"][index, 40]) == pytest.approx(iou, abs=1e-3)
            own = map_rows(heat, evidence, boxes=BOXES, predicted=[box] * 4)["box_rule"]
            assert int(own[index, 0]) == int((iou >= IOUS).sum())


def test_masks_stand_for_boxes(maps):
    heat, evidence = maps
    masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    masks[0, 3:20, 2:18] = True
    masks[2, :5, :5] = True
    rows = map_rows(heat, evidence, masks=masks)
    assert rows.keys() == {"entropy", "area", "pointing_15px", "energy"}
    for index in (0, 2):
        peak = divmod(int(heat[index].argmax()), 32)
        ys, xs = np.nonzero(masks[index].numpy())
        distance = np.sqrt(((ys - peak[0]) ** 2 + (xs - peak[1]) ** 2).min())
        assert float(rows["pointing_15px"][index]) == float(distance < 15)
        positive = evidence[index].clamp(min=0).double()
        assert float(rows["energy"][index]) == pytest.approx(float(positive[masks[index]].sum() / positive.sum()))
    assert rows["energy"].isnan().tolist() == [False, True, False, True]
    assert map_rows(heat, evidence).keys() == {"entropy", "area"}
    flat = map_rows(torch.zeros(1, 32, 32), torch.zeros(1, 32, 32), boxes=BOXES[:1])
    assert float(flat["pointing_15px"]) == 0, "a map without a peak points nowhere: a miss"


def test_faithfulness_rows_have_the_means_of_the_metrics(maps):
    heat, _ = maps
    scores, masked = torch.tensor([0.9, 0.2, 0.5, 0.0]), torch.tensor([0.3, 0.4, 0.5, 0.1])
    again = heat.flip(0)
    rows = faithfulness_rows(scores, masked, heat, again)
    updates = {
        "drop": (AverageDrop(), (scores, masked)),
        "increase": (AverageIncrease(), (scores, masked)),
        "complexity": (Complexity(), (heat,)),
        "coherency": (Coherency(), (heat, again)),
        "adcc": (ADCC(), (scores, masked, heat, again)),
    }
    assert rows.keys() == updates.keys()
    for name, (metric, values) in updates.items():
        metric.update(*values)
        assert float(rows[name].mean()) == pytest.approx(float(metric.compute()), abs=1e-6), name
    assert faithfulness_rows(scores, masked, heat).keys() == {"drop", "increase", "complexity"}
    assert faithfulness_rows(scores, masked).keys() == {"drop", "increase"}


def test_hits_say_what_the_levels_say(maps):
    heat, evidence = maps
    rows, fixed = map_rows(heat, evidence, boxes=BOXES), baseline_rows(BOXES, (32, 32), range(4), 0, None)
    for hits, levels in (
        (box_hits(heat, BOXES, largest=True), rows["largest"]),
        (box_hits(heat, BOXES, largest=False), rows["all"]),
        (center_box_hits(BOXES, (32, 32)), fixed["center box"]["all"]),
    ):
        assert hits[1].isnan().all(), "no box"
        torch.testing.assert_close(hits.nansum(1), levels.double())
        assert ((hits == 1) | (hits == 0))[[0, 2, 3]].all()


def test_rows_alone_are_those_of_all_together(maps):
    heat, evidence = maps
    masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    masks[:3, 3:20, 2:18] = True
    rows = map_rows(heat, evidence, masks=masks)
    torch.testing.assert_close(pointing_row(heat, masks), rows["pointing_15px"], equal_nan=True)
    torch.testing.assert_close(energy_row(evidence, masks), rows["energy"], equal_nan=True)
    assert energy_row(None, masks)[:3].tolist() == pytest.approx([17 * 16 / 32**2] * 3)
    assert energy_row(None, masks)[3].isnan()
    whole = PixelAveragePrecision()
    for given, name in ((heat, "px_ap"), (None, "center_gaussian_ap")):
        whole.reset()
        whole.update(heat, masks)
        mean = pixel_row(given, masks).mean(0)
        assert float(average_precision(mean)) == pytest.approx(float(whole.compute()[name]), abs=1e-6)
    flip, shift = heat.flip(0), heat.flip(1)
    both = stability_rows(heat, flip, shift)
    torch.testing.assert_close(stability_rows(heat, flip), {"flip": both["flip"]})
    torch.testing.assert_close(stability_rows(heat, heat_of_shifted=shift), {"shift": both["shift"]})


def test_statistics_of_mean_rows():
    hits = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0]])
    also = hits_where(hits, torch.tensor([True, False])).mean(0, keepdim=True)
    assert also.tolist() == [[[0.5, 1, 0.5, 0], [0, 0.5, 0.5, 0]]]
    assert second_at_best(also).tolist() == [0.5]
    assert best_threshold(hits).tolist() == [0.25, 0.0], "the first of equals"
    assert best_threshold(torch.full((1, 4), torch.nan)).isnan().all()


def test_stability_is_numpys_correlation(maps):
    heat, other = maps[0], maps[0].flip(0)
    rows = stability_rows(heat, other, other)
    for index in range(4):
        flip = np.corrcoef(heat[index].numpy().ravel(), other[index].numpy()[:, ::-1].ravel())[0, 1]
        shift = np.corrcoef(heat[index].numpy()[:-4, :-4].ravel(), other[index].numpy()[4:, 4:].ravel())[0, 1]
        assert float(rows["flip"][index]) == pytest.approx(flip, abs=1e-6)
        assert float(rows["shift"][index]) == pytest.approx(shift, abs=1e-6)
    assert stability_rows(torch.zeros_like(heat), other, other)["flip"].isnan().all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_answers(task):
    logits, labels = torch.tensor([[1.0, 3.0, 3.0], [0.5, -1.0, 2.0]]), torch.tensor([2, 0])
    rows = answer_rows(logits, labels, Classes.of(task, None, 3))
    assert rows["predicted"].tolist() == [1, 2]
    assert rows["ranks"].tolist() == [1, 1], "of equals the lower class comes first"
    wanted = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
    torch.testing.assert_close(rows["probabilities"], wanted[[0, 1], [2, 0]])
