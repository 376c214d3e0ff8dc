"""Boxes of images that their EXIF tag turns: by the true transform, where a stated size says so; else said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from camify.data import image_checks
from camify.data.box_formats import ImageSizes, import_boxes
from camify.data.box_formats.upright import read_image_sizes, sizes_of, upright_box
from camify.data.remembered_checks import check_files
from camify.errors import ConfigError, DataError
from tests.data.box_samples import picture, write

STORED, BOX = (12, 8), (1, 2, 6, 7)


def seen_box(orientation):
    """Where Pillow puts a drawn box when it turns the image."""
    pixels = np.zeros((STORED[1], STORED[0]), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(image)))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_as_pillow_turns_the_image(orientation):
    assert upright_box(BOX, ImageSizes(STORED, orientation)) == seen_box(orientation)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_sizes_are_those_of_the_stored_and_of_the_seen_image(suffix, orientation, tmp_path):
    path = picture(tmp_path / f"a.{suffix}", STORED, orientation)
    sizes = sizes_of(path)
    assert sizes == ImageSizes(STORED, orientation)
    with Image.open(path) as image:
        assert sizes.upright == ImageOps.exif_transpose(image).size
    if suffix != "tif":
        assert tuple(image_checks.sizes_of(check_files([path], decode=False)[0])[0]) == sizes.upright


def coco(folder, box, size=None, **info):
    stated = {} if size is None else {"width": size[0], "height": size[1]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **stated}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        "info": info,
    }
    return write(folder / "c.json", json.dumps(content))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_stated_size_says_where_boxes_lie(orientation, tmp_path):
    path = picture(tmp_path / "images" / "a.jpg", STORED, orientation)
    x0, y0, x1, y1 = seen_box(orientation)
    stored = coco(tmp_path, [1, 2, 5, 5], STORED)
    imported = import_boxes(stored, [path], path.parent)
    assert imported.rows == [("a.jpg", x0, y0, x1, y1, "cat")]
    assert "their stated sizes are the stored ones: their boxes are turned with them" in "\n".join(imported.notes)
    upright = coco(tmp_path, [x0, y0, x1 - x0, y1 - y0], STORED[::-1])
    imported = import_boxes(upright, [path], path.parent)
    assert imported.rows == [("a.jpg", x0, y0, x1, y1, "cat")]
    assert not imported.notes
    doubled = coco(tmp_path, [2, 4, 10, 10], (24, 16))
    assert import_boxes(doubled, [path], path.parent).rows == [("a.jpg", x0, y0, x1, y1, "cat")]


@pytest.mark.parametrize(("orientation", "size"), [(2, STORED), (3, STORED), (4, STORED), (6, None), (8, None)])
def test_what_nothing_says_is_assumed_said_and_can_be_given(orientation, size, tmp_path):
    path = picture(tmp_path / "images" / "a.jpg", STORED, orientation)
    file = coco(tmp_path, [1, 2, 5, 5], size)
    imported = import_boxes(file, [path], path.parent)
    assert imported.rows == [("a.jpg", *BOX, "cat")]
    assert "1 images are turned or mirrored by their EXIF tag" in imported.notes[-1]
    assert "assumed: boxes belong to the upright image (--exif stored" in imported.notes[-1]
    imported = import_boxes(file, [path], path.parent, exif="stored")
    assert imported.rows == [("a.jpg", *seen_box(orientation), "cat")]
    assert "as given: boxes belong to the stored image (--exif upright" in imported.notes[-1]
    with pytest.raises(ConfigError, match="choose stored or upright"):
        import_boxes(file, [path], path.parent, exif="turned")


def test_shares_of_a_turned_image(tmp_path):
    path = picture(tmp_path / "images" / "a.jpg", STORED, 6)
    write(tmp_path / "y" / "classes.txt", "cat\n")
    write(tmp_path / "y" / "labels" / "a.txt", "0 0.25 0.5 0.5 0.5\n")
    assert import_boxes(tmp_path / "y", [path], path.parent).rows == [("a.jpg", 0, 3, 4, 9, "cat")]  # of 8 x 12
    turned = import_boxes(tmp_path / "y", [path], path.parent, exif="stored")
    assert turned.rows == [("a.jpg", 2, 0, 6, 6, "cat")]  # 0, 2, 6, 6 of 12 x 8, clockwise


def test_camifys_own_boxes_are_upright_by_definition(tmp_path):
    path = picture(tmp_path / "images" / "a.jpg", STORED, 6)
    file = write(tmp_path / "b.csv", "image,x0,y0,x1,y1,label\na.jpg,1,2,6,11,cat\n")
    imported = import_boxes(file, [path], path.parent)
    assert (imported.rows, imported.notes) == ([("a.jpg", 1, 2, 6, 11, "cat")], [])
    with pytest.raises(ConfigError, match="--exif stored: boxes of kind camify are those of the upright image"):
        import_boxes(file, [path], path.parent, exif="stored")


def test_label_studios_coco_states_the_stored_size_for_upright_boxes(tmp_path):
    """HumanSignal/label-studio#6608."""
    path = picture(tmp_path / "images" / "a.jpg", STORED, 6)
    file = coco(tmp_path, [1, 2, 5, 9], STORED, contributor="Label Studio")
    imported = import_boxes(file, [path], path.parent)
    assert imported.rows == [("a.jpg", 1, 2, 6, 11, "cat")]  # of 8 x 12, where they fit
    assert "assumed: boxes belong to the upright image" in imported.notes[-1]


def test_a_box_that_fits_only_the_turned_image_is_refused_with_a_hint(tmp_path):
    path = picture(tmp_path / "images" / "a.jpg", STORED, 6)
    with pytest.raises(DataError, match=r"leaves the image, which has 12 x 8 pixels. It fits the image turned by 90"):
        import_boxes(coco(tmp_path, [1, 2, 5, 9], STORED), [path], path.parent)


def test_images_that_cannot_be_read_are_named(tmp_path):
    path = write(tmp_path / "a.jpg", "no picture")
    with pytest.raises(DataError, match=r"1 images cannot be read; repair or remove: .*a\.jpg"):
        read_image_sizes([path])
