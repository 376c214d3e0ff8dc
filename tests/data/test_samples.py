from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from camify.data import Preprocessing, collate
from camify.data.remembered_checks import check_files
from camify.data.samples import finish
from camify.errors import CheckpointError, ConfigError, DataError
from camify.preprocessing import IMAGENET_MEAN, IMAGENET_STD, read_image

WIDTH, HEIGHT = 40, 24


def pixels(height=HEIGHT, width=WIDTH, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read(path):
    """The image as (H, W, 3) uint8."""
    image = read_image(path)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


# --- Preprocessing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64])
def test_evaluation_is_resize_scale_normalise(tmp_path, size):
    array = pixels()
    Image.fromarray(array).save(tmp_path / "a.png")
    found = Preprocessing(size).read(tmp_path / "a.png")
    resized = TF.resize(torch.from_numpy(array).permute(2, 0, 1), [size, size], antialias=True)
    expected = torch.stack(
        [
            (resized[channel].float() / 255 - mean) / std
            for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert type(found) is Tensor
    assert found.dtype == torch.float32


def test_evaluation_holds_no_chance():
    image = tv_tensors.Image(torch.from_numpy(pixels()).permute(2, 0, 1))
    transform = Preprocessing(16).evaluation()
    assert torch.equal(transform(image), transform(image))
    assert torch.equal(Preprocessing(16).training("none")(image), transform(image))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 16, 16)])
def test_restore_inverts(shape):
    preprocessing = Preprocessing(16, (0.1, 0.5, 0.7), (0.2, 0.3, 0.9))
    pictures = torch.rand(shape)
    inputs = TF.normalize(pictures, [0.1, 0.5, 0.7], [0.2, 0.3, 0.9])
    torch.testing.assert_close(preprocessing.restore(inputs), pictures, rtol=0, atol=1e-6)
    restored = preprocessing.restore(torch.full(shape, 1e3, dtype=torch.float64))
    assert restored.dtype == torch.float64
    assert restored.max() == 1


def test_dict_and_back_through_json():
    preprocessing = Preprocessing(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    assert Preprocessing.from_dict(Preprocessing().to_dict()) == Preprocessing()


@pytest.mark.parametrize(
    "options",
    [
        {"size": 7},
        {"size": -224},
        {"mean": (0.5, 0.5)},
        {"mean": (), "std": ()},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, -1.0, 1.0)},
        {"std": (1.0, float("nan"), 1.0)},
        {"mean": (float("inf"), 0.0, 0.0)},
    ],
)
def test_values_that_cannot_work(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Preprocessing(**options)


def test_unknown_augmentation_names_the_choices():
    with pytest.raises(ConfigError, match=r"mixup.*crop_flip, flip, none"):
        Preprocessing().training("mixup")


@pytest.mark.parametrize(
    "change",
    [
        {"size": None},
        {"size": "large"},
        {"size": float("inf")},
        {"size": 2},
        {"mean": None},
        {"mean": "abc"},
        {"mean": [0.5]},
        {"std": [0, 0, 0]},
        {"std": [1, 1, "x"]},
        {"std": 3},
    ],
)
def test_damaged_checkpoint_values(change):
    with pytest.raises(CheckpointError, match="preprocessing"):
        Preprocessing.from_dict(Preprocessing().to_dict() | change)


@pytest.mark.parametrize("key", ["size", "mean", "std"])
def test_missing_checkpoint_field_is_named(key):
    data = Preprocessing().to_dict()
    del data[key]
    with pytest.raises(CheckpointError, match=key):
        Preprocessing.from_dict(data)


@pytest.mark.parametrize("data", [[], None, "text", 3])
def test_checkpoint_field_that_is_no_mapping(data):
    with pytest.raises(CheckpointError):
        Preprocessing.from_dict(data)


# --- reading ----------------------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,  # no such orientation
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = pixels()
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), UPRIGHT[orientation](array))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(pixels()).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    try:
        with Image.open(path) as written:
            written.load()
    except OSError:
        pytest.skip("this Pillow cannot read what it wrote")
    found = read(path)
    assert found.shape == (HEIGHT, WIDTH, 3)
    if mode in ("1", "L", "LA"):
        gray = np.asarray(image.convert("L"))
        assert np.array_equal(found, np.stack([gray] * 3, -1))


def test_transparency_is_dropped(tmp_path):
    colors, alpha = pixels(), pixels(channels=0, seed=1)
    Image.fromarray(np.dstack([colors, alpha])).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), colors)


def test_palette_with_transparency_reads_like_the_palette_without(tmp_path):
    image = Image.fromarray(pixels()).quantize(16)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=bytes([0, 128] + [255] * 14))
    image.save(tmp_path / "one.png", transparency=3)
    for name in (
        "clear.png",
        "one.png",
    ):  # without a warning of Pillow's, which pytest would turn into an error
        assert np.array_equal(read(tmp_path / name), read(tmp_path / "plain.png"))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_gray_keeps_its_range(tmp_path, suffix):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    found = read(tmp_path / f"a.{suffix}")
    assert np.array_equal(found, np.stack([values >> 8] * 3, -1))


def test_16_bit_color_keeps_its_range(tmp_path):
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert np.array_equal(read(tmp_path / "a.png"), values[..., ::-1] >> 8)


def test_rotated_16_bit_gray(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png")[..., 0], np.rot90(values >> 8, -1))


def test_float_pictures_are_refused_with_a_way_out(tmp_path):
    Image.fromarray(np.random.default_rng(0).random((8, 8), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*float.*save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_first_frame_of_an_animation(tmp_path):
    first, second = pixels(), pixels(seed=1)
    Image.fromarray(first).save(
        tmp_path / "a.webp", save_all=True, append_images=[Image.fromarray(second)], lossless=True
    )
    assert np.array_equal(read(tmp_path / "a.webp"), first)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"\0" * 20])
def test_unreadable_files_are_named(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        read_image(tmp_path / "bad.jpg")


def test_an_image_file_starts_no_program(tmp_path, monkeypatch):
    """Pillow runs Ghostscript on an EPS file, whatever its suffix."""
    started = []
    decoded = Image.new("RGB", (8, 8)).im
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: started.append(a) or decoded)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", "EPS")
    with Image.open(tmp_path / "a.jpg") as image:
        image.load()
    assert started, "Pillow by itself does"
    started.clear()
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg"):
        check_files([tmp_path / "a.jpg"], decode=True)
    assert not started


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg"):
        Preprocessing().read(tmp_path / "none.jpg")


# --- samples and batches ----------------------------------------------------------------------------------


def test_finish_gives_plain_tensors_and_drops_slivers():
    boxes = torch.tensor([[0.0, 0, 8, 8], [3, 3, 3, 9], [2, 2, 2.9, 9], [2, 2, 3, 3]])
    sample = {
        "image": tv_tensors.Image(torch.rand(3, 16, 16)),
        "label": 2,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(16, 16)),
        "mask": tv_tensors.Mask(torch.ones(16, 16, dtype=torch.uint8)),
    }
    found = finish(sample)
    assert {key: type(found[key]) for key in ("image", "boxes", "mask")} == dict.fromkeys(
        ("image", "boxes", "mask"), Tensor
    )
    assert found["boxes"].tolist() == [[0, 0, 8, 8], [2, 2, 3, 3]]
    assert found["mask"].dtype == torch.bool
    assert type(sample["image"]) is tv_tensors.Image  # the sample itself is left alone


def test_collate():
    samples = [
        {"image": torch.full((3, 4, 4), float(label)), "label": label, "path": f"{label}.png"} for label in (2, 0, 1)
    ]
    batch = collate(samples)
    assert set(batch) == {"image", "label", "path"}
    assert batch["image"].shape == (3, 3, 4, 4)
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0, 1]
    assert batch["label"].tolist() == [2, 0, 1]
    assert batch["label"].dtype == torch.int64
    assert batch["path"] == ["2.png", "0.png", "1.png"]


def test_collate_keeps_boxes_per_image_and_masks():
    plain = {"image": torch.zeros(3, 4, 4), "label": 0}
    boxed = plain | {"boxes": torch.ones(2, 4), "mask": torch.ones(4, 4, dtype=torch.bool)}
    batch = collate([boxed, boxed])
    assert [tuple(boxes.shape) for boxes in batch["boxes"]] == [(2, 4), (2, 4)]
    assert batch["mask"].shape == (2, 4, 4)
    mixed = collate([plain, boxed])
    assert [tuple(boxes.shape) for boxes in mixed["boxes"]] == [(0, 4), (2, 4)]
    assert "mask" not in mixed
    assert "path" not in mixed
