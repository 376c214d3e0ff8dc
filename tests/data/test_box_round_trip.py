"""Boxes written in each format come back as they were, of a turned photograph and of any names too."""

from __future__ import annotations

import json
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from camify.data.box_formats import import_boxes
from camify.data.box_formats.upright import sizes_of
from camify.data.box_formats.writing import (
    BOX_FILES,
    PredictedBox,
    PredictedImage,
    Predictions,
    refuse_foreign,
    refuse_shared_labels,
    relative_names,
    write_box_file,
)
from camify.errors import ConfigError, DataError
from tests.data.box_samples import picture

NAMES = ["train/a b/Zürich & <x> 'q'.jpg", "train/50% off.png", "日本.jpg", "turned.jpg", "empty.jpg"]
CLASSES = ["ant: #1", "Bär", "c|at"]
SIZES = [(4000, 3000), (333, 517), (97, 31), (8, 12), (64, 48)]  # upright


@pytest.fixture
def predictions(tmp_path):
    rng, images = np.random.default_rng(0), []
    for name, (width, height) in zip(NAMES, SIZES, strict=True):
        turned = name == "turned.jpg"
        picture(tmp_path / "images" / name, (height, width) if turned else (width, height), 6 if turned else 1)
        boxes = []
        for index in range(0 if name == "empty.jpg" else 3):
            x, y = np.sort(rng.random((2, 2)), axis=1) * [[width], [height]]
            corners = tuple(float(np.float32(value)) for value in (x[0], y[0], x[1], y[1]))
            boxes.append(PredictedBox(corners, CLASSES[index], index, 0.1 + index / 7))
        images.append(PredictedImage(name, (width, height), tuple(boxes)))
    whole = PredictedBox((0.0, 0.0, *map(float, SIZES[0])), CLASSES[1], 1, 1.0)
    images[0] = PredictedImage(NAMES[0], SIZES[0], (*images[0].boxes, whole))
    return Predictions(images, CLASSES, "net 0123abc")


def rows_of(predictions):
    images = sorted(predictions.images, key=lambda image: image.name)
    return [(image.name, *box.corners, box.label) for image in images for box in image.boxes]


@pytest.mark.parametrize("kind", BOX_FILES)
def test_written_and_read_again(kind, predictions, tmp_path):
    place = tmp_path / "out" / BOX_FILES[kind][0]
    write_box_file(kind, place, predictions)
    root = tmp_path / "images"
    imported = import_boxes(place, [root / name for name in NAMES], root)
    expected = rows_of(predictions)
    assert imported.kind == kind
    assert [(row[0], row[5]) for row in imported.rows] == [(row[0], row[5]) for row in expected]
    found, wanted = (np.array([row[1:5] for row in rows]) for rows in (imported.rows, expected))
    assert np.abs(found - wanted).max() < 1e-3
    refuse_foreign(place)
    before = place.stat().st_ino
    write_box_file(kind, place, predictions)  # in the place of the one before
    assert place.stat().st_ino != before


def test_coco_is_what_its_document_says(predictions, tmp_path):
    write_box_file("coco", tmp_path / "c.json", predictions)
    content = json.loads((tmp_path / "c.json").read_text())
    first, box = content["annotations"][0], predictions.images[0].boxes[0]
    assert first["bbox"][2:] == pytest.approx(
        [box.corners[2] - box.corners[0], box.corners[3] - box.corners[1]], abs=1e-4
    )
    assert first["score"] == pytest.approx(box.score, abs=1e-6)
    assert [(one["id"], one["name"]) for one in content["categories"]] == list(enumerate(CLASSES, 1))
    assert [one["file_name"] for one in content["images"]] == NAMES
    coco = pytest.importorskip("pycocotools.coco")
    assert len(coco.COCO(tmp_path / "c.json").getAnnIds()) == 13


def test_label_studio_is_what_its_document_says(predictions, tmp_path):
    write_box_file("labelstudio", tmp_path / "t.json", predictions)
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert [unquote(task["data"]["image"]) for task in tasks] == [f"/data/local-files/?d={name}" for name in NAMES]
    (prediction,) = tasks[3]["predictions"]
    assert prediction["model_version"] == "net 0123abc"
    assert prediction["score"] == pytest.approx(0.1 + 2 / 7, abs=1e-6)
    result, box = prediction["result"][0], predictions.images[3].boxes[0]
    assert (result["original_width"], result["original_height"], result["image_rotation"]) == (8, 12, 0)
    assert result["value"]["x"] == pytest.approx(100 * box.corners[0] / 8)
    assert result["value"]["height"] == pytest.approx(100 * (box.corners[3] - box.corners[1]) / 12)
    assert result["value"]["rectanglelabels"] == ["ant: #1"]
    assert tasks[4]["predictions"][0]["result"] == []


def test_yolo_has_a_file_for_each_image(predictions, tmp_path):
    write_box_file("yolo", tmp_path / "y", predictions)
    assert (tmp_path / "y" / "labels" / "empty.txt").read_text() == ""
    words = (tmp_path / "y" / "labels" / "日本.txt").read_text().split()
    box = predictions.images[2].boxes[0]
    assert int(words[0]) == 0
    assert float(words[1]) == pytest.approx((box.corners[0] + box.corners[2]) / 2 / 97, abs=1e-8)
    assert float(words[5]) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("kind", ["coco", "labelstudio"])
def test_the_photographs_boxes_come_back(kind, photos, tmp_path):
    """968 boxes of 630 photographs, through the headers of their files."""
    paths = sorted(photos.rglob("*.jpg"))
    own = import_boxes(photos / "boxes.csv", paths, photos)
    classes = sorted({row[5] for row in own.rows})
    sizes = {path: sizes_of(path).upright for path in paths}
    images = []
    for path in paths:
        name = path.relative_to(photos).as_posix()
        boxes = [PredictedBox(box, label, classes.index(label), 0.5) for box, label in own.by_image[name]]
        images.append(PredictedImage(name, sizes[path], tuple(boxes)))
    write_box_file(kind, tmp_path / BOX_FILES[kind][0], Predictions(images, classes, "net"))
    again = import_boxes(tmp_path / BOX_FILES[kind][0], paths, photos)
    assert (len(again.rows), again.images) == (968, 630)
    assert again.rows == own.rows


def test_names_are_relative_to_the_folder_of_all(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    paths = [tmp_path / "a" / "b" / "1.jpg", tmp_path / "a" / "b" / "2.jpg"]
    assert relative_names(paths) == ["1.jpg", "2.jpg"]
    assert relative_names(paths, [tmp_path / "a"]) == ["b/1.jpg", "b/2.jpg"]
    assert relative_names([*paths, tmp_path / "c" / "1.jpg"]) == ["a/b/1.jpg", "a/b/2.jpg", "c/1.jpg"]
    assert relative_names([]) == []


def test_what_a_format_cannot_say_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a/x\.jpg and a/x\.png differ by their ending only"):
        refuse_shared_labels(["a/x.jpg", "b/x.jpg", "a/x.png"])
    odd = Predictions([PredictedImage("a\x01.jpg", (4, 4), ())], CLASSES, "net")
    with pytest.raises(DataError, match=r"control character, which CVAT's XML cannot say"):
        write_box_file("cvat", tmp_path / "c.xml", odd)
    mine = tmp_path / "boxes_coco.json"
    mine.write_text('{"images": []}')
    with pytest.raises(ConfigError, match="camify did not write it"):
        refuse_foreign(mine)
    (tmp_path / "boxes_yolo").mkdir()
    with pytest.raises(ConfigError, match="camify did not write it"):
        refuse_foreign(tmp_path / "boxes_yolo")


def test_the_turned_picture_is_turned(predictions, tmp_path):
    with Image.open(tmp_path / "images" / "turned.jpg") as image:
        assert image.size == (12, 8)
