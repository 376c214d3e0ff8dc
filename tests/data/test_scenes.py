from __future__ import annotations

import cv2
import numpy as np
import pytest

from camify.data.shape_renderer import CLASS_NAMES, render_group, render_scene
from camify.errors import DataError

SIZE = 96
TRAIN = 1200
CLASSES = range(len(CLASS_NAMES))
CHANCE = 1 / len(CLASS_NAMES)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(index % len(CLASS_NAMES), (2024, index), SIZE) for index in range(TRAIN + 600)]


@pytest.fixture(scope="module")
def labels(scenes):
    return np.arange(len(scenes)) % len(CLASS_NAMES)


@pytest.fixture(scope="module")
def boxes(scenes):
    return np.array([scene.box for scene in scenes], float)


def ridge_accuracy(features, labels):
    """Held-out accuracy of a linear classifier, the best of several strengths of regularisation."""
    features = np.asarray(features, float).reshape(len(labels), -1)
    features = (features - features[:TRAIN].mean(0)) / (features[:TRAIN].std(0) + 1e-9)
    features = np.hstack([features, np.ones((len(labels), 1))])
    train, targets = features[:TRAIN], np.eye(len(CLASS_NAMES))[labels[:TRAIN]]
    accuracies = []
    for strength in (0.01, 1, 100, 1000):
        weights = np.linalg.solve(train.T @ train + strength * np.eye(train.shape[1]), train.T @ targets)
        accuracies.append(np.mean((features[TRAIN:] @ weights).argmax(1) == labels[TRAIN:]))
    return max(accuracies)


def centroid_accuracy(features, labels):
    features = np.asarray(features, float).reshape(len(labels), -1)
    centroids = np.stack([features[:TRAIN][labels[:TRAIN] == label].mean(0) for label in CLASSES])
    nearest = np.linalg.norm(features[TRAIN:, None] - centroids, axis=2).argmin(1)
    return np.mean(nearest == labels[TRAIN:])


def shape_features(mask):
    """Numbers about a mask that no shift, turn or scaling changes."""
    contour = max(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    hull = cv2.convexHull(contour)
    (_, sides, _), (_, radius) = cv2.minAreaRect(contour), cv2.minEnclosingCircle(contour)
    area, outline = mask.sum(), cv2.arcLength(contour, True)
    moments = cv2.HuMoments(cv2.moments(mask.astype(np.uint8), True)).ravel()[:4]
    ratios = [area / cv2.contourArea(hull), area / np.prod(sides), area / radius**2, area / outline**2]
    return np.concatenate([ratios, np.log10(np.abs(moments) + 1e-8)])


@pytest.mark.parametrize("size", [32, 57, 96, 256])
@pytest.mark.parametrize("label", CLASSES)
def test_scene_has_the_promised_form(label, size):
    for seed in range(5):
        scene = render_scene(label, seed, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.image.flags.c_contiguous
        assert scene.mask.shape == (size, size)
        assert scene.mask.dtype == bool
        assert all(type(edge) is int for edge in scene.box)


@pytest.mark.parametrize("label", CLASSES)
def test_same_arguments_give_the_same_bits(label):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    once, again = render_scene(label, [3, 5], 64), render_scene(np.int64(label), (3, 5), 64)
    assert np.array_equal(once.image, again.image)
    assert np.array_equal(once.mask, again.mask)
    assert once.box == again.box
    assert not np.array_equal(once.image, render_scene(label, [3, 6], 64).image)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("label", CLASSES)
def test_sizes_show_the_same_scene(label):
    for seed in range(5):
        small, large = render_scene(label, seed, 64), render_scene(label, seed, 192)
        reduced = large.mask.reshape(64, 3, 64, 3).mean((1, 3)) > 0.5
        assert (small.mask & reduced).sum() > 0.85 * (small.mask | reduced).sum()


def test_box_is_tight_and_the_object_whole(scenes):
    for scene in scenes:
        x0, y0, x1, y1 = scene.box
        assert scene.mask.sum() == scene.mask[y0:y1, x0:x1].sum()
        inside = scene.mask[y0:y1, x0:x1]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        assert 0 < x0 < x1 < SIZE  # a free pixel all round: nothing is cut off
        assert 0 < y0 < y1 < SIZE
        assert cv2.connectedComponents(scene.mask.astype(np.uint8))[0] == 2


def test_object_sizes_stay_in_their_limits(boxes):
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1) / SIZE
    assert sides.min() > 0.25 - 2 / SIZE
    assert sides.max() < 0.55 + 2 / SIZE
    assert sides.std() > 0.05


def test_places_are_uniform(boxes):
    sides = boxes[:, 2:] - boxes[:, :2]
    centers = (boxes[:, 2:] + boxes[:, :2]) / 2 / SIZE
    assert np.abs(centers.mean(0) - 0.5).max() < 0.02
    places = (boxes[:, :2] - 2) / (SIZE - 4 - sides)  # 0..1 of the room that an object of this size has
    for place in places.T:
        assert np.abs(np.histogram(place, 5, (0, 1))[0] / len(place) - 0.2).max() < 0.04
        assert abs(place.std() - 12**-0.5) < 0.02


def test_no_fixed_box_locates_the_objects(boxes):
    def share_hit(side):
        low, high = (SIZE - side) / 2, (SIZE + side) / 2
        overlap = np.clip(np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None).prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + side**2 - overlap
        return np.mean(overlap / union >= 0.5)

    assert max(share_hit(side) for side in range(20, SIZE + 1, 2)) < 0.35


@pytest.mark.parametrize("accuracy", [ridge_accuracy, centroid_accuracy])
def test_colors_do_not_give_the_class_away(scenes, labels, accuracy):
    histograms = [
        np.histogramdd(scene.image.reshape(-1, 3), bins=4, range=[(0, 256)] * 3)[0] / SIZE**2 for scene in scenes
    ]
    assert accuracy(histograms, labels) < CHANCE + 0.08


@pytest.mark.parametrize("accuracy", [ridge_accuracy, centroid_accuracy])
def test_thumbnails_do_not_give_the_class_away(scenes, labels, accuracy):
    thumbnails = [scene.image.reshape(8, 12, 8, 12, 3).mean((1, 3)) for scene in scenes]
    assert accuracy(thumbnails, labels) < CHANCE + 0.08


@pytest.mark.parametrize("accuracy", [ridge_accuracy, centroid_accuracy])
def test_area_does_not_give_the_class_away(scenes, labels, accuracy):
    assert accuracy([scene.mask.sum() for scene in scenes], labels) < CHANCE + 0.08


def test_shape_gives_the_class_away(scenes, labels):
    assert ridge_accuracy([shape_features(scene.mask) for scene in scenes], labels) > 0.85


def test_only_the_object_depends_on_the_label():
    for seed in range(20):
        variants = [render_scene(label, seed, SIZE) for label in CLASSES]
        objects = np.any([scene.mask for scene in variants], axis=0)
        shadows = cv2.dilate(objects.astype(np.uint8), np.ones((11, 11)))
        for scene in variants[1:]:
            assert np.array_equal(scene.image[shadows == 0], variants[0].image[shadows == 0])


def test_object_stands_out_from_its_surroundings(scenes):
    for scene in scenes:
        around = cv2.dilate(scene.mask.astype(np.uint8), np.ones((11, 11))).astype(bool) & ~scene.mask
        contrast = scene.image[scene.mask].mean(0) - scene.image[around].mean(0)
        assert np.linalg.norm(contrast) > 60  # of 441 between black and white


@pytest.mark.parametrize("label", [-1, len(CLASS_NAMES), 1.5, "circle"])
def test_unknown_label_is_an_error(label):
    with pytest.raises(DataError, match=r"label .* is no class; give a whole number from 0 to 5"):
        render_scene(label, 0)


@pytest.mark.parametrize("size", [0, 31])
def test_too_small_a_picture_is_an_error(size):
    with pytest.raises(DataError, match=rf"size {size} is too small for the shapes; give at least 32"):
        render_scene(0, 0, size)


@pytest.mark.parametrize(("label", "count", "shrink"), [(0, 1, 0.6), (1, 3, 0.7), (3, 2, 0.8), (5, 2, 0.8)])
def test_a_group_has_so_many_objects_apart_from_each_other(label, count, shrink):
    group = render_group(label, count, (7, 3, 11), SIZE, shrink=shrink)
    again = render_group(label, count, (7, 3, 11), SIZE, shrink=shrink)
    assert np.array_equal(group.image, again.image)
    assert group.image.shape == (SIZE, SIZE, 3)
    assert len(group.boxes) == len(group.masks) == count
    assert np.sum(group.masks, axis=0).max() == 1
    for mask, (x0, y0, x1, y1) in zip(group.masks, group.boxes, strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
    area = np.mean([mask.mean() for mask in group.masks])
    assert area == pytest.approx((0.3 * shrink) ** 2, rel=0.6)


def test_what_finds_no_room_is_an_error():
    with pytest.raises(DataError, match="find no room"):
        render_group(0, 40, 1, SIZE)
    with pytest.raises(DataError, match="is no class"):
        render_group(6, 1, 1, SIZE)
