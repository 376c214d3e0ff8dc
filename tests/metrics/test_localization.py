"""MaxBoxAccuracy against a slow reference that shares no code with it."""

from __future__ import annotations

import copy
import csv
import faulthandler
import os
import pickle
import threading

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import nn

from camify.errors import ConfigError, DataError
from camify.maps import normalize, upsample
from camify.metrics import MaxBoxAccuracy
from camify.metrics.functional import (
    best_iou_by_threshold,
    best_ious_by_threshold,
    center_box_ious,
    center_boxes,
    iou_with_best_box,
    thresholds,
)

from .two_processes import in_two_processes, needs_fork

THRESHOLDS = [np.float32(k) / np.float32(100) for k in range(100)]
IOUS = {1: [0.5], 2: [0.3, 0.5, 0.7]}


# --- the reference ----------------------------------------------------------------------------------------


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def components(mask):
    """(pixels, holes filled; box) of every 8-connected component."""
    labels, _ = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    found = []
    for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), start=1):
        filled = scipy.ndimage.binary_fill_holes(labels == number)
        found.append((int(filled.sum()), (columns.start, rows.start, columns.stop, rows.stop)))
    return found


def reference_ious(heat, boxes, largest):
    """Per threshold the IoUs that are right: one, or several where two components are equally large."""
    heat, boxes = np.asarray(heat, np.float32), np.asarray(boxes, float)
    right = []
    for threshold in THRESHOLDS:
        found = components(heat >= threshold)
        most = max((pixels for pixels, _ in found), default=0)
        ious = [(pixels, max(iou(box, truth) for truth in boxes)) for pixels, box in found]
        if not found:
            right.append({0.0})
        elif largest:
            right.append({value for pixels, value in ious if pixels == most})
        else:
            right.append({max(value for _, value in ious)})
    return right


def reference_curve(maps, boxes, version, wanted=None):
    """Hits (len(iou), 100) as least and most, and the number of images with boxes."""
    wanted = wanted or IOUS[version]
    least, most = np.zeros((2, len(wanted), 100), int)
    pairs = [(heat, truth) for heat, truth in zip(maps, boxes, strict=True) if len(truth)]
    for heat, truth in pairs:
        for column, right in enumerate(reference_ious(heat, truth, version == 1)):
            for row, bound in enumerate(wanted):
                least[row, column] += min(right) >= bound
                most[row, column] += max(right) >= bound
    return least, most, len(pairs)


def reference_center(height, width, boxes, wanted):
    """The share of the best fixed box for every bound, averaged."""
    boxes = [truth for truth in boxes if len(truth)]
    best = np.zeros(len(wanted))
    for tall in range(1, 21):
        for wide in range(1, 21):
            half_h, half_w = height * tall / 40, width * wide / 40
            box = (width / 2 - half_w, height / 2 - half_h, width / 2 + half_w, height / 2 + half_h)
            ious = [max(iou(box, one) for one in truth.double().tolist()) for truth in boxes]
            share = [np.mean([value >= bound for value in ious]) for bound in wanted]
            best = np.maximum(best, share)
    return best.mean()


# --- data -------------------------------------------------------------------------------------------------


def smooth_maps(count, height=37, width=53, cells=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, cells, cells + 1, generator=generator)
    maps = nn.functional.interpolate(coarse, (height, width), mode="bicubic")[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low)).clamp(0, 1)


def random_boxes(count, height=37, width=53, seed=0, whole=False):
    """0 to 3 boxes per image."""
    rng = np.random.default_rng(seed)
    boxes = []
    for index in range(count):
        x = np.sort(rng.uniform(0, width - 4, (index % 4, 2)), axis=1)
        y = np.sort(rng.uniform(0, height - 4, (index % 4, 2)), axis=1)
        found = np.stack([x[:, 0], y[:, 0], x[:, 1] + 4, y[:, 1] + 4], axis=1)
        boxes.append(torch.tensor(found.round() if whole else found, dtype=torch.float32))
    return boxes


def box_map(box, height=24, width=32):
    heat = torch.zeros(height, width)
    heat[box[1] : box[3], box[0] : box[2]] = 1
    return heat


@pytest.fixture(scope="module")
def sample():
    return smooth_maps(16), random_boxes(16)


def updated(metric, maps, boxes):
    metric.update(maps, boxes)
    return metric


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, equal_nan=True)


# --- against the reference --------------------------------------------------------------------------------


def test_thresholds_are_the_hundredths():
    assert thresholds().tolist() == [float(value) for value in THRESHOLDS]


@pytest.mark.parametrize("largest", [False, True])
def test_iou_of_every_threshold(sample, largest):
    for heat, truth in zip(*sample, strict=True):
        if len(truth):
            found = best_iou_by_threshold(heat, truth, largest=largest).tolist()
            right = reference_ious(heat, truth, largest)
            for value, allowed in zip(found, right, strict=True):
                assert min(abs(value - other) for other in allowed) < 1e-12


@pytest.mark.parametrize("largest", [False, True])
def test_iou_of_rough_maps_with_holes_and_islands_within(largest):
    rng = np.random.default_rng(3)
    maps = [rng.random((19, 23)).round(1), scipy.ndimage.gaussian_filter(rng.random((41, 33)), 1.2)]
    rings = np.zeros((21, 21))
    rings[1:20, 1:20], rings[4:17, 4:17], rings[8:13, 8:13], rings[10, 10] = 0.6, 0, 0.8, 0.1
    rings[0, 0] = rings[20, 20] = 1
    truth = torch.tensor([[3.0, 2, 15, 18], [8, 8, 13, 13]])
    for heat in (*maps, rings):
        heat = (heat / heat.max()).astype(np.float32)
        found = best_iou_by_threshold(torch.from_numpy(heat), truth, largest=largest).tolist()
        for value, allowed in zip(found, reference_ious(heat, truth, largest), strict=True):
            assert min(abs(value - other) for other in allowed) < 1e-12


def test_a_pixel_at_the_threshold_counts_and_one_just_below_does_not():
    truth = torch.tensor([[0.0, 0, 1, 1]])
    for number in range(1, 100):
        for value in (THRESHOLDS[number], np.nextafter(THRESHOLDS[number], np.float32(0))):
            heat = np.zeros((3, 4), np.float32)
            heat[0, 0] = value
            found = best_iou_by_threshold(torch.from_numpy(heat), truth)
            right = [max(allowed) for allowed in reference_ious(heat, truth, largest=False)]
            assert found.tolist() == pytest.approx(right, abs=1e-12), number


@pytest.mark.parametrize("version", [1, 2])
def test_metric_is_the_reference(sample, version):
    maps, boxes = sample
    least, most, images = reference_curve(maps, boxes, version)
    assert (least == most).mean() > 0.99  # ties of the largest component hardly matter here
    assert 0 < most.max() < images
    found = updated(MaxBoxAccuracy(version=version), maps, boxes).compute()
    hits = found["curve"].numpy() * images
    assert (hits > least - 1e-3).all()
    assert (hits < most + 1e-3).all()
    assert int(found["count"]) == images == 12
    assert least.max(axis=1).mean() <= float(found["max_box_acc"]) * images + 1e-4
    assert float(found["max_box_acc"]) * images <= most.max(axis=1).mean() + 1e-4
    if version == 2:
        assert float(found["best_threshold"]) == THRESHOLDS[int(most.sum(axis=0).argmax())]


def test_metric_is_the_reference_for_given_bounds(sample):
    maps, boxes = sample
    wanted = [0.1, 0.45]
    _, hits, images = reference_curve(maps, boxes, 2, wanted)
    found = updated(MaxBoxAccuracy(iou_thresholds=wanted), maps, boxes).compute()
    np.testing.assert_allclose(found["curve"].numpy() * images, hits, atol=1e-4)
    assert float(found["max_box_acc"]) == pytest.approx(hits.max(axis=1).mean() / images)
    center = reference_center(37, 53, boxes, wanted)
    assert float(found["center_box_acc"]) == pytest.approx(center)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_center_baseline_is_the_reference(version, whole):
    boxes = random_boxes(24, seed=5, whole=whole)
    found = updated(MaxBoxAccuracy(version=version), torch.ones(24, 37, 53), boxes).compute()
    expected = reference_center(37, 53, boxes, IOUS[version])
    assert 0 < expected < 1
    assert float(found["center_box_acc"]) == pytest.approx(expected, abs=1e-6)


def test_center_boxes_are_centered_and_end_with_the_whole_image():
    boxes = center_boxes(30, 50)
    assert boxes.shape == (400, 4)
    assert boxes[-1].tolist() == [0, 0, 50, 30]
    assert boxes[0].tolist() == pytest.approx([23.75, 14.25, 26.25, 15.75])
    assert ((boxes[:, 0] + boxes[:, 2] - 50).abs() < 1e-9).all()
    assert len(boxes.unique(dim=0)) == 400


def test_best_box_of_several():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    assert iou_with_best_box(boxes, boxes).tolist() == [1, 1]
    with pytest.raises(DataError, match="without boxes"):
        iou_with_best_box(boxes, torch.zeros(0, 4))


# --- cases that one can see through -------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 3, 0, 2), (0, 0), (1,) * 50])
def test_best_boxes_of_several_images_are_those_of_each(counts):
    candidates = center_boxes(40, 60)
    boxes = [torch.rand(count, 4, dtype=torch.float64).mul(30) + torch.tensor([0, 0, 30, 30]) for count in counts]
    rows = iou_with_best_box(candidates, boxes)
    assert rows.shape == (len(counts), len(candidates))
    for row, own in zip(rows, boxes, strict=True):
        assert torch.equal(row, iou_with_best_box(candidates, own)) if len(own) else bool(row.isnan().all())


def test_ious_of_center_boxes_are_those_of_each():
    generator = torch.Generator().manual_seed(0)
    for height, width, steps in ((37, 52, 20), (1, 1, 3), (224, 224, 7)):
        corners = torch.rand(5, 4, 2, generator=generator).sort(dim=1).values[:, [0, 3]].flatten(1)
        boxes = [corners[: k % 4] * torch.tensor([width, height] * 2) for k in range(6)]
        expected = iou_with_best_box(center_boxes(height, width, steps), boxes)
        found = center_box_ious(boxes, height, width, steps)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert center_box_ious([torch.zeros(0, 4)], 3, 3).isnan().all()


@pytest.mark.parametrize("version", [1, 2])
def test_a_perfect_map_gets_one(version):
    boxes = [(3, 4, 20, 17), (0, 0, 32, 24), (31, 23, 32, 24)]
    maps = torch.stack([box_map(box) for box in boxes])
    found = updated(MaxBoxAccuracy(version), maps, [torch.tensor([box]) for box in boxes]).compute()
    assert float(found["max_box_acc"]) == 1
    assert float(found["best_threshold"]) == pytest.approx(0.01)  # the first that leaves the rest out


def test_an_iou_of_exactly_the_bound_is_a_hit():
    heat, truth = torch.ones(1, 10, 10), [torch.tensor([[0.0, 0, 10, 7]])]
    found = updated(MaxBoxAccuracy(iou_thresholds=[0.7]), heat, truth).compute()
    assert float(found["max_box_acc"]) == 1
    found = updated(MaxBoxAccuracy(iou_thresholds=[0.71]), heat, truth).compute()
    assert float(found["max_box_acc"]) == 0


def test_version_one_takes_the_largest_component_and_version_two_any():
    heat = 0.5 * box_map((0, 0, 20, 12)) + box_map((24, 16, 30, 22))
    truth = [torch.tensor([[24, 16, 30, 22]])]
    one = updated(MaxBoxAccuracy(1), heat[None], truth).compute()
    two = updated(MaxBoxAccuracy(2), heat[None], truth).compute()
    assert one["curve"][0, 1:51].sum() == 0
    assert one["curve"][0, 51:].min() == 1
    assert two["curve"][:, 1:].min() == 1


def test_any_of_several_true_boxes_counts():
    truth = torch.tensor([[0.0, 0, 4, 4], [10, 5, 20, 15], [25, 2, 30, 9]])
    for box in truth.int().tolist():
        assert best_iou_by_threshold(box_map(box), truth)[50] == 1


@pytest.mark.parametrize("value", [0.0, 0.005, 0.5, 1.0])
def test_a_constant_map_is_one_box_up_to_its_value(value):
    found = best_iou_by_threshold(torch.full((10, 10), value), torch.tensor([[0, 0, 10, 5]]))
    assert found.tolist() == [0.5 if threshold <= value else 0 for threshold in THRESHOLDS]


def test_the_first_of_equal_thresholds_is_taken():
    # two images: one is hit from .01 to .40, one from .21 to 1; each alone makes a plateau
    first = 0.4 * box_map((4, 4, 12, 12))
    second = box_map((4, 4, 12, 12)) + 0.2 * (1 - box_map((4, 4, 12, 12)))
    truth = [torch.tensor([[4, 4, 12, 12]])] * 2
    found = updated(MaxBoxAccuracy(2), torch.stack([first, second]), truth).compute()
    assert float(found["max_box_acc"]) == 1
    assert float(found["best_threshold"]) == pytest.approx(0.21)


def test_rounding_does_not_decide_between_equal_thresholds():
    """Of three images 3 + 3 + 1 hits are as many as 3 + 2 + 2; as shares in float32 they are not."""
    metric = updated(MaxBoxAccuracy(2), torch.zeros(3, 8, 8), [torch.tensor([[0, 0, 1, 1]])] * 3)
    metric.hits.zero_()
    metric.hits[:, 10], metric.hits[:, 20] = torch.tensor((3, 3, 1)), torch.tensor((3, 2, 2))
    assert float(metric.compute()["best_threshold"]) == pytest.approx(0.1)


def test_keys_shapes_and_ranges(sample):
    for version, rows in ((1, 1), (2, 3)):
        found = updated(MaxBoxAccuracy(version), *sample).compute()
        assert set(found) == {
            "max_box_acc", "best_threshold", "center_box_acc", "whole_image_acc", "count", "curve"
        }  # fmt: skip
        assert found["curve"].shape == (rows, 100)
        for key in ("max_box_acc", "best_threshold", "center_box_acc"):
            assert found[key].shape == ()
            assert 0 <= found[key] <= 1


def test_a_box_over_the_edge_is_used_as_it_is():
    found = best_iou_by_threshold(torch.ones(10, 10), torch.tensor([[-10, 0, 10, 10]]))
    assert found.tolist() == [0.5] * 100


@pytest.mark.parametrize("count", [1, 3, 256, 1000])
def test_any_number_of_thresholds(count):
    heat = smooth_maps(1, 30, 20)[0]
    truth = torch.tensor([[3.0, 2, 15, 18], [8, 8, 13, 13]])
    found = best_iou_by_threshold(heat, truth, count).tolist()
    for number in range(0, count, max(count // 50, 1)):
        boxes = [box for _, box in components(heat.numpy() >= np.float32(number) / np.float32(count))]
        expected = max((iou(box, one) for box in boxes for one in truth.tolist()), default=0.0)
        assert found[number] == pytest.approx(expected, abs=1e-12)


def test_fewer_thresholds():
    found = updated(MaxBoxAccuracy(count=4), smooth_maps(4), random_boxes(4)).compute()
    assert found["curve"].shape == (3, 4)
    assert float(found["best_threshold"]) in (0, 0.25, 0.5, 0.75)


# --- images without boxes ---------------------------------------------------------------------------------


def test_images_without_boxes_are_left_out(sample):
    maps, boxes = sample
    keep = [index for index, truth in enumerate(boxes) if len(truth)]
    assert len(keep) < len(boxes)
    everything = updated(MaxBoxAccuracy(), maps, boxes).compute()
    same(everything, updated(MaxBoxAccuracy(), maps[keep], [boxes[index] for index in keep]).compute())


@pytest.mark.parametrize("boxes", [[], [torch.zeros(0, 4)] * 3, [torch.zeros(0)] * 3])
def test_no_box_at_all_gives_nan(boxes):
    found = updated(MaxBoxAccuracy(), torch.rand(len(boxes), 8, 8), boxes).compute()
    assert found["count"] == 0
    for key in ("max_box_acc", "best_threshold", "center_box_acc"):
        assert torch.isnan(found[key])


# --- accumulation -----------------------------------------------------------------------------------------


def test_batches_add_up(sample):
    maps, boxes = sample
    metric = MaxBoxAccuracy()
    for part in (slice(0, 1), slice(1, 8), slice(8, 8), slice(8, 16)):
        metric.update(maps[part], boxes[part])
    same(metric.compute(), updated(MaxBoxAccuracy(), maps, boxes).compute())


def test_forward_gives_the_batch_and_accumulates(sample):
    maps, boxes = sample
    metric = MaxBoxAccuracy()
    same(metric(maps[:5], boxes[:5]), updated(MaxBoxAccuracy(), maps[:5], boxes[:5]).compute())
    same(metric(maps[5:], boxes[5:]), updated(MaxBoxAccuracy(), maps[5:], boxes[5:]).compute())
    same(metric.compute(), updated(MaxBoxAccuracy(), maps, boxes).compute())


def test_two_metrics_merge_into_one(sample):
    maps, boxes = sample
    whole = updated(MaxBoxAccuracy(), maps, boxes)
    left, right = (updated(MaxBoxAccuracy(), maps[part], boxes[part]) for part in (slice(0, 7), slice(7, None)))
    for name, reduction in whole._reductions.items():  # as torchmetrics does across processes
        parts = torch.stack([getattr(left, name), getattr(right, name)])
        assert torch.equal(reduction(parts), getattr(whole, name))
    left.merge_state(right)
    same(left.compute(), whole.compute())


def test_what_was_computed_stays_as_it_was(sample):
    maps, boxes = sample
    metric = updated(MaxBoxAccuracy(), maps[:8], boxes[:8])
    found = metric.compute()
    kept = {key: value.clone() for key, value in found.items()}
    metric.update(maps[8:], boxes[8:])
    same(found, kept)


def test_copies_pickles_and_reset(sample):
    maps, boxes = sample
    metric = updated(MaxBoxAccuracy(version=1), maps, boxes)
    expected = metric.compute()
    for other in (
        copy.deepcopy(metric),
        pickle.loads(pickle.dumps(metric)),
        metric.to("cpu"),
        metric.clone(),
    ):
        same(other.compute(), expected)
    metric.reset()
    metric.update(maps[:0], boxes[:0])
    assert metric.compute()["count"] == 0
    metric.update(maps, boxes)
    same(metric.compute(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_other_precision(sample, dtype):
    maps, boxes = sample[0].to(dtype), sample[1]
    same(
        updated(MaxBoxAccuracy(), maps, boxes).compute(),
        updated(MaxBoxAccuracy(), maps.float(), boxes).compute(),
    )


def test_maps_with_gradient_and_other_strides(sample):
    maps, boxes = sample
    expected = updated(MaxBoxAccuracy(), maps, boxes).compute()
    strided = maps.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    same(updated(MaxBoxAccuracy(), strided, boxes).compute(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_precision_of_the_model_around_it_changes_nothing(dtype):
    """Lightning's "bf16-true" turns every float of a module into bfloat16, which counts up to 256 only."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.metric = MaxBoxAccuracy(iou_thresholds=[0.3, 0.501])

    metric = Module().to(dtype).metric
    # hit at .501 by .5012 alone: bfloat16 would make the bound .5
    truth = [torch.tensor([[0.0, 0, 8, 4.01]]), torch.tensor([[0.0, 0, 8, 4.004]])] * 150
    for _ in range(2):
        metric.update(torch.ones(300, 8, 8), truth)
    found = metric.compute()
    assert found["count"] == 600
    assert found["curve"].amax(dim=1).tolist() == pytest.approx([1, 0.5])


# --- several processes ------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_one_process_equals_two(tmp_path, sample):
    maps, boxes = sample
    expected = updated(MaxBoxAccuracy(), *sample).compute()
    for found in in_two_processes(lambda part: updated(MaxBoxAccuracy(), maps[part], boxes[part]).compute(), tmp_path):
        same(found, expected)


# --- what cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), -0.001, 1.001, float("inf")])
def test_maps_outside_the_range_are_refused(value):
    maps = torch.rand(2, 8, 8)
    maps[1, 3, 3] = value
    metric = MaxBoxAccuracy()
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        metric.update(maps, [torch.tensor([[0, 0, 4, 4]])] * 2)
    assert metric.total == 0  # nothing of a refused batch counts


@pytest.mark.parametrize("shape", [(8, 8), (2, 1, 8, 8), (3, 8, 8), (1, 8, 8), (2, 0, 8)])
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match="must be"):
        MaxBoxAccuracy().update(torch.rand(shape), [torch.tensor([[0, 0, 4, 4]])] * 2)


@pytest.mark.parametrize(
    "truth",
    [
        [0, 0, 4, 4],
        [[0, 0, 4]],
        [[0, 0, 4, 4, 1]],
        [[4, 0, 4, 4]],
        [[0, 5, 4, 4]],
        [[0, 0, float("nan"), 4]],
        [[0, 0, 4, 4], [3, 3, 1, 1]],
        [[8, 0, 12, 4]],
        [[0, -4, 4, 0]],
    ],
)
def test_boxes_that_are_none_are_refused_by_number(truth):
    metric = MaxBoxAccuracy()
    with pytest.raises(DataError, match="image 1"):
        metric.update(torch.rand(2, 8, 8), [torch.tensor([[0, 0, 4, 4]]), torch.tensor(truth)])
    assert metric.total == 0


@pytest.mark.parametrize(
    "options",
    [
        {"version": 3},
        {"version": 0},
        {"parity": "wsol"},
        {"iou_thresholds": []},
        {"iou_thresholds": [0.0]},
        {"iou_thresholds": [0.5, 1.5]},
        {"iou_thresholds": [float("nan")]},
        {"count": 0},
        {"count": 1001},
    ],
)
def test_options_that_cannot_work(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        MaxBoxAccuracy(**options)


# --- real photographs -------------------------------------------------------------------------------------


@pytest.mark.data
def test_whole_image_and_centered_box_on_real_boxes(photos):
    """The figures that shared/data/README.md gives for val at 224 x 224, from the table alone."""
    boxes = {}
    with (photos / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["image"].startswith("val/"):
                with Image.open(photos / row["image"]) as image:
                    width, height = image.size
                scale = np.array([224 / width, 224 / height] * 2)
                box = np.array([float(row[key]) for key in ("x0", "y0", "x1", "y1")]) * scale
                boxes.setdefault(row["image"], []).append(box)
    truths = [torch.tensor(np.array(found)) for found in boxes.values()]
    metric = updated(MaxBoxAccuracy(iou_thresholds=[0.5]), torch.ones(len(truths), 224, 224), truths)
    found = metric.compute()
    assert found["count"] == 189
    assert float(found["max_box_acc"]) == pytest.approx(0.323, abs=0.001)
    assert 0.534 - 0.001 <= float(found["center_box_acc"]) <= 0.55
    expected = reference_center(224, 224, truths, [0.5])
    assert float(found["center_box_acc"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cells", [3, 7, 30])
def test_both_kinds_of_boxes_at_once_are_those_of_each(cells):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        heat = normalize(upsample(torch.rand(cells, cells, generator=generator), (30, 40)))
        truth = torch.tensor([[5.0, 4, 30, 20], [0.0, 0, 9, 9]])
        every, largest = best_ious_by_threshold(heat, truth)
        assert torch.equal(every, best_iou_by_threshold(heat, truth))
        assert torch.equal(largest, best_iou_by_threshold(heat, truth, largest=True))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parity", [None, "wsolevaluation"])
def test_several_maps_at_once_have_the_curves_of_each(parity, threads, monkeypatch):
    monkeypatch.setattr("camify.metrics.functional.box_curves._STACK", 3)
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    maps = torch.cat([
        torch.rand(5, 12, 17, generator=generator),
        normalize(upsample(torch.rand(5, 4, 4, generator=generator), (12, 17))),
        torch.zeros(1, 12, 17), torch.ones(1, 12, 17), (torch.rand(4, 12, 17, generator=generator) * 2).round() / 2,
    ])  # fmt: skip
    corners = torch.rand(len(maps), 3, 2, generator=generator) * 8
    boxes = [torch.cat([own, own + 4], dim=1)[: place % 4] for place, own in enumerate(corners)]
    torch.set_num_threads(threads)
    try:
        for largest in (False, True):
            found = best_iou_by_threshold(maps, boxes, 20, largest=largest, parity=parity)
            for row, heat, truth in zip(found, maps, boxes, strict=True):
                if len(truth):
                    assert torch.equal(row, best_iou_by_threshold(heat, truth, 20, largest=largest, parity=parity))
                else:
                    assert bool(row.isnan().all())
            if parity is None:
                both = best_ious_by_threshold(maps, boxes, 20)[int(largest)]
                torch.testing.assert_close(both, found, rtol=0, atol=0, equal_nan=True)
    finally:
        torch.set_num_threads(before)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_its_threads_stay_and_a_forked_process_has_its_own():
    """OpenCV's lock of a thread that ends is held for ever in a process that is forked then."""
    maps, truths, before = torch.rand(20, 9, 9), [torch.tensor([[1, 1, 5, 5]])] * 20, torch.get_num_threads()

    def own_threads():
        return {thread.ident for thread in threading.enumerate() if thread.name.startswith("camify-boxes")}

    torch.set_num_threads(2)
    try:
        expected = best_iou_by_threshold(maps, truths)
        threads = own_threads()
        best_iou_by_threshold(maps, truths)
        assert own_threads() == threads != set()
        forked = os.fork()
        if not forked:
            faulthandler.dump_traceback_later(30, exit=True)  # where it hangs
            os._exit(not torch.equal(best_iou_by_threshold(maps, truths), expected))
        assert os.waitpid(forked, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_maps_without_any_box_have_no_curve_and_numbers_must_fit():
    assert bool(best_iou_by_threshold(torch.rand(2, 5, 5), [torch.zeros(0, 4)] * 2).isnan().all())
    with pytest.raises(DataError, match="boxes of as many images, not 1"):
        best_iou_by_threshold(torch.rand(2, 5, 5), [torch.zeros(0, 4)])
    with pytest.raises(DataError, match="without boxes"):
        best_iou_by_threshold(torch.rand(5, 5), torch.zeros(0, 4))
