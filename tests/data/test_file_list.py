"""Lists of files and what stands beside them in arrays: as lists of paths, tuples and sets would have it."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camify.data.file_list import FileList
from camify.data.labeled_images import BoxArrays, LabelSets
from camify.data.splits import set_aside

NAMES = st.lists(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1), max_size=20)


@given(NAMES, st.integers(-25, 25), st.integers(-25, 25))
def test_it_is_a_sequence_of_paths(names, first, end):
    files, paths = FileList("data", names), [Path("data") / name for name in names]
    assert list(files) == paths == [files[number] for number in range(len(files))]
    assert files[first:end] == paths[first:end]
    assert files[::-1] == paths[::-1]
    assert list(files.names()) == names
    assert FileList.joined(".", [files, files]) == paths * 2


def test_names_that_are_no_utf8_and_ends():
    files = FileList("data", [os.fsdecode(b"\xff.png"), "b.png"])
    assert os.fsencode(files.name(0)) == b"\xff.png"
    assert files[-1] == Path("data/b.png")
    with pytest.raises(IndexError):
        files[2]
    assert len(FileList("data")) == 0
    assert list(FileList("data", (f"{n}" for n in range(25_000))))[20_001] == Path("data/20001")


def test_sizes_and_times_are_those_of_the_filesystem(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    files = FileList(tmp_path, ["a", "gone"])
    assert files.stamps().tolist() == [[3, (tmp_path / "a").stat().st_mtime_ns], [-1, -1]]
    assert files[:1].stamps().tolist() == files.stamps()[:1].tolist()


def test_a_file_takes_ten_bytes_more_than_its_name():
    names = [f"train/n{number % 1000:08d}/ILSVRC2012_train_{number:08d}.JPEG" for number in range(50_000)]
    tracemalloc.start()
    files = FileList("data", names)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(files) == 50_000
    assert held / 50_000 < len(names[0]) + 20


ROWS = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 100, width=32)), max_size=40)


@given(ROWS, st.integers(0, 10), st.integers(0, 10))
def test_boxes_by_image(rows, first, end):
    boxes = BoxArrays.of(10, [image for image, _ in rows], [[value] * 4 for _, value in rows])
    by_hand = [[[value] * 4 for image, value in rows if image == number] for number in range(10)]
    assert [boxes[number].tolist() for number in range(10)] == by_hand
    assert boxes.counts.tolist() == [len(one) for one in by_hand]
    part = boxes.part(first, max(first, end))
    assert [part[number].tolist() for number in range(len(part))] == by_hand[first : max(first, end)]


@given(st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=12), st.randoms())
def test_several_labels_by_image(sets, random):
    labels = LabelSets.of([sorted(one) for one in sets], 5)
    wanted = torch.tensor([[float(number in one) for number in range(5)] for one in sets])
    assert torch.equal(torch.stack([labels[number] for number in range(len(sets))]), wanted)
    numbers = np.array([random.randrange(len(sets)) for _ in range(6)])
    assert torch.equal(torch.stack([labels.taken(numbers)[number] for number in range(6)]), wanted[numbers])
    both = LabelSets.joined([labels, labels.taken(numbers)])
    assert torch.equal(torch.stack([both[n] for n in range(len(both))]), torch.cat([wanted, wanted[numbers]]))


def test_a_share_of_each_class_is_set_aside():
    labels = np.repeat([3, 1, 7], [100, 10, 1])
    aside = set_aside(labels, 0.2, 0)
    assert [int(aside[labels == label].sum()) for label in (3, 1, 7)] == [20, 2, 0]
    assert (aside == set_aside(labels, 0.2, 0)).all()
    assert (aside != set_aside(labels, 0.2, 1)).any()
