"""An image file is data: it starts no program, keeps nobody waiting, and fills no memory."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from camify.data.folder import ImageFolderDataModule
from camify.data.remembered_checks import check_files
from camify.errors import DataError
from camify.evaluation.images import image_batches, images_with_notes
from camify.image_files import open_image, read_image, readable_formats
from camify.preprocessing import Preprocessing

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n16 16 scale\nshowpage\n%%EOF\n"
PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bmp_of(width, height):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def tiff_of(width, height):
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 10)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + bytes(4)


def saved(kind):
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, kind)
    return content.getvalue()


HOSTILE = {
    "postscript.jpg": EPS,
    "postscript_of_windows.png": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS,
    "psd.jpg": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 16, 16, 8, 3) + bytes(100),
    "large.png": png_of(30_000, 30_000),
    "larger.png": png_of(2**31 - 1, 2**31 - 1),
    "large.ppm": b"P6 30000 30000 255\n" + bytes(100),
    "large.bmp": bmp_of(30_000, 30_000),
    "large.tif": tiff_of(30_000, 30_000),
    "large.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(50),
    "empty.jpg": b"",
    "text.png": b"not an image at all",
    "fonts.jpg": b"%PDF-1.4\n" + bytes(100),
    "wmf.jpg": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100),
    "fits.png": b"SIMPLE  =                    T" + bytes(3000),
    "icns.png": saved("ICNS"),
    "ico.png": saved("ICO"),
    "pcx.jpg": saved("PCX"),
    "tga.jpg": saved("TGA"),
    "jpeg2000.jpg": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
    "half.png": saved("PNG")[:200],
    "half.jpg": saved("JPEG")[:300],
}


@pytest.fixture
def programs(tmp_path, monkeypatch, trace):
    """A PATH on which every program that Pillow knows to start leaves a trace."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c", "djpeg", "cjpeg", "ppmquant", "netpbm", "xdg-open", "display"):
        (folder / name).write_text(f"#!/bin/sh\necho started > {trace}\n")
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("programs")
@pytest.mark.filterwarnings("ignore")  # Pillow's, of large images
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_by_name_everywhere(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    for read in (
        read_image,
        Preprocessing(32).read,
        lambda file: check_files([file], decode=True),
        lambda file: images_with_notes([file]),
    ):
        with pytest.raises(DataError, match=name):
            read(path)
    (batch,) = image_batches([path], Preprocessing(32), batch_size=1, workers=0)
    assert batch.paths == []
    assert name in batch.unreadable[path]


@pytest.mark.parametrize("decode", [True, False])
def test_named_pipes_and_devices_keep_nobody_waiting(decode, tmp_path):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    link = tmp_path / "device.jpg"
    link.symlink_to("/dev/zero")
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    for path in (pipe, link, folder):
        with pytest.raises(OSError, match="no regular file"):
            open_image(path)
        with pytest.raises(DataError, match=f"{path.name}.*no regular file"):
            read_image(path)
        with pytest.raises(DataError, match=path.name):
            check_files([path], decode=decode)
    with pytest.raises(OSError, match="no such file"):
        open_image(tmp_path / "nothing.jpg")
    root = tmp_path / "root"
    for split in ("train", "val"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            Image.fromarray(PIXELS).save(root / split / label / "1.png")
    os.mkfifo(root / "train" / "a" / "x.jpg")
    data = ImageFolderDataModule(str(root), image_size=32, check_images=decode, num_workers=0)
    if decode:
        with pytest.raises(DataError, match=r"x\.jpg"):
            data.setup("fit")
    else:
        data.setup("fit")
        with pytest.raises(DataError, match=r"x\.jpg"):
            list(data.train_dataloader())


@pytest.mark.parametrize("kind", readable_formats())
def test_formats_that_people_have_are_read_whatever_their_name(kind, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(kind))
    assert read_image(path).shape == (3, 24, 32)
    with open_image(io.BytesIO(saved(kind))) as image:
        assert image.size == (32, 24)


def test_mpo_files_of_cameras_are_read(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(PIXELS).save(path, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS)])
    with open_image(path) as image:
        assert image.format == "MPO"
    assert read_image(path).shape == (3, 24, 32)
