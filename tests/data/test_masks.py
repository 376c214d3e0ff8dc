"""Masks: which pixels are the object, at the image's size, and which mask is whose."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from camify.data.masks import mask_files, read_mask
from camify.errors import DataError

OBJECT = np.zeros((4, 6), bool)
OBJECT[1:3, 2:5] = True


def saved(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def with_palette(values, palette):
    image = Image.new("P", values.shape[::-1])
    image.putpalette(palette)
    image.putdata(values.reshape(-1).tolist())
    return image


def test_what_is_not_zero_is_the_object(tmp_path):
    gray = OBJECT.astype(np.uint8)
    kinds = {
        "one": gray, "white": gray * 255, "deep": gray.astype(np.uint16) * 4000, "bits": OBJECT,
        "red": np.stack([gray * 200, gray * 0, gray * 0], axis=2),
        "clear": np.stack([gray * 9, gray * 0, gray * 0, gray * 0 + 255], axis=2),
    }  # fmt: skip
    for name, values in kinds.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(values).save(path)
        found = read_mask(path, (6, 4))
        assert found.dtype == bool
        assert np.array_equal(found, OBJECT), name


def test_a_palette_counts_by_its_numbers_and_255_is_nobodys(tmp_path):
    """As in Pascal VOC, whose border is 255: whatever the colors, of which the first is black here."""
    values = OBJECT.astype(np.uint8) * 15
    values[0] = 255
    path = tmp_path / "voc.png"
    with_palette(values, [0] * 768).save(path)
    assert np.array_equal(read_mask(path, (6, 4)), OBJECT)
    values[values == 15] = 0
    with_palette(values, [0] * 768).save(path)  # 0 and 255 alone: of a binary mask
    assert np.array_equal(read_mask(path, (6, 4)), values == 255)


def test_numbers_of_classes_in_gray(tmp_path):
    values = OBJECT.astype(np.uint8) * 18
    values[3] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png", (6, 4)), OBJECT)
    values[0, 0] = 200  # soft edges, or many classes
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has 255 and values up to 200: soft edges"):
        read_mask(tmp_path / "a.png", (6, 4))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_stored_image_is_turned_with_it(orientation, tmp_path):
    Image.fromarray(OBJECT).save(tmp_path / "stored.png")
    photograph = Image.fromarray(OBJECT.astype(np.uint8))
    photograph.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(photograph)) > 0
    assert np.array_equal(read_mask(tmp_path / "stored.png", (4, 6), orientation), upright)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    assert np.array_equal(read_mask(tmp_path / "upright.png", (4, 6), orientation), upright)


def test_what_is_no_mask_of_the_image_is_refused(tmp_path):
    Image.fromarray(OBJECT).save(tmp_path / "a.png")
    for size in [(4, 6), (12, 8)]:
        with pytest.raises(DataError, match=rf"a\.png: has 6 x 4 pixels, and its image has {size[0]} x {size[1]}"):
            read_mask(tmp_path / "a.png", size)
    Image.fromarray(OBJECT.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="holds fractions"):
        read_mask(tmp_path / "a.tif", (6, 4))
    (tmp_path / "b.png").write_text("nothing")
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read as a mask"):
            read_mask(tmp_path / name, (6, 4))


def test_masks_are_found_by_name_and_what_is_alone_is_counted(tmp_path):
    masks, images = tmp_path / "masks", tmp_path / "images"
    for name in ("train/a.png", "val/a.png", "b.x.png", "alone.PNG"):
        saved(masks / name, OBJECT.astype(np.uint8))
    files = [images / name for name in ("train/cat/q.jpg", "b.x.jpg", "train/a.jpg", "val/a.jpg")]
    found = mask_files(masks, files)
    assert found.by_image == {
        images / "train/a.jpg": masks / "train/a.png", images / "val/a.jpg": masks / "val/a.png",
        images / "b.x.jpg": masks / "b.x.png",
    }  # fmt: skip
    assert found.notes == [
        f"{masks}: masks without an image are left out: 1; the first is {masks / 'alone.PNG'}",
        f"{masks}: images without a mask: 1 of 4; the first is {files[0]}",
    ]
    with pytest.raises(DataError, match=r"may be train/a\.png or val/a\.png"):
        mask_files(masks, [images / "a.jpg"])
    with pytest.raises(DataError, match="no such folder"):
        mask_files(tmp_path / "none", files)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no \.png files"):
        mask_files(tmp_path / "none", files)


def test_a_mask_belongs_to_the_image_that_lies_in_the_same_folders(tmp_path):
    """Numbered images are called alike in every class and split."""
    names = [f"{split}/{label}/0" for split in ("train", "val") for label in ("cat", "dog")]
    images = [tmp_path / "set" / f"{name}.jpg" for name in names]
    (tmp_path / "masks" / "train" / "cat").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "masks" / "train" / "cat" / "0.png")
    found = mask_files(tmp_path / "masks", images)
    assert found.by_image == {images[0]: tmp_path / "masks" / "train" / "cat" / "0.png"}
    assert any("images without a mask: 3 of 4" in note for note in found.notes)
    (tmp_path / "flat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "flat" / "0.png")
    with pytest.raises(DataError, match=r"may be the mask of .*train/cat/0\.jpg or of .*train/dog/0\.jpg"):
        mask_files(tmp_path / "flat", images)
