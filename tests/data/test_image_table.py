"""Labels from tables: the same batches, class order, checks and refusals as from folders."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from camify.data import ImageFolderDataModule, ImageTableDataModule
from camify.errors import ConfigError, DataError
from tests.data.equal import equal

OPTIONS = {"image_size": 16, "batch_size": 4, "num_workers": 0, "augment": "none"}


@pytest.fixture
def root(tmp_path):
    """Classes 2, 10 and cat: the order of a folder, and six images each in train and val."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog", "emu"):
            for number in range(3):
                path = tmp_path / "set" / split / name / f"{split} {name} {number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(path)
    lines = ["image,x0,y0,x1,y1,label", "train/cat/train cat 0.png,1,2,30,18,cat", "val/dog/val dog 2.png,0,0,9,9,dog"]
    (tmp_path / "set" / "boxes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "set"


def rows_of(root):
    paths = sorted(root.glob("*/*/*.png"))
    return [(path.relative_to(root).as_posix(), path.parent.name, path.parts[-3]) for path in paths]


def write(path, rows, header=("image", "label", "split"), delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


def ready(table, **options):
    data = ImageTableDataModule(table, **(OPTIONS | options))
    data.setup()
    return data


def error(table, **options):
    with pytest.raises((DataError, ConfigError)) as caught:
        ready(table, **options)
    return str(caught.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_gives_what_folders_give(root, delimiter):
    table = write(root / "labels.csv", rows_of(root)[::-1], delimiter=delimiter)
    data, folder = ready(table), ImageFolderDataModule(str(root), **OPTIONS)
    folder.setup()
    assert data.class_names == folder.class_names
    assert data.task is None
    for split in ("train", "val"):
        theirs, ours = ({sample["path"]: sample for sample in one.splits[split]} for one in (folder, data))
        assert equal(ours, theirs)
    assert data.splits["train"].has_boxes


def test_parquet_gives_what_csv_gives(root):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = rows_of(root)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("image", "label", "split"))}
    parquet.write_table(arrow.table(columns), root / "labels.parquet")
    table = write(root / "labels.csv", rows)
    assert equal(list(ready(str(root / "labels.parquet")).splits["val"]), list(ready(table).splits["val"]))
    lists = {"image": columns["image"], "labels": [[row[1], "thing"] for row in rows]}
    parquet.write_table(arrow.table(lists), root / "lists.parquet")
    assert ready(str(root / "lists.parquet")).class_names == ["cat", "dog", "emu", "thing"]
    (root / "broken.parquet").write_bytes((root / "labels.parquet").read_bytes()[:-9])
    assert "broken.parquet: cannot be read as Parquet" in error(str(root / "broken.parquet"))


def test_several_labels_in_one_cell_or_a_column_each(root):
    rows = rows_of(root)
    cells = [(name, f"{label}|{'pet' if label != 'emu' else 'bird'}", split) for name, label, split in rows]
    in_cells = ready(write(root / "cells.csv", cells))
    assert in_cells.task == "multilabel"
    assert in_cells.class_names == ["bird", "cat", "dog", "emu", "pet"]
    assert any("| was taken to stand between several labels" in note for note in in_cells.notes)
    names = in_cells.class_names
    marked = [(name, *(int(one in cell.split("|")) for one in names), split) for name, cell, split in cells]
    in_columns = ready(write(root / "columns.csv", marked, ("image", *names, "split")))
    assert equal(list(in_columns.splits["train"]), list(in_cells.splits["train"]))
    batch = next(iter(in_columns.val_dataloader()))
    assert batch["label"].shape == (4, 5)
    assert torch.equal(batch["label"].sum(1), torch.full((4,), 2.0))
    (root / "boxes.csv").unlink()
    one_label = ready(write(root / "cells.csv", cells), separator="")
    assert one_label.task is None
    assert one_label.class_names == ["cat|pet", "dog|pet", "emu|bird"]


def test_unknown_labels_of_columns_are_nan(root):
    (root / "boxes.csv").unlink()
    marked = [
        (name, *values, split) for (name, _, split), values in zip(rows_of(root), [("1", "", "0")] * 18, strict=True)
    ]
    data = ready(write(root / "columns.csv", marked, ("image", "a", "b", "c", "split")))
    label = data.splits["val"][0]["label"]
    assert label[[0, 2]].tolist() == [1, 0]
    assert label[1].isnan()


def test_classes_that_are_numbers_go_by_number_and_an_order_can_be_given(root):
    (root / "boxes.csv").unlink()
    numbers = {"cat": "10", "dog": "9", "emu": "1"}
    table = write(root / "labels.csv", [(name, numbers[label], split) for name, label, split in rows_of(root)])
    assert ready(table).class_names == ["1", "9", "10"]
    assert ready(table, class_names=["10", "9", "1", "0"]).splits["val"].labels == [0] * 3 + [1] * 3 + [2] * 3
    said = error(table, class_names=["1", "9"])
    assert "labels.csv:2: label '10' is none of the classes (1, 9)" in said


def test_columns_that_say_something_else(root):
    """Other columns are said, folds are no splits, and classes can be picked."""
    rows = [(name, label, str(number % 5), "9") for number, (name, label, _) in enumerate(rows_of(root))]
    table = write(root / "labels.csv", rows, ("image", "label", "fold", "age"))
    assert "If the column says something else, name another split_column" in error(table)
    data = ready(table, split_column="")
    assert any("columns that are not read: fold, age" in note for note in data.notes)
    (root / "boxes.csv").unlink()
    marked = [(name, "34", "1", "0") for name, _, _ in rows_of(root)]
    table = write(root / "marks.csv", marked, ("image", "age", "a", "b"))
    assert "column age holds '34'" in error(table)
    assert ready(table, class_names=["b", "a"]).class_names == ["b", "a"]
    assert "no column is called 'c', a class" in error(table, class_names=["a", "c"])


def test_without_val_a_share_of_each_class_is_set_aside(root):
    data = ready(write(root / "labels.csv", [row[:2] for row in rows_of(root)], ("file_name", "class")), val_share=0.34)
    assert sorted(data.splits["val"].labels) == [0, 0, 1, 1, 2, 2]
    assert any("6 of 18 training images were set aside (val_share=0.34, split_seed=0)" in note for note in data.notes)
    assert not set(data.splits["val"].paths) & set(data.splits["train"].paths)


def test_names_without_their_end_and_absolute_ones(root):
    bare = [(name.rsplit("/")[-1].removesuffix(".png"), label, split) for name, label, split in rows_of(root)]
    absolute = [(str(root.resolve() / name), label, split) for name, label, split in rows_of(root)]
    whole = ready(write(root / "labels.csv", rows_of(root)))
    for rows in (bare, absolute):
        assert equal(list(ready(write(root / "other.csv", rows)).splits["val"]), list(whole.splits["val"]))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "labels.csv: no labeled images follow"),
        (["gone.png,cat,train"], "labels.csv:2: ROOT/gone.png: no such file. Names are relative to ROOT"),
        (["../a.png,cat,train"], "labels.csv:2: image '../a.png' leads out of ROOT"),
        (["/a.png,cat,train"], "labels.csv:2: image '/a.png' does not lie below ROOT"),
        (["GOOD,cat,train", "GOOD,dog,val"], "labels.csv:3: image 'GOOD' stands in line 2 already"),
        (["GOOD,cat,middle"], "labels.csv:2: split 'middle' is none of train, val, test"),
        ([",cat,train"], "labels.csv:2: column image is empty"),
        (["GOOD,cat"], "labels.csv:2: the number of fields is not that of the first line (3)"),
        (["GOOD,cat,train,1"], "labels.csv:2: the number of fields is not that of the first line (3)"),
        (["GOOD,,train"], "labels.csv: no labeled images follow"),
    ],
)
def test_lines_that_cannot_be_right_are_named(root, lines, said):
    good = rows_of(root)[0][0]
    text = "\n".join(["image,label,split", *lines]).replace("GOOD", good) + "\n"
    (root / "labels.csv").write_text(text, encoding="utf-8")
    assert said.replace("GOOD", good).replace("ROOT", str(root)) in error(str(root / "labels.csv"))


def test_lines_without_a_label_are_counted(root):
    rows = [*rows_of(root), ("extra.png", "", "train")]
    assert (
        f"{root / 'labels.csv'}: 1 lines without a label are left out" in ready(write(root / "labels.csv", rows)).notes
    )


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"", {}, "labels.csv:1: is empty"),
        (b"a,b\n1,2\n", {}, "labels.csv:1: no column names the images. Columns: a, b"),
        (b"image\nx\n", {}, "labels.csv:1: no column has labels"),
        (b"image,label,label\n", {}, "labels.csv:1: column 'label' is there twice"),
        (b"image,cat,dog\nx,1,yes\n", {}, "labels.csv:2: column dog holds 'yes'"),
        (b"image,label\nx,y\n", {"label_column": "klass"}, "label_column='klass'"),
        ("image,label\nä,y\n".encode("latin-1"), {}, "line 2: cannot be read as UTF-8"),
        ("image,label\nä,y\n".encode("utf-16"), {}, "UTF-16"),
    ],
)
def test_tables_that_cannot_be_read(root, content, options, said):
    (root / "labels.csv").write_bytes(content)
    assert said in error(str(root / "labels.csv"), **options)


def test_what_is_not_there_is_named(root, tmp_path):
    assert "none.csv: no such file" in error(str(root / "none.csv"))
    table = write(root / "labels.csv", rows_of(root))
    assert "val_share=0 must lie between" in error(table, val_share=0)
    assert "no such folder" in error(table, root=str(tmp_path / "none"))
    (root / rows_of(root)[0][0]).write_bytes(b"no image")
    assert "1 image cannot be read" in error(table)
