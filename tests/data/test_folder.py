from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from camify.data import ImageFolderDataModule
from camify.data.boxes_csv import is_box_table, read_boxes
from camify.errors import DataError
from camify.preprocessing import read_image
from tests.data.equal import equal

WIDTH, HEIGHT = 40, 20


def picture(width=WIDTH, height=HEIGHT, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:height, :width])


def grow(root, *names, **options):
    """Save a picture of its own under each of these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed=zlib.crc32(name.encode()), **options).save(path)
    return root


@pytest.fixture
def root(tmp_path):
    """Two classes, two images each to train, one each to validate."""
    return grow(
        tmp_path / "set",
        *(f"train/{name}/{index}.png" for name in ("cat", "dog") for index in (0, 1)),
        *(f"val/{name}/2.png" for name in ("cat", "dog")),
    )


def module(root, **options):
    return ImageFolderDataModule(str(root), **({"image_size": 16, "batch_size": 3, "num_workers": 0} | options))


def ready(root, **options):
    data = module(root, **options)
    data.setup()
    return data


def pairs(data, split):
    """(path below the root, class name) of every sample."""
    return [
        (path.relative_to(data.root).as_posix(), data.class_names[label])
        for path, label in zip(data.splits[split].files, data.splits[split].labels, strict=True)
    ]


def write_boxes(root, *lines, header="image,x0,y0,x1,y1,label"):
    (root / "boxes.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def error(root, **options):
    """What setup says against the folder."""
    with pytest.raises(DataError) as caught:
        ready(root, **options)
    return str(caught.value)


# --- folders and classes ----------------------------------------------------------------------------------


def test_class_order_is_that_of_train_sorted(tmp_path):
    names = ["zebra", "Ant", "bee", "10", "9"]
    grow(tmp_path, *(f"train/{name}/a.png" for name in names), *(f"val/{name}/a.png" for name in names[::-1]))
    data = ready(tmp_path)
    assert data.class_names == sorted(names) == ["10", "9", "Ant", "bee", "zebra"]
    for split in ("train", "val"):
        assert pairs(data, split) == [(f"{split}/{name}/a.png", name) for name in sorted(names)]
    assert data.splits["val"].labels == [0, 1, 2, 3, 4]


def test_a_class_missing_in_val_is_counted_and_shifts_nothing(tmp_path):
    grow(tmp_path, *(f"train/{name}/a.png" for name in "abcd"), "val/d/a.png", "val/b/a.png")
    data = module(tmp_path)
    with pytest.warns(UserWarning, match=r"val: no images of 2 classes \(a, c\)"):
        data.setup()
    assert pairs(data, "val") == [("val/b/a.png", "b"), ("val/d/a.png", "d")]
    assert data.splits["val"].labels == [1, 3]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_named(root, split):
    grow(root, f"{split}/cat/a.png", f"{split}/emu/a.png")
    assert f"{root / split / 'emu'}" in error(root)


def test_test_folder_is_used_where_there_is_one(root):
    without = ready(root)
    assert equal(list(without.test_dataloader()), list(without.val_dataloader()))
    grow(root, "test/cat/t.png", "test/dog/t.png")
    data = ready(root)
    paths = [path for batch in data.test_dataloader() for path in batch["path"]]
    assert paths == [str(root / "test/cat/t.png"), str(root / "test/dog/t.png")]
    assert equal(list(data.predict_dataloader()), list(data.test_dataloader()))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_named(root, split):
    (root / split / "eel").mkdir()
    grow(root, "train/eel/a.png") if split == "val" else None
    assert f"{root / split / 'eel'}: holds no images" in error(root)


def test_missing_val(root):
    for path in (root / "val").rglob("*.png"):
        path.unlink()
    (root / "val/cat").rmdir()
    (root / "val/dog").rmdir()
    assert f"{root / 'val'}: holds no class folders" in error(root)
    (root / "val").rmdir()
    assert f"{root / 'val'}: no such folder" in error(root)


def test_missing_root_or_train_is_named_at_once(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.train: no such folder"):
        module(tmp_path / "nowhere")
    (tmp_path / "train").write_text("a file")
    with pytest.raises(DataError, match="train: no such folder"):
        module(tmp_path)
    (tmp_path / "b" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="train: holds no class folders"):
        module(tmp_path / "b")


def test_hidden_and_other_files_are_left_out(root):
    before = pairs(ready(root), "train")
    for name in (
        ".DS_Store",
        "train/.DS_Store",
        "train/cat/.DS_Store",
        "train/cat/._0.png",
        "train/cat/.thumbnails/0.png",
        "train/.cache/0.png",
        "train/cat/notes.txt",
        "train/cat/labels.csv",
        "train/readme.md",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7 no image")
    (root / "train/cat/folder.png").mkdir()
    data = ready(root)
    assert data.class_names == ["cat", "dog"]
    assert pairs(data, "train") == before


def test_a_hidden_folder_above_the_root_hides_nothing(tmp_path):
    grow(tmp_path / ".data/set", "train/a/1.png", "val/a/1.png")
    assert len(ready(tmp_path / ".data/set").splits["train"]) == 1


def test_nested_files_and_suffixes_in_capitals(root):
    grow(root, "train/cat/far/down/x.png", "train/cat/B.JPG", "train/cat/c.jpeg", "train/cat/d.webp")
    assert pairs(ready(root), "train")[:6] == [
        (f"train/cat/{name}", "cat") for name in ("0.png", "1.png", "B.JPG", "c.jpeg", "d.webp", "far/down/x.png")
    ]


def test_names_with_blanks_commas_and_other_alphabets(tmp_path):
    grow(tmp_path, "train/gru\u0308n, alt/\u5f71 1.png", "val/gru\u0308n, alt/x.png")
    write_boxes(tmp_path, '"train/gru\u0308n, alt/\u5f71 1.png",0,0,40,20,"gru\u0308n, alt"')
    assert ready(tmp_path).splits["train"][0]["boxes"].tolist() == [[0, 0, 16, 16]]


def test_a_linked_class_folder_is_followed_and_a_broken_link_is_named(root, tmp_path):
    grow(tmp_path, "elsewhere/x.png")
    try:
        (root / "train/emu").symlink_to(tmp_path / "elsewhere")
    except OSError:
        pytest.skip("no links here")
    with pytest.warns(UserWarning, match="1 classes"):
        data = ready(root)
    assert pairs(data, "train")[-1] == ("train/emu/x.png", "emu")
    (root / "train/emu/gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.warns(UserWarning, match="1 classes"):
        assert "gone.png" in error(root)


# --- images that cannot be read ---------------------------------------------------------------------------


def encoded(suffix, mode="RGB", **options):
    stream = io.BytesIO()
    picture(240, 160).convert(mode).save(stream, suffix, **options)
    return stream.getvalue()


def png_header(width, height):
    """A PNG that claims this size and holds hardly any pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


BAD = {
    "train/cat/cut.jpg": encoded("JPEG")[:-200],
    "train/cat/empty.png": b"",
    "train/dog/text.jpg": b"This is no image, whatever its name.",
    "val/dog/head.png": png_header(30000, 30000),
}


def test_all_bad_images_are_named_at_once(root):
    for name, content in BAD.items():
        (root / name).write_bytes(content)
    said = error(root)
    assert said.startswith("4 images cannot be read")
    for name in BAD:
        assert str(root / name) in said
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_alone(root, name):
    (root / name).write_bytes(BAD[name])
    said = error(root)
    assert said.startswith("1 image cannot be read")
    assert str(root / name) in said


FORMATS = {
    "plain.jpg": encoded("JPEG"),
    "progressive.jpg": encoded("JPEG", progressive=True),
    "gray.jpg": encoded("JPEG", "L"),
    "four.jpg": encoded("JPEG", "CMYK"),
    "a.png": encoded("PNG"),
    "lossy.webp": encoded("WEBP"),
    "lossless.webp": encoded("WEBP", lossless=True),
    "a.tif": encoded("TIFF", compression="tiff_lzw"),
    "a.bmp": encoded("BMP"),
    "a.ppm": encoded("PPM"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning", "ignore:Truncated File:UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
def test_the_quick_check_finds_what_full_decoding_would(root, kind):
    """JPEG is checked at an eighth of its size: no cut may slip through that training would stumble on."""
    content, expected = FORMATS[kind], set()
    length = len(content)
    suffix = kind.rpartition(".")[2]
    for cut in (
        0,
        1,
        2,
        4,
        16,
        30,
        60,
        200,
        length // 4,
        length // 2,
        length * 9 // 10,
        length - 20,
        length - 3,
    ):
        path = root / f"train/cat/cut{cut:07d}.{suffix}"
        path.write_bytes(content[: length - cut])
        try:
            read_image(path)
        except DataError:
            expected.add(str(path))
        assert (cut == 0) <= (str(path) not in expected)
        assert (cut >= 60) <= (str(path) in expected)
    said = error(root)
    assert {line.partition(": ")[0] for line in said.splitlines()[1:]} == expected


@pytest.mark.parametrize("side", [10000, 30000])
def test_a_decompression_bomb_is_refused_by_its_header(root, side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own default
    for path in root.rglob("*.png"):
        path.write_bytes(png_header(side, side))
    said = error(root)
    assert said.startswith("6 images")
    assert "decompression bomb" in said


def test_checking_leaves_the_process_warnings_as_they_were(root):
    for index in range(40):
        grow(root, f"train/cat/more{index}.png")
    for _ in range(3):
        before = list(warnings.filters)
        ready(root)
        assert warnings.filters == before


def test_without_check_nothing_is_decoded(root, monkeypatch):
    grow(root, "train/cat/whole.jpg", width=240, height=160)
    cut = root / "train/cat/cut.jpg"
    cut.write_bytes(FORMATS["plain.jpg"][:-200])
    opened = []
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args))
    data = ready(root, check_images=False)
    assert not opened
    monkeypatch.undo()
    index = list(data.splits["train"].files).index(cut)
    with pytest.raises(DataError, match=r"cut\.jpg"):
        data.splits["train"][index]


def test_without_check_boxes_need_the_headers_only(root, monkeypatch):
    for path in root.rglob("*.png"):
        picture().save(path.with_suffix(".jpg"))
        path.unlink()
    write_boxes(root, "train/cat/0.jpg,0,0,40,20,cat")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    data = ready(root, check_images=False)
    monkeypatch.undo()
    assert data.splits["train"][0]["boxes"].tolist() == [[0, 0, 16, 16]]
    (root / "train/cat/text.jpg").write_bytes(b"no image")
    assert "text.jpg" in error(root, check_images=False)


# --- boxes ------------------------------------------------------------------------------------------------

GOOD = "train/cat/0.png,10,5,30,15,cat"

BAD_LINES = {
    "train/cat/0.png,30,5,10,15,cat": "x0 < x1",
    "train/cat/0.png,10,5,10,15,cat": "x0 < x1",
    "train/cat/0.png,10,15,30,5,cat": "y0 < y1",
    "train/cat/0.png,nan,5,30,15,cat": "not finite",
    "train/cat/0.png,10,5,inf,15,cat": "not finite",
    "train/cat/0.png,-inf,5,30,15,cat": "not finite",
    "train/cat/0.png,0.1,0.2,0.8,1.0,cat": "normalized",
    "train/cat/0.png,-1,5,30,15,cat": "leaves the image (40 x 20 px)",
    "train/cat/0.png,10,5,40.5,15,cat": "leaves the image (40 x 20 px)",
    "train/cat/0.png,5,10,15,30,cat": "leaves the image (40 x 20 px)",
    "train/cat/0.png,10,five,30,15,cat": "not a number: 10, five, 30, 15",
    "train/cat/0.png,10,,30,15,cat": "not a number",
    "train/cat/9.png,10,5,30,15,cat": "'train/cat/9.png' is not in the data set",
    "0.png,10,5,30,15,cat": "'0.png' is not in the data set",
    "train/cat/0.png,10,5,30,15": "number of fields",
    "train/cat/0.png,10,5": "number of fields",
    "train/cat/0.png": "number of fields",
    "train/cat/0.png,10,5,30,15,cat,dog": "number of fields",
    "train/cat/0.png;10;5;30;15;cat": "number of fields",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_with_its_cause(root, line):
    write_boxes(root, GOOD, line, GOOD)
    said = error(root)
    assert said.startswith(f"{root / 'boxes.csv'}:3: ")
    assert BAD_LINES[line] in said
    assert len(said.splitlines()) == 1


def test_several_bad_lines_are_named_at_once_and_many_are_counted(root):
    write_boxes(root, *BAD_LINES)
    lines = error(root).splitlines()
    assert [line.split(": ")[0] for line in lines[:10]] == [f"{root / 'boxes.csv'}:{n}" for n in range(2, 12)]
    assert lines[10] == f"... and {len(BAD_LINES) - 10} more"
    write_boxes(root, GOOD, *list(BAD_LINES)[:2])
    assert len(error(root).splitlines()) == 2


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("image,x0,y0,x1,y1", "label"),
        ("image,x,y,w,h,label", "x0, y0, x1, y1"),
        ("image|x0|y0|x1|y1|label", "image, x0"),
        ("# boxes of June", "image, x0"),
        (GOOD, "image, x0, y0, x1, y1, label"),
        ("", "image, x0, y0, x1, y1, label"),
    ],
)
def test_wrong_columns(root, header, missing):
    write_boxes(root, GOOD, header=header)
    said = error(root)
    assert said.startswith(f"{root / 'boxes.csv'}:1: column {missing}")
    assert "image,x0,y0,x1,y1,label" in said


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image;x0;y0;x1;y1;label", "{};10;20;30;40;{}"),
        ("image;x0;y0;x1;y1;label", "{};10,5;20;30,0;40;{}"),  # of a spreadsheet with decimal commas
        ("image\tx0\ty0\tx1\ty1\tlabel", "{}\t10\t20\t30\t40\t{}"),
        ("image, x0, y0, x1, y1, label", "{}, 10, 20, 30, 40, {}"),
        ("Image,X0,Y0,X1,Y1,Label", "{},10,20,30,40,{}"),
        ("label,y1,x1,y0,x0,image", "{1},40,30,20,10,{0}"),
    ],
)
def test_tables_as_spreadsheets_write_them(root, header, row):
    name, label = GOOD.split(",")[0], GOOD.split(",")[-1]
    write_boxes(root, row.format(name, label), header=header)
    assert is_box_table(root / "boxes.csv")
    boxes = read_boxes(root / "boxes.csv", {name: (100, 100)})
    assert boxes == {name: [((10.5 if "10,5" in row else 10.0, 20.0, 30.0, 40.0), label)]}


def test_decimal_commas_need_another_separator(root):
    name, label = GOOD.split(",")[0], GOOD.split(",")[-1]
    write_boxes(root, f'{name},"10,5",20,30,40,{label}')
    assert "a coordinate is not a number: 10,5, 20, 30, 40" in error(root)


@pytest.mark.parametrize("content", ["", "image,x0,y0,x1,y1,label", "image,x0,y0,x1,y1,label\n\n\n"])
def test_a_table_without_boxes(root, content):
    (root / "boxes.csv").write_text(content)
    assert error(root).startswith(f"{root / 'boxes.csv'}:1: ")


@pytest.mark.parametrize("content", [b"\xff\xfe\0i\0m", b"image,x0,y0,x1,y1,label\n\xe9t\xe9.png,1,1,2,2,cat\n"])
def test_a_table_in_another_encoding(root, content):
    (root / "boxes.csv").write_bytes(content)
    assert str(root / "boxes.csv") in error(root)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_of_other_programs(root, end, mark):
    """Byte order mark, Windows line ends, quotes, another order of columns, one more, empty lines."""
    lines = [
        "note,label,image,x1,y1,x0,y0",
        "a,cat,train/cat/0.png,30,15,10,5",
        "",
        ',"cat","train/cat/1.png"," 40 ","2e1","0","0.0"',
        "",
    ]
    (root / "boxes.csv").write_bytes((mark + end.join(lines)).encode())
    data = ready(root, augment="none")
    assert data.splits["train"][0]["boxes"].tolist() == [[4, 4, 12, 12]]
    assert data.splits["train"][1]["boxes"].tolist() == [[0, 0, 16, 16]]


def test_line_numbers_count_lines_of_the_file(root):
    (root / "boxes.csv").write_bytes(
        f"image,x0,y0,x1,y1,label\r\n\r\n{GOOD}\r\ntrain/cat/0.png,x,5,30,15,cat\r\n".encode()
    )
    assert error(root).startswith(f"{root / 'boxes.csv'}:4: ")


def test_boxes_of_another_label_are_left_out(root):
    write_boxes(root, GOOD, "train/cat/0.png,0,0,20,20,dog", "train/cat/1.png,0,0,20,20,horse", GOOD)
    data = ready(root, augment="none")
    assert data.splits["train"][0]["boxes"].tolist() == [[4, 4, 12, 12]] * 2
    assert data.splits["train"][1]["boxes"].shape == (0, 4)


def test_labels_that_are_never_a_class_are_an_error_not_silence(root):
    write_boxes(root, "train/cat/0.png,10,5,30,15,Cat", "train/dog/0.png,10,5,30,15,n02084071")
    said = error(root)
    assert str(root / "boxes.csv") in said
    assert "Cat, n02084071" in said
    assert "cat, dog" in said


def test_no_table_no_boxes(root):
    data = ready(root)
    assert "boxes" not in data.splits["train"][0]
    assert "boxes" not in next(iter(data.train_dataloader()))


# --- boxes and images move together -----------------------------------------------------------------------


def test_boxes_follow_resizing(root):
    write_boxes(root, "val/cat/2.png,10,5,30,15,cat", "val/cat/2.png,0,19,40,20,cat")
    sample = ready(root).splits["val"][0]
    # 40 x 20 to 16 x 16: x times 0.4, y times 0.8; the second is thinner than a pixel then and goes
    assert sample["boxes"].tolist() == [[4, 4, 12, 12]]
    sample = ready(root, image_size=80).splits["val"][0]
    assert sample["boxes"].tolist() == [[20, 20, 60, 60], [0, 76, 80, 80]]


def test_boxes_follow_the_mirror(root):
    write_boxes(root, "train/cat/0.png,0,5,30,15,cat")
    data = ready(root, augment="flip")
    plain = ready(root, augment="none").splits["train"][0]
    seen = set()
    for _ in range(20):
        sample = data.splits["train"][0]
        mirrored = not torch.equal(sample["image"], plain["image"])
        seen.add(mirrored)
        assert torch.equal(sample["image"].flip(-1) if mirrored else sample["image"], plain["image"])
        assert sample["boxes"].tolist() == ([[4, 4, 16, 12]] if mirrored else [[0, 4, 12, 12]])
    assert seen == {True, False}


def test_boxes_follow_crop_and_mirror(tmp_path):
    """The place of the crop is found again by trying all of them."""
    size, large = 56, 64
    grow(tmp_path, "train/a/1.png", "val/a/1.png", width=128, height=96)
    boxes = [(30.0, 20.0, 90.0, 60.0), (0.0, 0.0, 20.0, 96.0), (124.0, 93.0, 128.0, 96.0)]
    write_boxes(tmp_path, *(f"train/a/1.png,{','.join(map(str, box))},a" for box in boxes))
    data = ready(tmp_path, image_size=size)
    image = TF.resize(read_image(tmp_path / "train/a/1.png"), [large, large], antialias=True)
    candidates = {}
    for top in range(large - size + 1):
        for left in range(large - size + 1):
            crop = TF.crop(image, top, left, size, size)
            candidates[crop.numpy().tobytes()] = top, left, False
            candidates[TF.horizontal_flip(crop).numpy().tobytes()] = top, left, True
    assert len(candidates) == 2 * 9 * 9
    counts = set()
    for _ in range(60):
        sample = data.splits["train"][0]
        picture = (data.preprocessing.restore(sample["image"]) * 255).round().byte()
        top, left, mirrored = candidates[picture.numpy().tobytes()]
        expected = []
        for x0, y0, x1, y1 in boxes:
            x0, x1 = (min(max(x * large / 128 - left, 0), size) for x in (x0, x1))
            y0, y1 = (min(max(y * large / 96 - top, 0), size) for y in (y0, y1))
            if x1 - x0 >= 1 and y1 - y0 >= 1:  # what is left of it
                expected.append([size - x1, y0, size - x0, y1] if mirrored else [x0, y0, x1, y1])
        assert sample["boxes"].shape == (len(expected), 4)
        torch.testing.assert_close(sample["boxes"], torch.tensor(expected), rtol=0, atol=1e-4)
        counts.add(len(expected))
    assert counts == {2, 3}  # the one in the corner is cropped away now and then


def test_an_image_whose_only_box_is_cropped_away(tmp_path):
    grow(tmp_path, "train/a/1.png", "val/a/1.png", width=64, height=64)
    write_boxes(tmp_path, "train/a/1.png,62,62,64,64,a")
    data = ready(tmp_path, image_size=56)
    shapes = {tuple(data.splits["train"][0]["boxes"].shape) for _ in range(40)}
    assert shapes == {(0, 4), (1, 4)}


@pytest.mark.parametrize("check_images", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_boxes_of_a_turned_image_are_those_of_the_upright_one(root, suffix, check_images):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 x 20, seen 20 x 40
    left_half = Image.new("RGB", (WIDTH, HEIGHT))
    left_half.paste((255, 255, 255), (0, 0, 20, 20))
    left_half.save(root / f"val/cat/turned.{suffix}", exif=exif)
    (root / "val/cat/2.png").unlink()
    write_boxes(root, f"val/cat/turned.{suffix},0,0,20,20,cat", f"val/cat/turned.{suffix},5,30,15,40,cat")
    data = ready(root, check_images=check_images)
    sample = data.splits["val"][0]
    assert sample["boxes"].tolist() == [[0, 0, 16, 8], [4, 12, 12, 16]]
    bright = data.preprocessing.restore(sample["image"]).mean(0)
    assert bright[:7].min() > 0.9  # the stored left half is the upper one now
    assert bright[9:].max() < 0.1
    write_boxes(root, f"val/cat/turned.{suffix},20,0,40,20,cat")
    assert "(20 x 40 px)" in error(root, check_images=check_images)


def test_an_orientation_that_does_not_exist_turns_nothing(root):
    exif = Image.Exif()
    exif[0x0112] = 9
    picture().save(root / "val/cat/2.png", exif=exif)
    write_boxes(root, "val/cat/2.png,20,0,40,20,cat")
    assert ready(root).splits["val"][0]["boxes"].tolist() == [[8, 0, 16, 16]]


# --- samples and loaders ----------------------------------------------------------------------------------


def test_sample_format(root):
    write_boxes(root, GOOD)
    data = ready(root)
    for split in ("train", "val"):
        for index in range(len(data.splits[split])):
            sample = data.splits[split][index]
            assert set(sample) == {"image", "label", "boxes", "path", "original_size"}
            assert [type(sample[key]) for key in ("image", "boxes", "label", "path")] == [
                Tensor,
                Tensor,
                int,
                str,
            ]
            assert sample["image"].dtype == sample["boxes"].dtype == torch.float32
            assert sample["image"].shape == (3, 16, 16)
            assert sample["boxes"].shape[1:] == (4,)
            assert f"/{data.class_names[sample['label']]}/" in sample["path"]


def test_odd_modes_in_one_batch(root):
    for mode, suffix in (
        ("L", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("LA", "png"),
        ("1", "png"),
    ):
        picture().convert(mode).save(root / f"val/cat/{mode}.{suffix}")
    Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40) * 80).save(root / "val/cat/16.png")
    data = ready(root, batch_size=20)
    (batch,) = data.val_dataloader()
    assert batch["image"].shape == (9, 3, 16, 16)
    assert batch["image"].isfinite().all()


def test_batches(root):
    write_boxes(root, GOOD, GOOD)
    data = ready(root, batch_size=4)
    (batch,) = data.train_dataloader()
    assert set(batch) == {"image", "label", "boxes", "path", "original_size"}
    assert batch["image"].shape == (4, 3, 16, 16)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
    assert sorted(len(boxes) for boxes in batch["boxes"]) == [0, 0, 0, 2]
    assert len(set(batch["path"])) == 4


def test_same_seed_same_epochs_and_another_seed_other_ones(root):
    loader = ready(root, image_size=32).train_dataloader()
    epochs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        epochs.append(list(loader) + list(loader))
    assert equal(epochs[0], epochs[1])
    assert not equal(epochs[0], epochs[2])
    assert not equal(epochs[0][:2], epochs[0][2:])  # the second epoch is another one


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_worker_process_gives_the_same(root):
    write_boxes(root, GOOD, "val/dog/2.png,1,1,9,9,dog")
    alone, helped = ready(root), ready(root, num_workers=1)
    loader = helped.val_dataloader()
    for _ in range(2):
        assert equal(list(loader), list(alone.val_dataloader()))


def test_setup_reads_once(root, monkeypatch):
    data = ready(root)
    splits = dict(data.splits)
    monkeypatch.setattr(Image, "open", lambda *args: pytest.fail("read again"))
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    assert data.splits == splits


def test_a_failed_setup_can_be_repeated_after_the_repair(root):
    bad = root / "train/cat/bad.jpg"
    bad.write_bytes(b"no image")
    data = module(root)
    for _ in range(2):
        with pytest.raises(DataError, match=r"bad\.jpg"):
            data.setup()
    bad.unlink()
    data.setup()
    assert len(data.splits["train"]) == 4


def state(root):
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        )
        for path in root.rglob("*")
    }


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_user_data_is_never_written_to(root):
    grow(root, "train/cat/a.jpg", "val/cat/b.jpg")
    write_boxes(root, GOOD)
    before = state(root)
    data = ready(root, num_workers=1)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    (root / "train/cat/bad.jpg").write_bytes(b"no image")
    with_bad = state(root)
    error(root)
    assert state(root) == with_bad
    (root / "train/cat/bad.jpg").unlink()
    assert {name: value for name, value in state(root).items() if name != "train/cat"} == {
        name: value for name, value in before.items() if name != "train/cat"
    }


# --- real photographs -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.data
def test_the_real_photographs(photos):
    data = ready(photos)
    assert data.class_names == ["apple", "banana", "kangaroo", "orange", "raccoon"]
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 441, "val": 189}
    assert all(split.boxes.counts.all() for split in data.splits.values())
    batch = next(iter(data.val_dataloader()))
    assert all(len(boxes) and boxes.min() >= 0 and boxes.max() <= 16 + 1e-4 for boxes in batch["boxes"])
