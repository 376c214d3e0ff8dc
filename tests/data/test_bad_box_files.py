"""Damaged files of boxes: one line that names file, place and cause; never a traceback."""

from __future__ import annotations

import json
import random
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camify.data.box_formats import KINDS, ImageSizes, import_boxes
from camify.errors import CamifyError, DataError
from tests.data.box_samples import IMAGES, OBJECT, SAMPLES, VOC, coco, cvat, write
from tests.reliability.mutations import mutated

MAIN = {"voc": "b.xml", "yolo": "labels/dog/b.txt", "labelme": "b.json", "cub": "bounding_boxes.txt",
        "wsol": "localization.txt"}  # fmt: skip
"""Of the samples that are folders, the file that is damaged."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def read(source, root, kind=None, **options):
    """As on images that are there: their headers are not what is tested here."""
    images = {root / name: ImageSizes(size) for name, size in IMAGES.items()}
    return import_boxes(source, list(images), root, kind=kind, sizes=images.__getitem__, **options)


def refusal(source, root, kind=None, **options):
    with pytest.raises(DataError) as refused:
        read(source, root, kind, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert str(source) in message
    return message


def outcome(source, root, kind=None):
    """The rows, or why there are none, in one line."""
    try:
        return read(source, root, kind).rows
    except CamifyError as error:
        return str(error)


def damaged(kind, folder, damage):
    """A sample whose main file's bytes are changed; the source, and that file."""
    source = SAMPLES[kind](folder)
    file = source / MAIN[kind] if source.is_dir() else source
    file.write_bytes(damage(file.read_bytes()))
    return source, file


# ---------------------------------------------------------------- every kind


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"yolo"}))  # an empty file of YOLO is an image without objects
def test_empty(kind, root, tmp_path):
    source, file = damaged(kind, tmp_path, lambda content: b"")
    if kind in ("cub", "wsol"):  # no box is left, and that is what the file says
        assert len(read(source, root, kind).rows) == 0
    elif kind == "huggingface":
        assert read(source, root, kind).rows == []
    else:
        assert str(file) in refusal(source, root, kind)
        refusal(source, root)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off(kind, root, tmp_path):
    """At three places; lines that are whole may be read."""
    for share in (0.3, 0.6, 0.95):
        source, _ = damaged(kind, tmp_path, lambda content, share=share: content[: int(len(content) * share)])
        read_or_refused = outcome(source, root, kind)
        if isinstance(read_or_refused, str):
            assert str(source) in read_or_refused
        else:
            assert kind in ("yolo", "cub", "wsol", "imagenet_csv", "camify", "openimages")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"voc", "cvat"}))
def test_utf_16_and_latin_1(kind, root, tmp_path):
    source, file = damaged(kind, tmp_path / "16", lambda content: content.decode().encode("utf-16"))
    assert "looks like UTF-16. Save it as UTF-8" in refusal(source, root, kind)
    refusal(source, root)
    source, file = damaged(kind, tmp_path / "1", lambda content: content + b"\n\xfc")
    assert f"{file}, line " in refusal(source, root, kind)


@pytest.mark.parametrize("kind", ["voc", "cvat"])
def test_encodings_of_xml(kind, root, tmp_path):
    """XML says its encoding: what says it is read, what lies about it is refused."""
    source, _ = damaged(
        kind, tmp_path / "16", lambda content: content.decode().replace("utf-8", "utf-16").encode("utf-16")
    )
    assert read(source, root, kind).rows
    text = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><image name="Zürich 1.jpg"/></annotations>'
    (tmp_path / "latin.xml").write_bytes(text.encode("latin-1"))
    assert re.search(r"latin\.xml, line 2: is no XML \(not well-formed", refusal(tmp_path / "latin.xml", root, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_the_place_of_a_file_and_nothing_at_all(kind, root, tmp_path):
    (tmp_path / "folder.json").mkdir()
    refusal(tmp_path / "folder.json", root, kind)
    refusal(tmp_path / "nothing.json", root, kind)
    refusal(tmp_path / "folder.json", root)


BILLION = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>'


@pytest.mark.parametrize("text", [BILLION, OUTSIDE, BILLION.replace("annotation>", "annotations>")])
@pytest.mark.parametrize("kind", ["voc", "cvat"])
def test_entities_are_refused(text, kind, root, tmp_path):
    assert "line 1: declares entities" in refusal(write(tmp_path / "a.xml", text), root, kind)


@pytest.mark.parametrize("kind", ["coco", "labelme", "labelstudio", "huggingface"])
def test_deep_nesting_and_huge_numbers(kind, root, tmp_path):
    file = tmp_path / ("metadata.jsonl" if kind == "huggingface" else "a.json")
    write(file, "[" * 200_000)
    assert refusal(file, root, kind)
    write(file, '{"a": ' * 100_000)
    assert refusal(file, root, kind)
    write(file, '{"images": [{"id": ' + "9" * 5000 + "}]}")
    assert refusal(file, root, kind)


def test_deep_xml(root, tmp_path):
    assert "nested more than 100 deep" in refusal(write(tmp_path / "a.xml", "<a>" * 200_000), root, "voc")


# ---------------------------------------------------------------- fields


def changed_coco(folder, change):
    path = coco(folder)
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    return path


COCO = [
    (lambda c: c.pop("categories"), "field 'categories' is missing"),
    (lambda c: c["annotations"][1].update(bbox="x"), "annotation 2: bbox is 'x'. A list of 4"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "annotation 2: bbox is [1, 2, 3]. A list of 4 numbers"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, "4"]), "annotation 2: bbox is '4'. A number is needed"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, True]), "annotation 2: bbox is True"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, None]), "annotation 2: bbox is null"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, float("nan"), 4]), "bbox is nan, which is no number of pixels"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, float("inf"), 4]), "bbox is inf"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, 10**400, 4]), "bbox is 1000"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, 1e300, 4]), "bbox is 1e+300"),
    (lambda c: c["annotations"][1].update(bbox=[1, 2, -3, 4]), "annotation 2: box 1, 2, -2, 6 has its ends before"),
    (lambda c: c["annotations"][1].update(bbox=[-5, 2, 10, 4]), "annotation 2: box -5, 2, 5, 6 (pixels) leaves"),
    (lambda c: c["annotations"][2].update(category_id=99), "3: category_id 99 is none of the file's 2 categories"),
    (lambda c: c["annotations"][2].update(image_id=99), "annotation 3: image_id 99 is none of the file's 2 images"),
    (lambda c: c["annotations"][2].update(image_id=[1]), "annotation 3: image_id is [1]"),
    (lambda c: c["annotations"][2].update(image_id=1.5), "annotation 3: image_id is no id"),
    (lambda c: c["annotations"].append(7), "annotation at place 4: it is 7. A JSON object"),
    (lambda c: c["images"][1].update(id=10), "image 10: its id is that of another image too ('cat/Zürich 1.jpg')"),
    (lambda c: c["images"][1].pop("file_name"), "image 20: field 'file_name' is missing"),
    (lambda c: c["images"][1].update(file_name=""), "image 20: file_name is ''. A text is needed"),
    (lambda c: c["images"][1].update(file_name="a\ud800"), "no text that can be written"),
    (lambda c: c["images"][1].update(width="x"), "image 20: width is 'x'"),
    (lambda c: c["images"][1].update(width=40.5), "image 20: width is 40.5. A whole number of pixels"),
    (lambda c: c["images"][1].update(width=-40), "image 20: width is -40"),
    (lambda c: c["categories"][1].update(name=5), "category 18: name is 5"),
    (lambda c: c["categories"][1].update(id=17), "category 17: its id is that of 'cat' and of 'dog'"),
    (lambda c: c.update(images={}), "images is a JSON object. A list is needed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), COCO, ids=[words[:40] for _, words in COCO])
def test_fields_of_coco(change, words, root, tmp_path):
    assert words in refusal(changed_coco(tmp_path, change), root)


def test_results_of_coco_are_refused_by_name(root, tmp_path):
    file = write(tmp_path / "r.json", '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]')
    assert "a file of COCO results" in refusal(file, root)


@pytest.mark.parametrize("top", ["3", '"x"', "null", "[]", "{}", "[1]", "NaN"])
@pytest.mark.parametrize("kind", ["coco", "labelme", "labelstudio"])
def test_the_wrong_top_level(top, kind, root, tmp_path):
    file = write(tmp_path / "a.json", top)
    if (kind, top) == ("labelstudio", "[]"):
        assert read(file, root, kind).rows == []
        return
    refusal(file, root, kind)
    refusal(file, root)


TEXTS = [
    ("voc", "xmin>11<", "xmin>eleven<", "b.xml, line 3: xmin is 'eleven'. A number is needed"),
    ("voc", "xmin>11<", "xmin>nan<", "xmin is 'nan', which is no number of pixels"),
    ("voc", "xmin>11<", "xmin>-inf<", "xmin is '-inf'"),
    ("voc", "xmin>11<", "xmin>1e99<", "xmin is '1e99'"),
    ("voc", "xmin>11<", "xmin>1_1<", "xmin is '1_1'"),
    ("voc", "xmin>11<", "xmin>39<", "box 39, 21, 30, 60 has its ends before its starts (is it x, y, width, height?)"),
    ("voc", "<xmin>11</xmin>", "", "bndbox has no xmin"),
    ("voc", "xmax>30<", "xmax>300<", "leaves the image, which has 40 x 80 pixels"),
    ("voc", "<name>dog</name>", "", "line 3: name is ''"),
    ("voc", "width>40<", "width>many<", "width is 'many'"),
    ("voc", "<annotation>", "<annotations>", "is no XML (mismatched tag"),
    ("yolo", "0.75", "x", "b.txt, line 1: number 7 is 'x'"),
    ("yolo", "0.75", "nan", "number 7 is 'nan'"),
    ("yolo", "1 0.25", "7 0.25", "class 7 has no name; 2 classes have one"),
    ("yolo", "1 0.25", "dog 0.25", "the class is 'dog'"),
    ("yolo", " 0.5 0.75\n", "\n", "b.txt, line 1: box"),  # as a box and its center: of 0.25, 0.25, 0.75, 0.5
    ("wsol", "10,20", "ten,20", "localization.txt, line 2: x0 is 'ten'"),
    ("wsol", ",60", "", "line 2: has 4 values"),
    ("wsol", "10,20,30", "30,20,10", "has its ends before its starts"),
    ("cub", "10.0", "x", "bounding_boxes.txt, line 2: x is 'x'"),
    ("cub", "2 10.0", "3 10.0", "line 2: id '3' is none of"),
    ("cub", " 40.0", "", "line 2: has 4 words"),
    ("openimages", "0.25,0.75,0.25", "0.75,0.25,0.25", "bbox.csv, line 4: box 0.75, 0.25, 0.25, 0.75 has its"),
    ("openimages", "b,xclick,/m/dog,1,0.25", "b,xclick,/m/dog,1,inf", "line 4: XMin is 'inf'"),
    ("openimages", "XMin", "xmin", "column XMin is missing"),
    ("openimages", "b,xclick,/m/dog,1,0.25", "b,xclick,1,0.25", "line 4: the number of cells"),
    ("imagenet_csv", "dog 11 21 30 60", "dog 11 21 30", "line 3: PredictionString has 4 words"),
    ("imagenet_csv", "dog 11", "dog 11.x", "line 3: PredictionString is '11.x'"),
    ("imagenet_csv", "dog 11", "dog -11", "leaves the image"),
    ("camify", "10.0,20.0", "x,20.0", "old.csv, line 4: x0 is 'x'"),
    ("camify", "10.0,20.0,30.0", "10.0,20.0", "line 4: the number of cells"),
    ("camify", "60.0,dog", "60.0,", "line 4: label is ''"),
    ("cvat", 'xtl="32"', 'xtl="wide"', "cvat.xml, line 3: xtl is 'wide'"),
    ("cvat", 'xtl="32"', "", "field 'xtl' is missing"),
    ("cvat", 'points="10,20', 'points="10;20', "points is not x,y;x,y"),
    ("cvat", 'width="64"', 'width="0"', "width is '0'"),
    ("cvat", 'label="cat"', 'label=""', "label is ''"),
    ("labelme", '"points": [[10, 20], [30, 20], [30, 60]]', '"points": [[10, 20]]', "b.json, shape 0: points has 1"),
    ("labelme", "[30, 20]", '[30, "y"]', "shape 0: points is 'y'"),
    ("labelme", "[30, 20]", "[30]", "points is [30]. A list of 2 numbers"),
    ("labelme", '"label": "dog", ', "", "field 'label' is missing"),
    ("labelme", '"imagePath": "b.png", ', "", "field 'imagePath' is missing"),
    ("labelstudio", '"x": 25', '"x": "25%"', "tasks.json, task 8, result 0: x is '25%'"),
    ("labelstudio", '"x": 25', '"x": 75', "leaves the image"),
    ("labelstudio", '"x": 25', '"x": NaN', "x is nan"),
    ("labelstudio", '"original_width": 40, ', "", "task 8, result 0: field 'original_width' is missing"),
    ("labelstudio", '"original_width": 40, "original_height": 80', '"original_width": 80, "original_height": 40',
     "states 80 x 40 pixels for '/data/local-files/?d=dog/b.png', which has 40 x 80. Its width and height are swapped"),
    ("labelstudio", '"rectanglelabels": ["dog"]}}]}]}]', '"rectanglelabels": [5]}}]}]}]', "rectanglelabels is 5"),
    ("huggingface", '"bbox": [10, 20, 20, 40]', '"bbox": [10, 20, 20]', "metadata.jsonl, line 2: bbox is [10, 20, 20]"),
    ("huggingface", '"category": "dog"', '"category": 1', "line 2: categories has the number 1"),
    ("huggingface", '["cat", "dog"]', '["cat"]', "line 1: objects has 2 boxes and 1 categories"),
    ("huggingface", '"file_name": "dog/b.png"', '"file": "b.png"', "line 2: file_name is null"),
    ("huggingface", "dog/b.png", "cat/Z\\u00fcrich 1.jpg", "line 2: file_name 'cat/Zürich 1.jpg' stands in line 1 too"),
    ("huggingface", '{"file_name": "dog', '"file_name": "dog', "line 2: is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "old", "new", "words"), TEXTS, ids=[f"{row[0]}: {row[3][:50]}" for row in TEXTS])
def test_values_of_the_other_kinds(kind, old, new, words, root, tmp_path):
    def change(content):
        text = content.decode()
        assert old in text
        start, _, end = text.rpartition(old)
        return f"{start}{new}{end}".encode()

    source, _ = damaged(kind, tmp_path, change)
    assert words in refusal(source, root, kind)


NAMES_OF_YOLO = [
    ("names: {a: cat}", "names has the key 'a'. The numbers of the classes"), ("names: []", "names is empty"),
    ("names: 5", "names is empty, or no list"), ("names: [[1]]", "names, number 0, is [1]"), ("names: [", "is no YAML"),
    ("names: " + "[" * 500, "is no YAML"), ("other: 1", "no file says their names"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), NAMES_OF_YOLO, ids=[words for _, words in NAMES_OF_YOLO])
def test_names_of_yolo(text, words, root, tmp_path):
    source = SAMPLES["yolo"](tmp_path)
    (source / "data.yaml").write_text(text)
    assert words in refusal(source, root, "yolo")


def test_a_task_without_an_image(root, tmp_path):
    file = write(tmp_path / "t.json", '[{"id": 5, "data": {"text": "hello"}, "annotations": [{"result": []}]}]')
    assert "task 5: names no image (there is text)" in refusal(file, root)


# ---------------------------------------------------------------- damage at random


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_read_right_or_refused(kind, root, tmp_path):
    chance, source = random.Random(1), SAMPLES[kind](tmp_path / "boxes")
    file = source / MAIN[kind] if source.is_dir() else source
    content, outcomes = file.read_bytes(), []
    for _ in range(60):
        file.write_bytes(mutated(content, chance))
        outcomes += [outcome(source, root, kind), outcome(source, root)]
    refusals = [one for one in outcomes if isinstance(one, str)]
    assert refusals
    assert not any("\n" in one for one in refusals)
    for name, x0, y0, x1, y1, label in (row for rows in outcomes if not isinstance(rows, str) for row in rows):
        width, height = IMAGES[name]
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert label.strip()


KEYS = st.sampled_from(["id", "bbox", "name", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["bbox", "id"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_json_in_the_place_of_any_field(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "any"
    kind = data.draw(st.sampled_from(["coco", "labelme", "labelstudio", "huggingface"]))
    source = SAMPLES[kind](folder)
    file = source / MAIN[kind] if source.is_dir() else source
    content = json.loads(file.read_text("utf-8").splitlines()[-1])
    places = list(_places(content))
    *way, last = data.draw(st.sampled_from(places))
    inside = content
    for step in way:
        inside = inside[step]
    inside[last] = data.draw(VALUES)
    file.write_text(json.dumps(content), "utf-8")
    assert "\n" not in str(outcome(source, folder / "images", kind))
    shutil.rmtree(folder)


def _places(value, way=()):
    """The way to everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*way, key)
        yield from _places(one, (*way, key))


def test_the_samples_are_right(root, tmp_path):
    """Else the tests above would pass for another reason."""
    for kind, sample in SAMPLES.items():
        assert read(sample(tmp_path / kind), root, kind).rows
    assert VOC
    assert OBJECT
    assert cvat(tmp_path).is_file()
