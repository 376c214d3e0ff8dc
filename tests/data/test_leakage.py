"""Images that are trained on and measured on: found by their content, whatever they are called."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from camify.data import ImageFolderDataModule, ImageTableDataModule
from camify.data.file_list import FileList
from camify.data.leakage import leakage_notes


def write(path, number, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        write(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", number)
    for number in range(4):
        write(tmp_path / "val" / "ab"[number % 2] / f"{number}.png", 100 + number)
    return tmp_path


def notes_of(data):
    data.setup("fit")
    return [note for note in data.notes if "same content" in note]


def test_a_copy_is_named_with_the_training_image_that_it_is(folder):
    assert notes_of(ImageFolderDataModule(str(folder), num_workers=0)) == []
    copy, original = folder / "val" / "b" / "renamed.png", folder / "train" / "a" / "2.png"
    copy.write_bytes(original.read_bytes())
    (note,) = notes_of(ImageFolderDataModule(str(folder), num_workers=0))
    assert note == (
        f"1 of 5 images of val is a training image too, with the same content: {copy} is {original}."
        " What is measured on val looks better than it will be on new images"
    )


def test_every_split_that_is_measured_on_is_compared(folder):
    for split in ("val", "test"):
        for number in (0, 1):
            write(folder / split / "ab"[number] / f"copy{number}.png", number)
    val, test = notes_of(ImageFolderDataModule(str(folder), num_workers=0))
    assert val.startswith("2 of 6 images of val are training images too")
    assert test.startswith("2 of 2 images of test are training images too")


@pytest.mark.parametrize("check", ["first_epoch", "never"])
def test_no_file_is_opened_where_the_check_is_left_out(folder, check):
    write(folder / "val" / "a" / "copy.png", 0)
    assert notes_of(ImageFolderDataModule(str(folder), num_workers=0, check=check)) == []


def test_rows_of_a_table_that_split_copies_apart(folder):
    write(folder / "train" / "a" / "copy.png", 1)
    rows = [(path.relative_to(folder), path.parent.name) for path in sorted(folder.rglob("*.png"))]
    lines = [f"{name},{label},{'val' if 'copy' in name.name else name.parts[0]}" for name, label in rows]
    (folder / "labels.csv").write_text("\n".join(["image,label,split", *lines]) + "\n")
    (note,) = notes_of(ImageTableDataModule(str(folder / "labels.csv"), root=str(folder), num_workers=0))
    assert note.startswith("1 of 5 images of val is a training image too")


def test_files_of_one_size_that_begin_and_end_alike_are_told_apart(tmp_path):
    """Bitmaps have as many bytes as others of their size; black borders make both ends alike."""
    pixels = np.zeros((96, 96, 3), np.uint8)
    files = {"train": [], "val": []}
    for number, split in enumerate(["train", "val", "train", "val"]):
        pixels[48, 48] = number
        name = f"{split}{number}.bmp"
        Image.fromarray(pixels).save(tmp_path / name)
        files[split].append(name)
    splits = {split: FileList(tmp_path, names) for split, names in files.items()}
    assert leakage_notes(splits) == []
    (tmp_path / "val3.bmp").write_bytes((tmp_path / "train0.bmp").read_bytes())
    (note,) = leakage_notes(splits)
    assert re.search(r"1 of 2 .*val3.bmp is .*train0.bmp", note)


def test_it_counts_as_many_as_hashes_of_all_files_do(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 40), ("test", 30)):
        for number in range(count):
            path = tmp_path / split / f"{number}.bin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes([int(random.integers(3))]) * int(random.integers(1, 40)))
    splits = {
        split: FileList(tmp_path, [f"{split}/{path.name}" for path in sorted((tmp_path / split).iterdir())])
        for split in ("train", "val", "test")
    }
    hashes = {split: [hashlib.sha256(path.read_bytes()).digest() for path in files] for split, files in splits.items()}
    expected = [sum(one in hashes["train"] for one in hashes[split]) for split in ("val", "test")]
    assert [int(note.split()[0]) for note in leakage_notes(splits)] == expected


def test_of_many_images_some_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("camify.data.leakage._COMPARED", 10)
    names = {"train": [], "val": []}
    for split, number in itertools.product(names, range(40)):
        (tmp_path / f"{split}{number}").write_bytes(b"x" * (number + 1))
        names[split].append(f"{split}{number}")
    (note,) = leakage_notes({split: FileList(tmp_path, own) for split, own in names.items()})
    assert note.startswith("10 of 10 images of val (of its 40, evenly chosen) are training images too")


def test_nothing_is_said_of_files_that_are_gone_and_without_training_data(tmp_path):
    files = FileList(tmp_path, ["a", "b"])
    assert leakage_notes({"train": files, "val": files}) == []
    assert leakage_notes({"val": files, "test": files}) == []
    assert leakage_notes({"train": FileList(tmp_path), "val": files}) == []
