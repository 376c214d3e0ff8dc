"""camify explain --boxes: all boxes of the folder, also of a run that went on; nobody's files are replaced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.data.box_formats import import_boxes
from camify.data.box_formats.writing import BOX_FILES
from camify.sources.demo_network import TinyVGG


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    net = camify.convert(TinyVGG(3), head="direct", input_size=96, seed=0)
    net.class_names, net.preprocessing = ["ant", "Bär", "cat"], Preprocessing(96)
    return net.save_pretrained(tmp_path_factory.mktemp("boxes") / "net")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three, one of them turned by its EXIF tag: stored as 90 x 60, seen as 60 x 90."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index, name in enumerate(["ant/ü 1.jpg", "ant/2.jpg", "cat/turned.jpg"]):
        (folder / name).parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 2 else 1
        pixels = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 60)).save(folder / name, exif=exif)
    return folder


def explain(net, out, *words):
    main(["explain", *map(str, words), "--model", str(net), "--out", str(out)])


def rows_of(out):
    """By hand, from the lines of the results."""
    rows = set()
    for line in (out / "results.jsonl").read_text().splitlines():
        result = json.loads(line)
        name = "/".join(result["image"].rsplit("/", 2)[1:])
        for entry in result["classes"]:
            box = entry["maps"]["cam"]["box"]
            rows |= {(name, *box, entry["class"], round(entry["probability"], 6))} if box else set()
    return rows


def test_every_format_holds_all_boxes_of_the_folder(net, photos, tmp_path, capsys):
    out = tmp_path / "out"
    explain(net, out, photos / "ant", "--topk", "2", "--method", "cam", "gradcam")
    assert not list(out.glob("boxes*"))
    explain(net, out, photos, "--topk", "2", "--method", "cam", "gradcam", "--boxes", *BOX_FILES)
    assert f"boxes for other tools: {out / 'boxes_coco.json'}" in capsys.readouterr().out
    expected = rows_of(out)
    assert {row[0] for row in expected} == {"ant/ü 1.jpg", "ant/2.jpg", "cat/turned.jpg"}
    paths = sorted(photos.rglob("*.jpg"))
    for name, _ in BOX_FILES.values():
        imported = import_boxes(out / name, paths, photos)
        assert {(row[0], row[5]) for row in imported.rows} == {(row[0], row[5]) for row in expected}
        found, wanted = (
            np.array(sorted(row[1:5] for row in imported.rows)),
            np.array(sorted(row[1:5] for row in expected)),
        )
        assert np.abs(found - wanted).max() < 1e-3
    coco = json.loads((out / "boxes_coco.json").read_text())
    assert {(one["width"], one["height"]) for one in coco["images"]} == {(90, 60), (60, 90)}
    assert {one["score"] for one in coco["annotations"]} == {row[6] for row in expected}
    assert [one["name"] for one in coco["categories"]] == ["ant", "Bär", "cat"]
    sha = json.loads((out / "explain.json").read_text())["model_sha256"]
    (task, *_) = json.loads((out / "boxes_labelstudio.json").read_text())
    assert task["predictions"][0]["model_version"].endswith(sha[:12])
    again = ("--topk", "2", "--method", "cam", "gradcam", "--boxes", "labelstudio")
    explain(net, out, photos, *again, "--image_url_prefix", "s3://b/")
    tasks = json.loads((out / "boxes_labelstudio.json").read_text())
    assert {one["data"]["image"] for one in tasks} >= {"s3://b/ant/2.jpg", "s3://b/ant/%C3%BC%201.jpg"}


def test_files_of_the_user_stay_and_nothing_is_begun(net, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "boxes_cvat.xml").write_text("<mine/>")
    with pytest.raises(SystemExit):
        explain(net, out, photos, "--boxes", "cvat", "--overwrite", "true")
    assert "boxes_cvat.xml: exists, and camify did not write it" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["boxes_cvat.xml"]
    with pytest.raises(SystemExit):
        explain(net, out, photos, "--boxes", "voc")
    assert "coco" in capsys.readouterr().err


def test_images_that_would_share_a_file_of_labels_are_refused_first(net, photos, tmp_path, capsys):
    copy = photos / "ant" / "2.png"
    Image.new("RGB", (9, 9)).save(copy)
    try:
        with pytest.raises(SystemExit):
            explain(net, tmp_path / "out", photos, "--boxes", "yolo")
    finally:
        copy.unlink()
    assert "ant/2.jpg and ant/2.png differ by their ending only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
