"""Boxes of every format become the same rows; the kind is found; what is left out, changed or assumed is said."""

from __future__ import annotations

import json

import globox
import pytest

from camify.data.box_formats import KINDS, ImageSizes, import_boxes
from camify.data.box_formats.importing import table_text
from camify.data.boxes_csv import read_boxes
from camify.errors import ConfigError, DataError
from tests.data.box_samples import IMAGES, OBJECT, ROWS, SAMPLES, VOC, coco, picture, pictures, write, yolo

sizes_64_48 = ImageSizes((64, 48))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "images"


@pytest.fixture
def images(root):
    return pictures(root)


def notes_of(imported):
    return "\n".join(imported.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_and_read_as_the_documents_say(kind, root, images, tmp_path):
    source = SAMPLES[kind](tmp_path / "boxes")
    imported = import_boxes(source, images, root)
    expected = ROWS if kind not in ("cub", "wsol") else [ROWS[0], ROWS[2]]
    assert imported.kind == kind
    assert imported.rows == expected
    assert imported.images == 2
    assert import_boxes(source, images, root, kind=kind).rows == expected


def test_the_table_is_read_as_it_was_written(root, images, tmp_path):
    imported = import_boxes(coco(tmp_path), images, root)
    table = write(root / "boxes.csv", table_text(imported.rows))
    found = read_boxes(table, IMAGES)
    assert found == imported.by_image
    assert [(name, *box, label) for name, rows in found.items() for box, label in rows] == ROWS


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("coco", ["crowd boxes are left out (iscrowd): 1", "annotation 4"]),
        ("openimages", ["boxes of groups are left out (IsGroupOf): 1", "line 5"]),
        ("yolo", ["polygons are turned into the boxes around them: 1", "data.yaml"]),
        ("cvat", ["polygons are turned", "shapes that are neither boxes nor polygons are left out: 1", "line 5"]),
        ("labelme", ["polygons are turned into the boxes around them: 1", "shape 0"]),
        ("voc", ["the first pixel is 1 and ends are inclusive", "no coordinate is 0, one is 1"]),
        ("imagenet_csv", ["the first pixel is 1 and ends are inclusive"]),
    ],
)
def test_what_is_left_out_changed_or_derived_is_said(kind, words, root, images, tmp_path):
    notes = notes_of(import_boxes(SAMPLES[kind](tmp_path / "boxes"), images, root))
    for word in words:
        assert word in notes


def test_globox_reads_the_same_corners(root, images, tmp_path):
    """Another library, which takes numbers as they stand: of VOC they differ by the origin alone."""
    path = coco(tmp_path)
    theirs = {
        (image.image_id, *(getattr(box, side) for side in ("xmin", "ymin", "xmax", "ymax")), box.label)
        for image in globox.AnnotationSet.from_coco(path)
        for box in image.boxes
    }
    crowd = ("dog/b.png", 0.0, 0.0, 9.0, 9.0, "dog")  # of which globox knows nothing
    assert theirs - {crowd} == set(import_boxes(path, images, root).rows)
    voc = globox.AnnotationSet.from_pascal_voc(SAMPLES["voc"](tmp_path))
    corners = sorted((box.xmin - 1, box.ymin - 1, box.xmax, box.ymax) for image in voc for box in image.boxes)
    assert corners == sorted(row[1:5] for row in ROWS)
    cvat = globox.AnnotationSet.from_cvat(SAMPLES["cvat"](tmp_path))
    assert [(b.xmin, b.ymin, b.xmax, b.ymax) for i in cvat for b in i.boxes] == [row[1:5] for row in ROWS[:2]]


# ---------------------------------------------------------------- which kind


def test_several_kinds_are_refused_with_all_that_was_seen(root, images, tmp_path):
    coco(tmp_path / "mixed")
    SAMPLES["cvat"](tmp_path / "mixed")
    with pytest.raises(DataError, match=r"several kinds: coco \(.*coco\.json\); cvat \(.*cvat\.xml\)"):
        import_boxes(tmp_path / "mixed", images, root)
    assert import_boxes(tmp_path / "mixed", images, root, kind="cvat").rows == ROWS


def test_an_unknown_kind_lists_what_is_known(root, images, tmp_path):
    write(tmp_path / "notes" / "a.txt", "Some words about nothing.\n")
    with pytest.raises(DataError, match=r"no known kind of boxes; seen there: 1 \.txt\..*coco \(COCO"):
        import_boxes(tmp_path / "notes", images, root)
    with pytest.raises(ConfigError, match=r"--kind 'pascal': is unknown\. Known are coco, voc"):
        import_boxes(tmp_path, images, root, kind="pascal")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        import_boxes(tmp_path / "nowhere", images, root)


def test_files_of_splits_are_read_together(root, tmp_path):
    """As Roboflow exports COCO: a file in each split's folder, names without folders."""
    paths = [picture(root / split / "a.jpg", (64, 48)) for split in ("train", "valid")]
    for split, x in (("train", 1), ("valid", 2)):
        content = {
            "images": [{"id": 0, "file_name": "a.jpg", "width": 64, "height": 48}],
            "categories": [{"id": 0, "name": "ant"}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [x, 2, 10, 10]}],
        }
        write(root / split / "_annotations.coco.json", json.dumps(content))
    assert [row[:2] for row in import_boxes(root, paths, root).rows] == [("train/a.jpg", 1), ("valid/a.jpg", 2)]


def test_yolos_names_may_stand_in_other_places(root, images, tmp_path):
    folder = yolo(tmp_path)
    (folder / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"no file says their names. Write them into data\.yaml"):
        import_boxes(folder, images, root)
    write(folder / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')  # as Label Studio adds it
    names = {"classes.txt": "cat\ndog\n", "obj.names": "cat\ndog\n", "data.yaml": "names: [cat, dog]\nnc: 2\n"}
    for name, text in names.items():
        file = write(folder / name, text)
        assert import_boxes(folder, images, root).rows == ROWS
        if name == "data.yaml":
            assert import_boxes(file, images, root).rows == ROWS
        file.unlink()


def test_label_studios_short_export_and_its_predictions(root, images, tmp_path):
    value = {"x": 25, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}
    task = {
        "id": 3,
        "image": "/data/upload/3/01234567-b.png",
        "label": [value | {"original_width": 40, "original_height": 80}],
    }
    assert import_boxes(write(tmp_path / "min.json", json.dumps([task])), images, root).rows == ROWS[2:]
    result = {"type": "rectanglelabels", "value": value, "original_width": 40, "original_height": 80}
    tasks = [{"data": {"image": "s3://bucket/x/b.png"}, "predictions": [{"model_version": "m", "result": [result]}]}]
    imported = import_boxes(write(tmp_path / "predictions.json", json.dumps(tasks)), images, root)
    assert imported.rows == ROWS[2:]
    assert "have predictions and no annotation: the predictions are taken: 1" in notes_of(imported)
    first = {"updated_at": "2024-01-02", "result": [result]}
    older = {"updated_at": "2024-01-01", "result": []}
    skipped = {"updated_at": "2024-01-03", "result": [], "was_cancelled": True}
    both = [
        {"id": 1, "data": {"image": "b.png"}, "annotations": [first, older, skipped]},
        {"id": 2, "data": {"image": "c.png"}},
    ]
    imported = import_boxes(write(tmp_path / "both.json", json.dumps(both)), images, root)
    assert imported.rows == ROWS[2:]
    assert "several annotations, of which the last is taken: 1" in notes_of(imported)
    assert "tasks without an annotation are left out: 1; the first is" in notes_of(imported)


def test_label_studios_labels_may_stand_beside_the_shape(root, images, tmp_path):
    """Of a configuration with Rectangle, Polygon and Labels: two results of one id."""
    size = {"original_width": 40, "original_height": 80}
    box = {"id": "q", "type": "rectangle", "value": {"x": 25, "y": 25, "width": 50, "height": 50}, **size}
    polygon = {"id": "r", "type": "polygon", "value": {"points": [[25, 25], [75, 25], [75, 75]]}, **size}
    labels = [{"id": one, "type": "labels", "value": {"labels": ["dog"]}, **size} for one in "qr"]
    bare = {"id": "s", "type": "rectangle", "value": {"x": 0, "y": 0, "width": 9, "height": 9}, **size}
    task = {"id": 1, "data": {"image": "b.png"}, "annotations": [{"result": [box, polygon, *labels, bare]}]}
    imported = import_boxes(write(tmp_path / "tasks.json", json.dumps([task])), images, root)
    assert imported.rows == [ROWS[2], ROWS[2]]
    assert "boxes without a label are left out: 1; the first is" in notes_of(imported)


def test_yolos_key_points_stand_behind_its_boxes(root, images, tmp_path):
    write(tmp_path / "y" / "data.yaml", "names: [cat, dog]\nkpt_shape: [2, 3]\n")
    write(tmp_path / "y" / "labels" / "b.txt", "1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2\n")
    assert import_boxes(tmp_path / "y", images, root).rows == ROWS[2:]


def test_wsolevaluations_class_numbers_and_several_lines(root, images, tmp_path):
    folder = SAMPLES["wsol"](tmp_path)
    write(folder / "class_labels.txt", "cat/Zürich 1.jpg,3\ndog/b.png,14\n")
    write(folder / "localization.txt", "dog/b.png,10,20,30,60\ndog/b.png,0,0,5,5\n")
    imported = import_boxes(folder, images, root)
    assert imported.rows == [("dog/b.png", 10, 20, 30, 60, "14"), ("dog/b.png", 0, 0, 5, 5, "14")]
    assert "labels are the class numbers of class_labels.txt" in notes_of(imported)


@pytest.mark.parametrize(
    ("kind", "file"),
    [("voc", "b.xml"), ("labelme", "b.json"), ("yolo", "labels/dog/b.txt"), ("cub", "bounding_boxes.txt")],
)
def test_a_single_file_of_a_folder(kind, file, root, images, tmp_path):
    source = SAMPLES[kind](tmp_path) / file
    imported = import_boxes(source, images, root)
    assert imported.kind == kind
    assert imported.rows[-1] == ROWS[2]


def test_what_files_of_splits_leave_out_is_counted_together(root, images, tmp_path):
    for name in ("train", "val"):
        content = json.loads(coco(tmp_path / "x").read_text("utf-8"))
        content["images"] = content["images"][name == "val" :][:1]
        known = content["images"][0]["id"]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] == known]
        content["annotations"][0]["iscrowd"] = 1
        write(tmp_path / "sets" / f"{name}.json", json.dumps(content))
    imported = import_boxes(tmp_path / "sets", images, root)
    assert imported.rows == [ROWS[1]]
    assert "crowd boxes are left out (iscrowd): 3; the first is" in notes_of(imported)
    assert "train.json, annotation 1" in notes_of(imported)


# ---------------------------------------------------------------- turned boxes


def test_turned_boxes_become_the_upright_ones_around_them(root, images, tmp_path):
    """A square of side 10 turned by 45 degrees about its center is as wide as its diagonal."""
    text = '<annotations><image id="0" name="b.png" width="40" height="80">{}</image></annotations>'
    box = '<box label="dog" xtl="10" ytl="30" xbr="20" ybr="40" rotation="45.0"></box>'
    imported = import_boxes(write(tmp_path / "turned.xml", text.format(box)), images, root)
    half = 10 / 2**0.5
    assert imported.rows[0][1:5] == pytest.approx((15 - half, 35 - half, 15 + half, 35 + half), abs=1e-3)
    assert "turned boxes are replaced by the upright boxes around them: 1" in notes_of(imported)


def test_label_studio_turns_about_the_first_corner(root, images, tmp_path):
    """By 90 degrees clockwise, in pixels: the width goes down, the height to the left."""
    value = {"x": 50, "y": 25, "width": 25, "height": 10, "rotation": 90, "rectanglelabels": ["dog"]}
    result = {"type": "rectanglelabels", "value": value, "original_width": 40, "original_height": 80}
    tasks = [{"id": 1, "data": {"image": "b.png"}, "annotations": [{"result": [result]}]}]
    imported = import_boxes(write(tmp_path / "tasks.json", json.dumps(tasks)), images, root)
    assert imported.rows[0][1:5] == pytest.approx((20 - 8, 20, 20, 30), abs=1e-3)  # 10 x 8 pixels become 8 x 10
    result["image_rotation"] = 90
    imported = import_boxes(write(tmp_path / "tasks.json", json.dumps(tasks)), images, root)
    assert not imported.rows
    assert "image that was turned in Label Studio (image_rotation) are left out: 1" in notes_of(imported)


# ---------------------------------------------------------------- the first pixel of VOC


def one_voc(folder, *corners, size=(64, 48)):
    objects = "".join(OBJECT.format("cat", *box) for box in corners)
    text = VOC.format(folder="cat", name="Zürich 1.jpg", width=size[0], height=size[1], objects=objects)
    write(folder / "a.xml", text)
    return folder


@pytest.mark.parametrize(
    ("boxes", "given", "expected", "words"),
    [
        ([(0, 5, 20, 30)], None, (0, 5, 20, 30), "the first pixel is 0 and ends are exclusive, since"),
        ([(0.5, 5, 20, 30)], None, (0.5, 5, 20, 30), "the first pixel is 0"),
        ([(5, 5, 20, 30)], None, (4, 4, 20, 30), "assumed: the first pixel is 1"),
        ([(5, 5, 20, 30)], 0, (5, 5, 20, 30), "the first pixel is 0, as given"),
        ([(5, 5, 20, 30)], 1, (4, 4, 20, 30), "the first pixel is 1, as given"),
        ([(48.5, 5, 64, 30), (1, 2, 30, 40)], None, (47.5, 4, 64, 30), "no coordinate is 0, one is 1"),
        ([(5, 5, 64, 30)], None, (4, 4, 64, 30), "assumed"),  # the end alone decides nothing
    ],
)  # fmt: skip
def test_the_first_pixel_of_voc_is_derived_or_assumed_and_said(boxes, given, expected, words, root, images, tmp_path):
    imported = import_boxes(one_voc(tmp_path / "voc", *boxes), images, root, voc_origin=given)
    assert imported.rows[0][1:5] == expected
    assert words in notes_of(imported)
    assert ("--voc_origin 0" in notes_of(imported)) == (words.startswith("assumed"))


def test_a_given_first_pixel_that_contradicts_the_file_is_refused(root, images, tmp_path):
    folder = one_voc(tmp_path / "voc", (3, 3, 9, 9), (0, 5, 20, 30))
    with pytest.raises(DataError, match=r"a\.xml, line \d+: a coordinate is below 1, so the first pixel is not 1"):
        import_boxes(folder, images, root, voc_origin=1)
    with pytest.raises(ConfigError, match="--voc_origin is of Pascal VOC"):
        import_boxes(coco(tmp_path), images, root, voc_origin=1)
    with pytest.raises(ConfigError, match="choose 0 or 1"):
        import_boxes(folder, images, root, voc_origin=2)


# ---------------------------------------------------------------- edges and sizes


def one_coco(path, box, *, name="cat/Zürich 1.jpg", size=(64, 48), **more):
    image = {"id": 1, "file_name": name, **({"width": size[0], "height": size[1]} if size else {})}
    annotation = {"id": 9, "image_id": 1, "category_id": 1, "bbox": list(box)}
    return write(
        path,
        json.dumps({"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [annotation], **more}),
    )


@pytest.mark.parametrize(
    ("box", "expected", "words"),
    [
        ((-0.5, 3, 20, 45.9), (0, 3, 19.5, 48), "left the image by at most a pixel are clipped: 1"),
        ((0, 0, 64.0004, 48), (0, 0, 64, 48), ""),  # rounding of six digits
        ((3, 3, 0, 5), None, "boxes without width or height are left out: 1"),
        ((0, 0, 1, 1), None, "boxes within the first pixel are left out: 1"),  # boxes.csv takes them for shares
    ],
)
def test_edges(box, expected, words, root, images, tmp_path):
    imported = import_boxes(one_coco(tmp_path / "c.json", box), images, root)
    assert [row[1:5] for row in imported.rows] == ([] if expected is None else [expected])
    assert words in notes_of(imported)
    assert bool(words) == bool(imported.notes)


@pytest.mark.parametrize(
    ("box", "size", "words"),
    [
        ((60, 3, 20, 20), (64, 48), "annotation 9: box 60, 3, 80, 23 (pixels) leaves the image, which has 64 x 48"),
        ((60, 3, -20, 20), (64, 48), "annotation 9: box 60, 3, 40, 23 has its ends before its starts"),
        (
            (3, 3, 20, 20),
            (48, 64),
            "image 1: states 48 x 64 pixels for 'cat/Zürich 1.jpg', which has 64 x 48. Its width",
        ),
        ((3, 3, 20, 20), (64, 47), "states 64 x 47 pixels"),
        ((3, 3, 20, 20), (640, 640), "another image, or a crop"),
    ],
)
def test_what_cannot_be_right_is_named(box, size, words, root, images, tmp_path):
    with pytest.raises(DataError) as refused:
        import_boxes(one_coco(tmp_path / "c.json", box, size=size), images, root)
    assert words in str(refused.value)
    assert str(tmp_path / "c.json") in str(refused.value)


def test_boxes_of_a_resized_copy_are_scaled(root, images, tmp_path):
    imported = import_boxes(one_coco(tmp_path / "c.json", (32, 24, 64, 48), size=(128, 96)), images, root)
    assert imported.rows[0][1:5] == (16, 12, 48, 36)
    assert "another size than the file states, of the same shape: their boxes are scaled: 1" in notes_of(imported)


def test_pixels_in_the_place_of_shares(root, images, tmp_path):
    write(tmp_path / "y" / "classes.txt", "cat\n")
    write(tmp_path / "y" / "labels" / "b.txt", "0 20 40 10 10\n")
    with pytest.raises(DataError, match=r"b\.txt, line 1: .*shares of the image.* Are they pixels\?"):
        import_boxes(tmp_path / "y", images, root)


# ---------------------------------------------------------------- which image


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("train/cat/a.jpg", "train/cat/a.jpg"), ("cat/a.jpg", "train/cat/a.jpg"), ("C:\\dog\\a.jpg", "train/dog/a.jpg"),
        ("/home/me/train/dog/a.png", "train/dog/a.jpg"), ("n0144_2.v", "train/cat/n0144_2.v.jpg"), ("./b.jpg", "b.jpg"),
        ("dog_jpg.rf.0123456789abcdef0123456789abcdef.jpg", "train/cat/dog.jpg"), ("http://x:80/y/b.jpg?z=1", "b.jpg"),
        ("/data/upload/4/89abcdef-my_cat_2.jpg", "train/cat/my cat (2).jpg"), ("x%20y.jpg", "train/x y.jpg"),
        ("/data/local-files/?d=a/x%20y.jpg", "train/x y.jpg"), ("/data/local-files/?d=a/x+y.jpg", "train/x y.jpg"),
    ],
)  # fmt: skip
def test_an_image_is_known_by_its_path_or_what_is_left_of_it(given, found, root, tmp_path):
    names = ["train/cat/a.jpg", "train/dog/a.jpg", "train/cat/n0144_2.v.jpg", "b.jpg", "train/cat/dog.jpg",
             "train/cat/my cat (2).jpg", "train/x y.jpg"]  # fmt: skip
    paths = [root / name for name in names]
    imported = import_boxes(
        one_coco(tmp_path / "c.json", (1, 1, 9, 9), name=given), paths, root, sizes=lambda path: sizes_64_48
    )
    assert [row[0] for row in imported.rows] == [found]


def test_equally_likely_images_are_refused_with_both(root, tmp_path):
    paths = [root / "train/cat/a.jpg", root / "val/cat/a.jpg"]
    with pytest.raises(DataError, match=r"image 'cat/a\.jpg' may be train/cat/a\.jpg or val/cat/a\.jpg"):
        import_boxes(one_coco(tmp_path / "c.json", (1, 1, 9, 9), name="cat/a.jpg"), paths, root)


def test_images_of_other_folders_are_other_images_where_folders_agree(root, tmp_path):
    """A table of all classes, and images of two: 1.jpg and 2.jpg of the third are not those of the others."""
    rows = "".join(f"{name},1,1,9,9,x\n" for name in ("ant/1.jpg", "bee/1.jpg", "cat/1.jpg", "cat/2.jpg"))
    file = write(tmp_path / "b.csv", "image,x0,y0,x1,y1,label\n" + rows)
    paths = [root / name for name in ("ant/1.jpg", "bee/1.jpg", "bee/2.jpg")]
    imported = import_boxes(file, paths, root, sizes=lambda path: sizes_64_48)
    assert [row[0] for row in imported.rows] == ["ant/1.jpg", "bee/1.jpg"]
    assert f"images that are not below {root}: 2; the first is cat/1.jpg" in notes_of(imported)
    moved = import_boxes(file, [root / "all" / "2.jpg"], root, sizes=lambda path: sizes_64_48)  # none agrees
    assert [row[0] for row in moved.rows] == ["all/2.jpg"]
    assert "known by their names alone" in notes_of(moved)


def test_two_names_of_one_image_are_refused(root, tmp_path):
    write(tmp_path / "b.csv", "image,x0,y0,x1,y1,label\ntrain/a.jpg,1,1,9,9,cat\nval/a.jpg,2,2,9,9,cat\n")
    with pytest.raises(DataError, match=r"line 3: image 'val/a\.jpg' is a\.jpg, and so is 'train/a\.jpg'"):
        import_boxes(tmp_path / "b.csv", [root / "a.jpg"], root)


def test_absent_images_are_counted_and_none_at_all_is_an_error(root, images, tmp_path):
    file = write(
        tmp_path / "b.csv", "image,x0,y0,x1,y1,label\nx.jpg,1,1,9,9,cat\nb.png,2,2,9,9,cat\ny.jpg,1,1,9,9,cat\n"
    )
    imported = import_boxes(file, images, root)
    assert [row[0] for row in imported.rows] == ["dog/b.png"]
    assert f"images that are not below {root}: 2; the first is x.jpg" in notes_of(imported)
    with pytest.raises(
        DataError, match=r"none of its 3 images is below .*; the first is 'x\.jpg', and there it is 'q\.jpg'"
    ):
        import_boxes(file, [root / "q.jpg"], root)


def test_copies_of_one_image_in_several_splits_are_said(root, tmp_path):
    names = [f"{split}/images/dog_jpg.rf.{digit * 32}.jpg" for split, digit in (("train", "a"), ("valid", "b"))]
    rows = "".join(f"{name},1,1,9,9,dog\n" for name in names)
    file = write(tmp_path / "b.csv", "image,x0,y0,x1,y1,label\n" + rows)
    imported = import_boxes(file, [root / name for name in names], root, sizes=lambda path: sizes_64_48)
    assert "1 images have copies by Roboflow in several splits" in notes_of(imported)
    assert len(imported.rows) == 2


def test_headers_are_read_of_images_with_boxes_alone(root, images, tmp_path):
    asked = []

    def sizes(path):
        asked.append(path.name)
        return sizes_64_48

    import_boxes(one_coco(tmp_path / "c.json", (1, 1, 9, 9)), images, root, sizes=sizes)
    assert asked == ["Zürich 1.jpg"]


def test_many_images_of_one_name_take_no_long(root, tmp_path):
    """Three thousand files called 0.jpg, whose folders the table names below another one: quadratic work would show."""
    paths = [root / f"{folder}/0.jpg" for folder in range(3_000)]
    lines = "".join(f"data/{folder}/0.jpg,1,1,9,9,cat\n" for folder in range(3_000))
    file = write(tmp_path / "b.csv", "image,x0,y0,x1,y1,label\n" + lines)
    imported = import_boxes(file, paths, root, sizes=lambda path: sizes_64_48)
    assert len(imported.rows) == 3_000
