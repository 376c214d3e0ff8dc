"""camify data import: from a file of another tool to boxes.csv, which training reads."""

from __future__ import annotations

import pytest

from camify.cli.commands import main
from tests.data.box_samples import IMAGES, ROWS, coco, pictures, voc, write


@pytest.fixture
def root(tmp_path):
    pictures(tmp_path / "images")
    return tmp_path / "images"


def refused(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(["data", "import", *map(str, words)])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("camify: error: ")
    return line


def test_boxes_become_a_table_and_counts_are_printed(root, tmp_path, capsys):
    main(["data", "import", str(coco(tmp_path)), "--images", str(root)])
    printed = capsys.readouterr().out
    assert "Crowd boxes are left out (iscrowd): 1; the first is" in printed
    assert "3 boxes of 2 of 2 images, kind coco" in printed
    assert [line.split() for line in printed.splitlines() if line.strip().startswith(("cat ", "dog "))] == [
        ["dog", "2"], ["cat", "1"],
    ]  # fmt: skip
    lines = (root / "boxes.csv").read_text("utf-8").splitlines()
    assert lines[0] == "image,x0,y0,x1,y1,label"
    assert lines[1:] == [f"{row[0]},{','.join(f'{value:g}' for value in row[1:5])},{row[5]}" for row in ROWS]


def test_a_table_goes_only_when_told_and_only_one_of_boxes(root, tmp_path, capsys):
    source = voc(tmp_path)
    out = write(tmp_path / "mine.csv", "name,price\na,1\n")
    words = (source, "--images", root, "--out", out)
    assert "exists. Choose another --out, or add --overwrite true" in refused(capsys, *words)
    assert "is no table of boxes. It was not touched" in refused(capsys, *words, "--overwrite", "true")
    assert out.read_text() == "name,price\na,1\n"
    main(["data", "import", str(source), "--images", str(root)])
    main(["data", "import", str(source), "--images", str(root), "--overwrite", "true", "--voc_origin", "1"])
    assert "the first pixel is 1, as given" in capsys.readouterr().out
    table = root / "boxes.csv"
    assert "is the source. Choose another --out" in refused(capsys, table, "--images", root, "--overwrite", "true")
    main(["data", "import", str(table), "--images", str(root), "--out", str(tmp_path / "copy.csv")])
    assert (tmp_path / "copy.csv").read_bytes() == table.read_bytes()


def test_wrong_options_are_one_line(root, tmp_path, capsys):
    source = coco(tmp_path)
    assert "missing: --images (see camify data import --help)" in refused(capsys, source)
    assert "nowhere: no such folder" in refused(capsys, source, "--images", tmp_path / "nowhere")
    assert "voc_origin" in refused(capsys, source, "--images", root, "--voc_origin", "2")
    assert "--kind" in refused(capsys, source, "--images", root, "--kind", "pascal")
    assert "--exif" in refused(capsys, source, "--images", root, "--exif", "turned")
    empty = write(tmp_path / "e.csv", f"image,x0,y0,x1,y1,label\n{next(iter(IMAGES))},5,5,5,9,cat\n")
    assert "no boxes are left of it, as said above" in refused(capsys, empty, "--images", root)
    assert not (root / "boxes.csv").exists()
    with pytest.raises(SystemExit):
        main(["data"])
    assert "import" in capsys.readouterr().err
