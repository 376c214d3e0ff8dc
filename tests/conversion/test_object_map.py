"""``fit_object_map``: the identity of predictions, the regression against brute force, few boxes, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import camify
from camify.batch import Batch
from camify.conversion import cell_sums
from camify.conversion import object_map as module
from camify.errors import ConfigError, ConversionError, DataError

SIDE = 8


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def network(classes: int = 3, channels: int = 4, *, seed: int = 0) -> camify.CAMNet:
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
    return camify.CAMNet(features, nn.Linear(channels, classes)).eval()


def scenes(count: int, *, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Noise with a bright square, and the square's box."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    boxes = []
    for image in images:
        x, y = torch.randint(0, SIDE - 3, (2,), generator=generator).tolist()
        image[:, y : y + 3, x : x + 3] += 2
        boxes.append(torch.tensor([[x, y, x + 3, y + 3]], dtype=torch.float32))
    return images, boxes


def cells_of(net: camify.CAMNet, images: Tensor) -> Tensor:
    return net.forward_features(images).flatten(2).transpose(1, 2).double()


def covered(boxes: list[Tensor]) -> Tensor:
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.float64)
    for mask, image_boxes in zip(masks, boxes, strict=True):
        for x0, y0, x1, y1 in image_boxes.int().tolist():
            mask[y0:y1, x0:x1] = 1
    return masks.flatten(1)


def ridge_by_hand(cells: Tensor, target: Tensor, mean: Tensor, penalty: float) -> tuple[Tensor, Tensor, float]:
    """Slopes and means: least squares with ``penalty |u_perp|^2``, where u_perp is orthogonal to the mean feature."""
    x, y = cells.flatten(0, 1), target.flatten()
    center, level = x.mean(0), float(y.mean())
    orthogonal = torch.eye(len(mean), dtype=torch.float64) - torch.outer(mean, mean)
    gram = (x - center).T @ (x - center)
    return torch.linalg.solve(gram + penalty * orthogonal, (x - center).T @ (y - level)), center, level


@pytest.mark.parametrize("boxes", [None, "boxes"])
@pytest.mark.parametrize("classes", [2, 3])
def test_no_prediction_changes_and_the_maps_do(boxes, classes):
    net, (images, known) = network(classes), scenes(12)
    before = net(images)
    report = camify.fit_object_map(net, images, known if boxes else None)
    logits, maps = net.forward_with_maps(images, kind="object")
    assert report.images == 12
    assert torch.equal(logits, before)
    by_maps = (maps.mean((2, 3)) + net.classifier.bias).softmax(1)
    assert float((by_maps - before.softmax(1)).abs().max()) < 1e-6
    contrast = net.forward_with_maps(images, kind="contrast")[1]
    torch.testing.assert_close(contrast.sum(1), torch.zeros_like(contrast[:, 0]), atol=1e-5, rtol=0)
    shared = maps - contrast
    torch.testing.assert_close(shared, shared[:, :1].expand_as(shared), atol=1e-5, rtol=1e-4)
    assert float(shared.abs().max()) > 0.1
    assert torch.equal(net.forward_with_maps(images)[1], net.forward_with_maps(images, kind="plain")[1])


def test_without_boxes_it_is_the_mean_feature_at_the_strength_that_it_says():
    net, (images, _) = network(), scenes(9)
    report = camify.fit_object_map(net, images)
    cells = cells_of(net, images)
    mean = cells.mean((0, 1))
    torch.testing.assert_close(
        net.object_weight.double() / net.object_weight.double().norm(), mean / mean.norm(), atol=1e-5, rtol=0
    )
    logits, contrast = net.forward_with_maps(images, kind="contrast")
    own = contrast[torch.arange(9), logits.argmax(1)].double()
    shared = torch.einsum("npc,c->np", cells, net.object_weight.double())
    ratio = (shared.var(1, correction=0).mean() / own.flatten(1).var(1, correction=0).mean()).sqrt()
    assert float(ratio) == pytest.approx(report.strength, rel=1e-4)
    assert report.strength == 2
    assert (report.source, report.penalty, report.with_objects) == ("mean feature", None, 0)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_the_regression_and_its_held_out_maps_are_those_of_fits_without_each_image(penalty):
    net, (images, boxes) = network(), scenes(7)
    sums = cell_sums.CellSums(net.classifier.in_features)
    cells, target = cells_of(net, images), covered(boxes)
    for batch in module._batches(images, boxes):
        features, masks = net.forward_features(batch.images), module._masks_of(batch)
        sums.add(features, features[:, 0], masks, batch)
    mean = sums.mean_feature()
    direction, chosen, held_out = module._regression(sums, mean, penalty)
    assert chosen == penalty
    flat = cells.flatten(0, 1) - cells.flatten(0, 1).mean(0)
    absolute = penalty * float((flat.T @ flat).diagonal().mean())
    slopes, _, _ = ridge_by_hand(cells, target, mean, absolute)
    torch.testing.assert_close(direction, slopes, rtol=1e-3, atol=1e-5)
    for index in range(7):
        others = torch.arange(7) != index
        slopes, center, level = ridge_by_hand(cells[others], target[others], mean, absolute)
        expected = (cells[index] - center) @ slopes + level - float(target.mean())
        torch.testing.assert_close(held_out[index], expected, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_the_one_of_least_held_out_error(monkeypatch):
    net, (images, boxes) = network(), scenes(10)
    errors = {}
    for penalty in module._PENALTIES:
        monkeypatch.setattr(module, "_PENALTIES", (penalty,))
        sums = cell_sums.CellSums(net.classifier.in_features)
        for batch in module._batches(images, boxes):
            features = net.forward_features(batch.images)
            sums.add(features, features[:, 0], module._masks_of(batch), batch)
        _, _, held_out = module._regression(sums, sums.mean_feature(), None)
        target = covered(boxes)
        errors[penalty] = float((torch.stack(held_out) - (target - target.mean())).square().mean())
    monkeypatch.undo()
    report = camify.fit_object_map(net, images, boxes)
    assert report.penalty == min(errors, key=errors.__getitem__)


def test_boxes_make_maps_that_find_the_object_held_out():
    net, (images, boxes) = network(channels=8), scenes(40)
    report = camify.fit_object_map(net, images, boxes)
    assert report.object_accuracy > report.plain_accuracy + 0.2
    others, truth = scenes(20, seed=1)
    logits, maps = net.forward_with_maps(others, kind="object")
    own = maps[torch.arange(20), logits.argmax(1)].detach()
    peaks = own.flatten(1).argmax(1)
    inside = covered(truth)[torch.arange(20), peaks]
    assert float(inside.mean()) >= 0.9
    assert "held out" in str(report)


def test_masks_and_a_loaders_own_boxes_give_the_same():
    images, boxes = scenes(12)
    masks = covered(boxes).reshape(12, SIDE, SIDE) > 0
    weights = []
    for given in (
        {"images_or_loader": images, "boxes": boxes},
        {"images_or_loader": images, "boxes": masks},
        {"images_or_loader": [{"image": images[:5], "boxes": boxes[:5]}, {"image": images[5:], "boxes": boxes[5:]}],
         "boxes": True},
        {"images_or_loader": [{"image": images, "mask": masks}], "boxes": True},
        {"images_or_loader": [images[:5], images[5:]], "boxes": boxes},
        {"images_or_loader": [images[:5], images[5:]], "boxes": masks},
    ):  # fmt: skip
        net = network()
        camify.fit_object_map(net, **given, strength=2)
        weights.append(net.object_weight)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-5)


def test_few_boxes_shrink_to_the_mean_feature():
    net, (images, boxes) = network(), scenes(12)
    empty = [torch.zeros(0, 4)] * 12
    report = camify.fit_object_map(net, images, [*boxes[:2], *empty[2:]])
    assert (report.with_objects, report.strength) == (2, 2)
    assert math.isnan(report.object_accuracy)
    with_two = net.object_weight / net.object_weight.norm()
    camify.fit_object_map(net, images, boxes[:2] + empty[2:], penalty=1e12)
    mean = cells_of(net, images).mean((0, 1)).float()
    torch.testing.assert_close(net.object_weight / net.object_weight.norm(), mean / mean.norm(), atol=1e-3, rtol=0)
    assert not torch.allclose(with_two, mean / mean.norm(), atol=1e-2)


def test_a_shared_map_that_does_not_help_is_off():
    net, (images, boxes) = network(), scenes(12)
    report = camify.fit_object_map(net, images, boxes, strength=0)
    assert not net.object_weight.any()
    assert "does not help" in str(report)
    torch.testing.assert_close(
        net.forward_with_maps(images, kind="object")[1], net.forward_with_maps(images, kind="contrast")[1]
    )


def test_it_travels_in_the_folder_and_a_new_one_drops_the_rule_of_the_old(tmp_path):
    net, (images, boxes) = network(), scenes(12)
    camify.fit_object_map(net, images, boxes)
    net.box_rule = camify.BoxRule(kind="object", threshold=0.4)
    net.preprocessing = {"size": SIDE, "mean": [0.5], "std": [0.5]}
    loaded = camify.load(net.save_pretrained(tmp_path / "net"))
    assert loaded.object_map == net.object_map
    assert loaded.object_map["source"] == "boxes"
    for one, other in zip(
        net.forward_with_maps(images, kind="object"), loaded.forward_with_maps(images, kind="object"), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert all(torch.equal(a, b) for a, b in zip(net.predict_boxes(images), loaded.predict_boxes(images), strict=True))
    camify.fit_object_map(net, images)
    assert net.box_rule is None
    net.reset_classifier(3)
    assert net.object_weight is None
    assert net.object_map is None


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_classes_that_do_not_exclude_each_other_keep_their_maps(task):
    net, (images, boxes) = network(1 if task == "binary" else 3), scenes(12)
    net.task = task
    logits, plain = net.forward_with_maps(images)
    camify.fit_object_map(net, images, boxes, strength=2)
    again, maps = net.forward_with_maps(images, kind="object")
    assert torch.equal(logits, again)
    shared = torch.einsum("nchw,c->nhw", net.forward_features(images), net.object_weight)
    torch.testing.assert_close(maps, plain + shared[:, None], rtol=1e-4, atol=1e-4)
    assert torch.equal(net.forward_with_maps(images, kind="contrast")[1], plain)
    assert len(net.predict_boxes(images, rule=camify.BoxRule(kind="object"))) == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boxes": True}, "for a loader"),
        ({"boxes": [torch.zeros(0, 4)]}, "expected 4 tensors"),
        ({"boxes": torch.zeros(4, 3, 3)}, "masks are"),
        ({"boxes": [torch.zeros(1, 3)] * 4}, "image 0"),
        ({"boxes": [torch.tensor([[2.0, 2.0, 1.0, 4.0]])] * 4}, "without area"),
        ({"strength": -1}, "strength=-1"),
        ({"strength": math.nan}, "strength=nan"),
        ({"penalty": 0}, "penalty=0"),
    ],
)
def test_refusals_say_what_is_wrong(options, words):
    with pytest.raises(ConfigError, match=words):
        camify.fit_object_map(network(), scenes(4)[0], **options)


def test_data_that_give_nothing_to_fit_are_refused():
    net, (images, boxes) = network(), scenes(4)
    with pytest.raises(DataError, match="no images"):
        camify.fit_object_map(net, images[:0])
    with pytest.raises(DataError, match="no image has a box"):
        camify.fit_object_map(net, images, [torch.zeros(0, 4)] * 4)
    with pytest.raises(DataError, match="cover all"):
        camify.fit_object_map(net, images, [torch.tensor([[0.0, 0.0, SIDE, SIDE]])] * 4)
    with pytest.raises(DataError, match="not finite"):
        camify.fit_object_map(net, torch.full_like(images, math.nan))
    for wrong in (boxes[:3], [*boxes, boxes[0]]):
        with pytest.raises(DataError, match=r"boxes: \d for"):
            camify.fit_object_map(net, [images], wrong)
    with pytest.raises(ConversionError, match="not a CAMNet"):
        camify.fit_object_map(nn.Linear(1, 1), images)
    with pytest.raises(ConfigError, match="fit_object_map"):
        net.forward_with_maps(images, kind="object")
    with pytest.raises(ConfigError, match="unknown"):
        net.forward_with_maps(images, kind="objects")


def test_of_many_images_with_boxes_a_uniform_sample_is_kept(monkeypatch):
    """Every fifth of the pass has its share; the same images whatever the batches are."""
    monkeypatch.setattr(cell_sums, "_KEPT", 40)
    samples = []
    for size in (5, 16):
        sums = cell_sums.CellSums(2)
        for start in range(0, 200, size):
            count = min(size, 200 - start)
            boxes = [torch.tensor([[0.0, 0.0, 1.0 + start + place, 4.0]]) for place in range(count)]
            batch = Batch(torch.zeros(count, 3, 8, 300), None, boxes)
            sums.add(torch.ones(count, 2, 2, 2), torch.zeros(count, 2, 2), module._masks_of(batch), batch)
        assert sums.with_objects == 200
        sums.join()
        samples.append([int(kept.boxes[0, 2]) - 1 for kept in sums.kept])
        assert samples[-1] == [kept.number for kept in sums.kept] == sorted(set(samples[-1]))
    assert samples[0] == samples[1]
    assert len(samples[0]) == 40
    shares = torch.histc(torch.tensor(samples[0], dtype=torch.float32), 5, 0, 200)
    assert (shares - 8).abs().max() < 5 * (8 * 0.8) ** 0.5
