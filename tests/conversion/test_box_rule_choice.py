"""The choice of a box rule: by hand on small tables, and on networks whose maps are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import camify
from camify.boxes import DEFAULT_RULE, OTSU, BoxRule
from camify.conversion.box_rule_choice import chosen
from camify.metrics.functional import box_ious, iou_with_best_box
from camify.normalizers import NORMALIZERS


def test_the_ious_are_those_of_the_rules_boxes():
    """No value of these maps lies within the rounding of a threshold, but of percentiles' and of Otsu's."""
    generator = torch.Generator().manual_seed(4)
    maps = (torch.randint(0, 40, (4, 10, 12), generator=generator) + 0.5) / 40 - 0.4
    maps[:, 0, 0], maps[:, 5, 5] = -0.4, 0.6
    truths = [torch.tensor([[2.0, 3, 9, 8], [0, 0, 5, 5]])] * 4
    table = box_ious(maps, truths, count=10)
    assert list(table) == list(NORMALIZERS)
    near = {}
    for normalizer, ious in table.items():
        for column, threshold in enumerate([*(k / 10 for k in range(10)), OTSU]):
            boxes = BoxRule(*normalizer, threshold).boxes(maps, (10, 12))
            wanted = [float(iou_with_best_box(box, truths[0])) if len(box) else 0.0 for box in boxes]
            near[normalizer, threshold] = np.abs(ious[:, column].numpy() - wanted) < 1e-6
    assert np.all([hit for (by, threshold), hit in near.items() if by.percentile is None and threshold != OTSU])
    assert np.mean(list(near.values())) > 0.9


def test_what_costs_more_must_be_better_by_two_standard_errors():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scores = rng.random((3, 4, 25)) * 0.2
        scores[1, 2] += rng.random() * 0.2
        best = (0, 3)
        for forward in range(3):
            candidate = (forward, int(scores[forward].mean(1).argmax()))
            gain = scores[candidate] - scores[best]
            if gain.mean() > 2 * gain.std(ddof=1) / 5:
                best = candidate
        assert chosen(torch.from_numpy(scores), (0, 3)) == best
    same = torch.rand(1, 4, 25).expand(3, -1, -1)
    assert chosen(same, (0, int(same[0].mean(1).argmax())))[0] == 0, "what changes nothing costs nothing"


SIDE = 16


def photographs(count, seed=0):
    """Images whose channel 0 is the object, whose channel 1 is another place, and the object's box."""
    generator = torch.Generator().manual_seed(seed)
    images, boxes = 0.05 * torch.rand(count, 3, SIDE, SIDE, generator=generator), []
    for image in images:
        x, y, w, h = torch.randint(2, 8, (4,), generator=generator).tolist()
        image[0, y : y + h, x : x + w] += 1
        image[1, SIDE - h : SIDE, :w] += 1
        boxes.append(torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32))
    return images, boxes


def network(plain, shared=None):
    """Two classes of about equal weights: their maps are channels of the image."""
    net = camify.CAMNet(nn.Identity(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net.classifier.weight.copy_(torch.tensor([plain, plain]) + torch.tensor([[0, 0, 0.05], [0, 0, -0.05]]))
    if shared is not None:
        net.object_weight, net.object_map = torch.tensor(shared), {}
    return net


def hits(net, images, boxes, labels, rule):
    found = net.predict_boxes(images, labels, rule=rule)
    pairs = zip(found, boxes, strict=True)
    return [bool(len(box)) and float(iou_with_best_box(box, true)) >= 0.5 for box, true in pairs]


def test_the_kind_of_maps_that_finds_the_object_is_chosen():
    (images, boxes), labels = photographs(20), torch.arange(20) % 2
    right = camify.choose_box_rule(network([0, 1.0, 0], [1.0, 0, 0]), images, boxes, labels=labels)
    assert (right.kind, right.source, right.count, right.accuracy) == ("object", "boxes", 20, 1.0)
    assert (right.flip, right.map_stride) == (False, None), "mirroring changes nothing here"
    net = network([1.0, 0, 0], [0, 1.0, 0])
    rule = camify.choose_box_rule(net, images, boxes, labels=labels)
    assert rule.kind == "plain"
    other_images, other_boxes = photographs(20, seed=9)
    assert np.mean(hits(net, other_images, other_boxes, torch.zeros(20, dtype=torch.long), rule)) == 1
    assert np.mean(hits(net, images, boxes, labels, replace(DEFAULT_RULE, kind="object"))) < 0.5


def test_few_images_leave_the_default_and_say_how_good_it_is():
    (images, boxes), labels = photographs(12), torch.zeros(12, dtype=torch.long)
    boxes[3] = boxes[3] + 9
    net = network([1.0, 0.4, 0])
    rule = camify.choose_box_rule(net, images, boxes, labels=labels)
    assert 0 < rule.accuracy < 1
    assert rule.accuracy == pytest.approx(np.mean(hits(net, images, boxes, labels, DEFAULT_RULE)))
    assert rule == replace(DEFAULT_RULE, source="boxes", count=12, accuracy=rule.accuracy)


def test_without_boxes_otsu_cuts_the_object_map_where_there_is_one():
    images, _ = photographs(4)
    empty = [torch.zeros(0, 4)] * 4
    for net, kind in ((network([1.0, 0, 0]), "plain"), (network([0, 1.0, 0], [1.0, 0, 0]), "object")):
        for boxes in (None, empty):
            rule = camify.choose_box_rule(net, images, boxes)
            assert rule == replace(DEFAULT_RULE, kind=kind, source="otsu")
    several = network([1.0, 0, 0])
    several.task = "multilabel"
    assert camify.choose_box_rule(several, *photographs(4)).source == "otsu"


def test_a_loader_gives_what_tensors_give_and_the_network_stays():
    (images, boxes), labels = photographs(8), torch.arange(8) % 2
    boxes[5] = torch.zeros(0, 4)
    net = network([1.0, 0.2, 0]).train()
    weight = net.classifier.weight.clone()
    cuts = [slice(0, 3), slice(3, 8)]
    batches = [{"image": images[cut], "label": labels[cut], "boxes": boxes[cut]} for cut in cuts]
    rule = camify.choose_box_rule(net, batches)
    assert rule == camify.choose_box_rule(net, images, boxes, labels=labels)
    assert rule.count == 7
    assert torch.equal(net.classifier.weight, weight)
    assert net.training
    assert net.box_rule is None


def test_a_finer_map_is_taken_where_it_pays():
    """Cells of 8 pixels are too coarse for objects of 8 that lie between them; those of 4 are not."""
    generator, count = torch.Generator().manual_seed(1), 20
    images, boxes = torch.zeros(count, 1, 24, 24), []
    for image in images:
        x, y = (torch.randint(0, 5, (2,), generator=generator) * 4).tolist()
        image[0, y : y + 8, x : x + 8] = 1
        boxes.append(torch.tensor([[x, y, x + 8, y + 8]], dtype=torch.float32))
    net = camify.CAMNet(nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 1, 1, stride=2)), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        net.features[1].weight.fill_(1)
        net.features[1].bias.zero_()
        net.classifier.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    labels = torch.zeros(count, dtype=torch.long)
    rule = camify.choose_box_rule(net, images, boxes, labels=labels)
    assert rule.map_stride == 4
    assert np.mean(hits(net, images, boxes, labels, rule)) > np.mean(hits(net, images, boxes, labels, DEFAULT_RULE))


def test_what_does_not_fit_is_refused():
    images, boxes = photographs(4)
    with pytest.raises(camify.DataError, match="3 boxes for 4 images"):
        camify.choose_box_rule(network([1.0, 0, 0]), images, boxes[:3])
    with pytest.raises(camify.DataError, match="2 labels for 4 images"):
        camify.choose_box_rule(network([1.0, 0, 0]), images, boxes, labels=torch.zeros(2))
    with pytest.raises(camify.DataError, match="5 boxes for 4 images"):
        camify.choose_box_rule(network([1.0, 0, 0]), [images], [*boxes, boxes[0]])
    with pytest.raises(camify.ConversionError, match="not a CAMNet"):
        camify.choose_box_rule(nn.Linear(1, 1), images, boxes)
