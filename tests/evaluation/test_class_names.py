"""Lists of class names as people have them: text, and the JSON of Keras and others."""

from __future__ import annotations

import json

import pytest

from camify.errors import DataError
from camify.evaluation.class_names import read_class_names

NAMES = ["tench", "great white shark", "caf\u00e9"]


def written(tmp_path, content, name="names.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_text(tmp_path, mark, end):
    assert read_class_names(written(tmp_path, mark + end.join(NAMES) + end), (3,)) == NAMES


@pytest.mark.parametrize("name", ["names.json", "names.txt"])
@pytest.mark.parametrize(
    "content",
    [
        NAMES,
        {str(index): name for index, name in enumerate(NAMES)},
        {str(index): [f"n0{index}", NAMES[index]] for index in (2, 0, 1)},
        {name: index for index, name in enumerate(NAMES)},
        [[f"n0{index}", name] for index, name in enumerate(NAMES)],
    ],
)
def test_json_of_keras_and_others(tmp_path, name, content):
    for text in (json.dumps(content), "\ufeff" + json.dumps(content, indent=1)):
        assert read_class_names(written(tmp_path, text, name)) == NAMES


def test_a_class_in_brackets_is_no_json(tmp_path):
    assert read_class_names(written(tmp_path, "[unknown]\ncat\n")) == ["[unknown]", "cat"]


def test_the_list_of_imagenet_has_two_cranes_and_two_maillots(tmp_path):
    names = [f"class {index}" for index in range(1000)]
    for index, name in ((134, "crane"), (517, "crane"), (638, "maillot"), (639, "maillot")):
        names[index] = name
    for path in (written(tmp_path, "\n".join(names)), written(tmp_path, json.dumps(names), "names.json")):
        with pytest.warns(UserWarning, match=r"crane, maillot stand there several times.*crane \(134\), crane \(517\)"):
            read = read_class_names(path, (1000,))
        assert len(set(read)) == 1000
        assert [index for index, (a, b) in enumerate(zip(read, names, strict=True)) if a != b] == [134, 517, 638, 639]
        assert read[517] == "crane (517)"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("cat\n\ndog\n", "a.txt", "line 2: '' is empty"),
        ("cat\ndog\ncat\n", "a.txt", "line 3: 'cat' stands there twice"),
        ("\n".join(["cat", "dog"] * 200), "a.txt", "line 3: 'cat' stands there twice"),
        ("caf\u00e9\n".encode("cp1252"), "a.txt", "line 1: cannot be read as UTF-8.*Windows-1252"),
        ("cat\n".encode("utf-16"), "a.txt", "UTF-16"),
        ('{"0": ', "a.json", "cannot be read as JSON.*Known forms"),
        ('{"0": "cat", "2": "dog"}', "a.json", "2 classes, and none of index 1"),
        ('{"0": ["n1", "cat", 0.5]}', "a.json", "is no class name"),
        ("[1, 2]", "a.json", "'1' is no class name"),
        ("7", "a.json", "holds no class names"),
        ("{}", "a.json", "holds no class names"),
        ('["cat", "cat"]', "a.json", "entry 2: 'cat' stands there twice"),
        ("cat\ndog\n", "a.txt", "holds 2 names, and the network has 3 classes"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, content, name, message):
    with pytest.raises(DataError, match=message) as caught:
        read_class_names(written(tmp_path, content, name), (3,))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_class_names(tmp_path / "none.txt")
