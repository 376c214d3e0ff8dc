"""Values that are legal and absurd: gray files that use few of their bits, inverted, signed, dark and flat ones."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

import camify
from camify.data import ImageFolderDataModule, Preprocessing
from camify.data.image_checks import value_notes
from camify.data.remembered_checks import check_files
from camify.errors import CheckpointError, ConfigError, DataError
from camify.image_files import image_suffixes, read_image
from camify.preprocessing import agreed_preprocessing, refuse_contradiction

SIDE = 16
UNIT = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def notes_of(files):
    return value_notes(files, check_files(files, decode=True)[0])


def gray(bits=16, dtype=np.uint16, seed=0):
    """All of 0 to the largest number of so many bits, in any order."""
    values = np.linspace(0, 2**bits - 1, SIDE * SIDE).astype(dtype)
    return np.random.default_rng(seed).permutation(values).reshape(SIDE, SIDE)


def tiff(values, *, photometric=1, bits=16, sample_format=1, order="<", content=None):
    """A TIFF file of one strip, written by hand, as Pillow writes no inverted ones."""
    content = values.astype(values.dtype.newbyteorder(order)).tobytes() if content is None else content
    height, width = values.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height,
              279: len(content), 339: sample_format}  # fmt: skip
    fields[273] = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value) for tag, value in fields.items()
    )
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return head + struct.pack(f"{order}IH", 8, len(fields)) + entries + bytes(4) + content


def read(path, bits=None):
    """The gray levels (H, W) of a file."""
    levels = read_image(path, bits).numpy()
    assert (levels == levels[:1]).all()
    return levels[0]


def collection(root, *images, suffix="png"):
    """Images, NumPy's or bytes, as those of two classes in both splits."""
    for split in ("train", "val"):
        for label in "ab":
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                path = folder / f"{number}.{suffix}"
                path.write_bytes(image) if isinstance(image, bytes) else Image.fromarray(image).save(path)
                with path.open("ab") as file:
                    file.write(split.encode())  # no file of one split is one of the other
    return root


def ready(root, **options):
    data = ImageFolderDataModule(str(root), image_size=SIDE, num_workers=0, **UNIT, **options)
    data.setup()
    return data


# --- one file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_say_what_is_white(tmp_path, bits, suffix):
    values = gray(bits)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    levels = read(tmp_path / f"a.{suffix}", bits)
    assert levels.max() == 255
    assert np.array_equal(levels, values >> (bits - 8))
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), values >> 8), "all 16 where nothing is said"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [12, 20])
def test_32_bit_files(tmp_path, bits, order):
    values = gray(bits, np.int32)
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=32, sample_format=2, order=order))
    assert np.array_equal(read(tmp_path / "a.tif", bits), values >> (bits - 8))
    if bits > 16:
        with pytest.raises(DataError, match=r"a\.tif.*values up to 1048575 of 65535.*give bits=20"):
            read_image(tmp_path / "a.tif")


def test_unsigned_32_bits_are_not_taken_for_negative(tmp_path):
    values = np.array([[0, 2**31], [2**32 - 1, 1]], np.uint32)
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=32))
    assert read(tmp_path / "a.tif", 32).tolist() == [[0, 128], [255, 0]]
    with pytest.raises(DataError, match="give bits=32"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_16_bits_end_at_15(tmp_path, order):
    values = gray(15, np.int16)
    (tmp_path / "a.tif").write_bytes(tiff(values, sample_format=2, order=order))
    assert np.array_equal(read(tmp_path / "a.tif"), values >> 7)


@pytest.mark.parametrize(("dtype", "bits"), [(np.int8, 8), (np.int16, 16), (np.int32, 32)])
def test_negative_values_are_refused_with_a_way_out(tmp_path, dtype, bits):
    (tmp_path / "ct.tif").write_bytes(tiff(np.array([[-100, 90]], dtype), bits=bits, sample_format=2))
    with pytest.raises(DataError, match=r"ct\.tif.*negative|ct\.tif.*values from -100 to 90.*which is black"):
        read_image(tmp_path / "ct.tif")


def test_values_above_the_bits_are_refused_not_cut(tmp_path):
    Image.fromarray(gray(14)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png.*up to 16383 of 4095, the most of 12 bits; give bits=14"):
        read_image(tmp_path / "a.png", 12)


def test_inverted_files_come_out_as_they_are_meant(tmp_path):
    """TIFF may say that 0 is white; Pillow turns 1 and 8 bits round, and not 16."""
    eight, sixteen = gray(8, np.uint8), gray(16)
    for name, content in {
        "1.tif": tiff(np.zeros((8, 8)), photometric=0, bits=1, content=bytes([0b11110000] * 8)),
        "8.tif": tiff(eight, photometric=0, bits=8),
        "16.tif": tiff(sixteen, photometric=0),
        "12 of 16.tif": tiff(gray(12), photometric=0),
    }.items():
        (tmp_path / name).write_bytes(content)
    assert read(tmp_path / "1.tif")[0].tolist() == [0] * 4 + [255] * 4
    assert np.array_equal(read(tmp_path / "8.tif"), 255 - eight)
    assert np.array_equal(read(tmp_path / "16.tif"), 255 - (sixteen >> 8))
    assert np.array_equal(read(tmp_path / "12 of 16.tif", 12), 255 - (gray(12) >> 4))
    with pytest.raises(DataError, match=r"12 of 16\.tif: gray values up to 4095 of 65535: it comes out nearly white"):
        notes_of([tmp_path / "12 of 16.tif"])


def test_what_a_file_says_of_its_bits_is_taken(tmp_path):
    """A TIFF of 12 bits ends at 4095, a PGM at what its header says."""
    packed = bytes([0xFF, 0xF0, 0x00] * (SIDE * SIDE // 2))  # 4095, 0, 4095, 0, ...
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((SIDE, SIDE)), bits=12, content=packed))
    assert read(tmp_path / "a.tif")[0, :4].tolist() == [255, 0, 255, 0]
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([4095, 0], ">u2").tobytes())
    assert read(tmp_path / "a.pgm").tolist() == [[255, 0]]
    for name in ("a.tif", "a.pgm"):
        assert notes_of([tmp_path / name]) == []


def test_a_single_picture_warns(tmp_path):
    Image.fromarray(gray(12)).save(tmp_path / "x-ray.png")
    with pytest.warns(UserWarning, match=r"x-ray\.png: gray values up to 4095 of 65535.*nearly black. Give bits=12"):
        assert Preprocessing(SIDE, **UNIT).read(tmp_path / "x-ray.png").max() < 0.06
    for bits, largest in ((12, 255), (16, 15)):
        image = Preprocessing(SIDE, **UNIT, bits=bits).read(tmp_path / "x-ray.png")
        assert float(image.max()) == pytest.approx(largest / 255)


# --- a collection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "dtype", "suffix"), [(12, np.uint16, "png"), (8, np.uint16, "tif"), (8, np.int32, "tif")]
)
def test_a_collection_that_would_be_black_is_refused_with_the_option(tmp_path, bits, dtype, suffix):
    root = collection(tmp_path, gray(bits, dtype), gray(bits - 1, dtype), suffix=suffix)
    with pytest.raises(DataError) as caught:
        ready(root)
    said = str(caught.value)
    assert said.startswith(f"{root / 'train' / 'a' / f'0.{suffix}'}: gray values up to {2**bits - 1} of 65535")
    assert f"Give bits={bits} if {2**bits - 1} is white" in said
    assert "data.init_args.bits" in said
    data = ready(root, bits=bits)
    assert data.splits["val"][0]["image"].max() == 1
    assert data.notes == []
    assert any("nearly black" in note for note in ready(root, bits=16).notes)


def test_one_dark_image_among_others_is_as_it_should_be(tmp_path):
    assert ready(collection(tmp_path, gray(16), gray(16, seed=1), gray(10))).notes == []


def test_many_dark_images_and_unused_bits_are_said(tmp_path):
    (note,) = ready(collection(tmp_path / "most", gray(16), gray(12), gray(12, seed=1))).notes
    assert "8 of 12 gray files of more than 8 bits come out nearly black" in note
    (note,) = ready(collection(tmp_path / "half", gray(14), gray(13))).notes
    assert "gray values up to 16383 of 65535, the most of 8 such files. Give bits=14 if 16383 is white" in note
    assert ready(collection(tmp_path / "half", gray(14), gray(13)), bits=16).notes == []


def test_dark_and_flat_collections_are_said(tmp_path, capsys):
    dark = np.random.default_rng(0).integers(0, 10, (SIDE, SIDE, 3), dtype=np.uint8)
    root = collection(tmp_path / "dark", dark)
    (note,) = ready(root).notes
    assert note.startswith(
        f"all 4 images are nearly black: {root / 'train' / 'a' / '0.png'} has the largest value, 9 of 255"
    )
    assert note in capsys.readouterr().out
    light = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    root = collection(tmp_path / "flat", light, np.full_like(light, 77))
    assert ready(root).notes == [
        f"4 of 8 images are of one color, with nothing to see; the first is {root / 'train' / 'a' / '1.png'}"
    ]
    assert ready(root, check_images=False).notes == []


def test_fine_details_of_a_jpeg_are_not_taken_for_one_color(tmp_path):
    """It is looked at at an eighth of its size, where a chessboard is gray all over and white points are gone."""
    chess = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    points = np.zeros((512, 512), np.uint8)
    points[::64, ::64] = 255
    for name, image in (("chess", chess), ("points", points), ("flat", np.full_like(chess, 9))):
        Image.fromarray(image).save(tmp_path / f"{name}.jpg", quality=100)
    files = sorted(tmp_path.iterdir())
    checks = dict(zip((path.stem for path in files), check_files(files, decode=True)[0], strict=True))
    assert [name for name, check in checks.items() if check["is_constant"]] == ["flat"]
    assert checks["points"]["brightest"] > 200


# --- where the number of bits is kept ---------------------------------------------------------------------


def test_bits_travel_with_the_network(tmp_path):
    twelve = Preprocessing(96, bits=12)
    assert Preprocessing.from_dict(twelve.to_dict()) == twelve
    assert "bits" not in Preprocessing(96).to_dict(), "what was stored before stays as it was"
    net = camify.convert(camify.sources.demo_network.TinyVGG().eval(), head="direct", input_size=96, seed=0)
    net.preprocessing = twelve
    assert camify.load(net.save_pretrained(tmp_path / "net")).preprocessing == twelve
    assert "12 bits" in twelve.describe()


def test_bits_of_data_and_network(tmp_path):
    unsaid, twelve = Preprocessing(SIDE), Preprocessing(SIDE, bits=12)
    assert agreed_preprocessing({"bits": None}, twelve, unsaid).bits == 12
    assert agreed_preprocessing({"bits": 12}, unsaid, unsaid).bits == 12
    refuse_contradiction(twelve, unsaid)
    with pytest.raises(ConfigError, match="bits 16 and 12"):
        agreed_preprocessing({"bits": 16}, twelve, unsaid)
    assert agreed_preprocessing({"bits": 16}, twelve, unsaid, override=True).bits == 16


@pytest.mark.parametrize("bits", [7, 33, 12.0, True, "12"])
def test_bits_that_cannot_be(bits):
    with pytest.raises(ConfigError, match=r"bits=.*from 8 to 32"):
        Preprocessing(bits=bits)
    with pytest.raises(CheckpointError, match="bits"):
        Preprocessing.from_dict(Preprocessing().to_dict() | {"bits": bits})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"std": (58.4, 57.1, 57.4)}, r"std.*values of 0\.\.255.*0\.229"),
        ({"std": (0.229 / 255,) * 3}, r"std.*of at least 1/256.*once too often.*0\.229"),
        ({"std": (1e-9,) * 3}, "std.*at least 1/256"),
        ({"mean": (123.68, 116.78, 103.94)}, r"mean.*values of 0\.\.255.*0\.485"),
        ({"mean": (-0.5,) * 3}, "mean"),
    ],
)
def test_implausible_normalization_is_refused_wherever_it_enters(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**values)
    with pytest.raises(CheckpointError, match=message):
        Preprocessing.from_dict(Preprocessing().to_dict() | values)
    with pytest.raises(ConfigError, match=message):
        ImageFolderDataModule(str(collection(tmp_path, gray(16))), **values)
    assert Preprocessing(std=(1 / 255,) * 3).std[0] == 1 / 255


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted({".gif", ".jfif", ".tga", ".jpe", ".avif", ".jp2"}))
def test_formats_are_read_where_pillow_reads_them(tmp_path, suffix):
    needed = {".avif": "avif", ".jp2": "jpg_2000"}.get(suffix)
    known = needed is None or (needed in (*features.modules, *features.codecs) and features.check(needed))
    assert (suffix in image_suffixes()) == known
    if not known:
        pytest.skip("this Pillow cannot")
    image = Image.new("RGB", (40, 20), (250, 20, 20))
    image.paste((20, 20, 250), (20, 0, 40, 20))
    image.save(tmp_path / f"a{suffix}")
    levels = read_image(tmp_path / f"a{suffix}").float()
    assert levels.shape == (3, 20, 40)
    assert levels[:, :, :15].mean((1, 2)).tolist() == pytest.approx([250, 20, 20], abs=12)
    assert levels[:, :, 25:].mean((1, 2)).tolist() == pytest.approx([20, 20, 250], abs=12)


def test_tga_is_known_by_its_name_alone(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (40, 20)).save(content, "TGA")
    for name in ("a.jpg", "a"):
        (tmp_path / name).write_bytes(content.getvalue())
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / name)
