"""Which images are measured, and what stops it before it begins."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from camify.cli.commands import main
from camify.data import ImageFolderDataModule, Preprocessing, image_checks
from camify.data.class_folders import class_folders
from camify.data.image_search import Reason, find_images_below
from camify.errors import ConfigError, ConversionError, DataError
from camify.evaluation import evaluate
from camify.evaluation.images import image_files, images_with_notes
from camify.evaluation.labeled_data import find_labeled
from camify.evaluation.network import placed_on
from camify.sources.demo_network import TinyVGG
from camify.task import Classes

from ..data.equal import equal
from .conftest import NAMES, PREPROCESSING, SHOWN


def labeled(root, split=None, names=NAMES, count=7, **options):
    return find_labeled(root, split, PREPROCESSING, Classes.of(None, names, count), count, **options)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "data")


def test_classes_go_by_name(root):
    found = labeled(root)
    assert found.classes == {name: NAMES.index(name) for name in sorted(SHOWN)}
    for path, label in zip(found.images.files, found.images.labels, strict=True):
        assert label == NAMES.index(path.parent.name)
    assert found.has_boxes
    assert found.images.boxes.counts.tolist() == [2, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert found.available == 12
    (note,) = found.notes
    assert note == f"{root / 'boxes.csv'}: 1 box is left out, since it is of another class than the image"


def test_a_folder_without_splits(copy):
    found = labeled(copy / "val")
    assert len(found.images) == 12
    assert not found.has_boxes
    assert f"{copy / 'val' / 'boxes.csv'} does not exist" in found.notes[0]
    other = copy / "other"
    (copy / "val").rename(other)
    found = labeled(copy, "other")
    assert not found.has_boxes
    assert "knows none of these images: its first is " in found.notes[0]
    assert ", theirs are named like 'other/" in found.notes[0]


def test_limit_draws_images(root):
    first, again, other = (labeled(root, limit=5, seed=seed) for seed in (1, 1, 2))
    assert first.images.files == again.images.files
    assert first.images.files != other.images.files
    assert (len(first.images), first.available) == (5, 12)
    assert len(labeled(root, limit=50).images) == 12


def test_a_network_without_names(root):
    found = labeled(root, names=None, count=4)
    assert found.classes == {name: index for index, name in enumerate(sorted(SHOWN))}
    assert "alphabetical" in found.notes[0]
    with pytest.raises(ConfigError, match="has 4 classes, the network 7"):
        labeled(root, names=None)


def test_names_that_are_given(net, root):
    other = ["dog", "c|at", "fox", "ant", "x", "y", "z"]
    found = evaluate(net, root, class_names=other, faithfulness=0, mosaics=0)
    assert found.data.classes == {name: other.index(name) for name in SHOWN}
    assert found.answers.labels.tolist() == [3] * 3 + [1] * 3 + [0] * 3 + [2] * 3
    assert net.class_names == NAMES
    with pytest.raises(ConfigError, match="3 names for the network's 7 classes"):
        evaluate(net, root, class_names=other[:3])


def test_classes_that_the_network_does_not_have(root, copy):
    with pytest.raises(ConfigError, match="ant, fox: no class of the network"):
        labeled(root, names=["dog", "c|at"], count=2)
    with pytest.raises(DataError, match="several classes of that name"):
        labeled(root, names=[*NAMES, "ant"], count=8)
    (copy / "val").rename(copy / "test")
    (copy / "train").mkdir()
    with pytest.raises(ConfigError, match="name the split with --split"):
        labeled(copy)
    with pytest.raises(DataError, match="no such folder"):
        labeled(copy, "val")


def test_damaged_files_and_boxes_are_named_before_work_starts(net, copy, monkeypatch):
    monkeypatch.setattr("camify.evaluation.evaluation.measure_all", None)
    (copy / "val" / "ant" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png"):
        evaluate(net, copy)
    (copy / "val" / "ant" / "1.png").unlink()
    (copy / "boxes.csv").write_text("image,x0,y0,x1,y1,label\nval/ant/0.png,9,0,3,9,ant\n")
    with pytest.raises(DataError, match=r"boxes\.csv:2"):
        evaluate(net, copy)
    (copy / "boxes.csv").write_text("image,x0,y0,x1,y1,label\nval/ant/0.png,3,0,9,9,fly\n")
    with pytest.raises(DataError, match="no box has the class of its image"):
        evaluate(net, copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["cam", "cam"]}, "each one once"),
        ({"methods": ["magic"]}, "magic"),
        ({"methods": []}, "name at least one"),
        ({"threshold": 1.0}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"options": {"glow": 1}}, "glow"),
    ],
)
def test_options_that_cannot_be(net, root, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(net, root, **options)


def test_without_boxes_the_rest_is_measured(net, copy):
    (copy / "boxes.csv").unlink()
    found = evaluate(net, copy, faithfulness=3, batch_size=8)
    assert found.localization == found.hard == found.hard_share == {}
    assert found.without_boxes["cam"].keys() == {"grid", "flip", "shift", "entropy", "area"}
    assert found.faithfulness["cam"]["drop"].count == 3
    assert found.classes[NAMES.index("ant")]["cam"].keys() == {"entropy", "area", "grid"}


def test_too_few_classes_for_mosaics(net, copy):
    shutil.rmtree(copy / "val" / "ant")
    found = evaluate(net, copy, faithfulness=0)
    assert "grid" not in found.without_boxes["cam"]
    assert "A 2 x 2 mosaic needs 4 classes, these images have 3." in dict(found.facts)["mosaics"]


def test_a_batch_without_a_box(net, copy):
    (copy / "boxes.csv").write_text("image,x0,y0,x1,y1,label\nval/fox/0.png,3,0,29,29,fox\n")
    found = evaluate(net, copy, batch_size=3, faithfulness=0, mosaics=0)
    assert found.localization["cam"]["max_box_acc_v1"].count == 1


def test_what_the_network_cannot_serve_is_said(root):
    """A legacy network has no CAM, and takes only images of its own size."""
    torch.manual_seed(0)
    legacy = TinyVGG(4)
    legacy.preprocessing = Preprocessing(96)
    with pytest.raises(ConversionError, match=r"camify\.convert"):
        evaluate(legacy, root)
    found = evaluate(legacy, root, methods=["cam", "gradcam"], faithfulness=0, limit=9)
    facts = dict(found.facts)
    assert "needs a CAM-ready network" in facts["cam left out"]
    assert "192" in facts["mosaics"]
    assert "alphabetical" in facts["images"]
    assert [name for name in found.localization if name.startswith(("cam", "grad"))] == ["gradcam"]


# ---------------------------------------------------------------- what is an input, and in which order


def test_hidden_files_are_left_out_everywhere_alike(copy, net):
    (copy / "val" / "ant" / "._0.png").write_bytes(b"resource fork")
    (copy / "val" / "ant" / ".thumbnails").mkdir()
    shutil.copy(copy / "val" / "ant" / "0.png", copy / "val" / "ant" / ".thumbnails" / "0.png")
    (copy / "val" / ".DS").mkdir()
    files = image_files([copy])
    assert len(files) == 12
    assert files == list(find_images_below(copy).paths)
    assert labeled(copy).images.files == files
    assert image_files([copy / "val" / "ant" / "._0.png"]) == [copy / "val" / "ant" / "._0.png"], (
        "what is named is taken"
    )
    assert evaluate(net, copy, faithfulness=0, mosaics=0).accuracy["top1"].count == 12


def test_what_lies_below_the_folder_to_write_is_no_input(copy, tmp_path, monkeypatch):
    out = copy / "val" / "ant" / "out"
    out.mkdir()
    shutil.copy(copy / "val" / "ant" / "0.png", out / "0_cam.png")
    assert len(image_files([copy])) == 13
    assert len(image_files([copy], outside=out)) == 12
    monkeypatch.chdir(copy / "val" / "ant")
    assert len(image_files(["."], outside="out")) == 3
    with pytest.raises(DataError, match="below the folder to write"):
        image_files([out], outside=out)


def test_a_repeated_explain_explains_nothing_anew(copy, net, capsys):
    folder, photos = net.save_pretrained(copy / "net"), copy / "val" / "ant"
    arguments = ["explain", photos, "--model", folder, "--out", photos / "out", "--device", "cpu"]
    for shown in ("3 of 3 images explained: ", "0 of 3 images explained (3 were done before): "):
        main([str(argument) for argument in arguments])
        assert shown in capsys.readouterr().out


def lines(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_networks_that_are_drawn_anew_are_the_same_when_explaining_goes_on(copy, capsys):
    photos = copy / "val" / "ant"
    words = ["explain", photos, "--model", "camify/tiny_vgg", "--method", "gradcam", "--device", "cpu", "--out"]
    torch.manual_seed(5)
    main([str(word) for word in (*words, photos / "out")])
    assert "3 of 3 images explained: " in lines(capsys)
    main([str(word) for word in (*words, photos / "out")])
    assert "0 of 3 images explained (3 were done before): " in lines(capsys)
    main([str(word) for word in (*words, photos / "deep" / "other")])
    said = lines(capsys)
    assert "3 of 3 images explained: " in said
    assert f"Folders left out, since camify wrote them: 1; the first is {photos / 'out'}." in said
    assert torch.initial_seed() == 5, "whose program this is keeps its own chance"


@pytest.fixture
def x_rays(tmp_path):
    """Two gray files of 12 bits, and one of one color."""
    folder = tmp_path / "x-rays"
    folder.mkdir()
    for seed in (1, 2):
        values = np.random.default_rng(seed).integers(0, 4096, (40, 40)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{seed}.png")
    Image.new("RGB", (40, 40), (9, 99, 199)).save(folder / "flat.png")
    return folder


def test_explaining_gray_files_of_12_bits(x_rays, tmp_path, net, capsys):
    folder = net.save_pretrained(tmp_path / "net")
    words = ["explain", str(x_rays), "--model", str(folder), "--device", "cpu", "--out"]
    main([*words, str(tmp_path / "black")])
    said = lines(capsys)
    assert "of 65535, the most of 2 such files: they come out nearly black. Give bits=12 if 4095 is white" in said
    assert f"1 of 3 images is of one color, with nothing to see; the first is {x_rays / 'flat.png'}." in said
    main([*words, str(tmp_path / "right"), "--bits", "12"])
    assert "bits" not in lines(capsys)
    black, right = (np.load(tmp_path / name / "1.npy") for name in ("black", "right"))
    with torch.no_grad():
        wanted = net(replace(net.preprocessing, bits=12).read(x_rays / "1.png")[None])
    (row,) = (json.loads(line) for line in (tmp_path / "right" / "results.jsonl").read_text().splitlines()[:1])
    assert row["classes"][0]["logit"] == pytest.approx(float(wanted.max()), abs=1e-4)
    assert not np.allclose(black, right)
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "right"), "--bits", "13"])
    assert "other settings (bits)" in capsys.readouterr().err


def test_comparing_gray_files_of_12_bits_and_boxes_of_other_classes(x_rays, tmp_path, net, capsys):
    (x_rays / "list.txt").touch()
    rows = ["image,x0,y0,x1,y1,label", "1.png,1,1,20,20,Ant", "1.png,1,1,20,20,fox", "flat.png,1,1,9,9,Ant"]
    (x_rays / "boxes.csv").write_text("\n".join(rows))
    folder, out = net.save_pretrained(tmp_path / "net"), tmp_path / "out"
    words = ["compare", str(x_rays), "--model", str(folder), "--method", "cam", "--figures", "1", "--out", str(out)]
    with pytest.raises(SystemExit):
        main(words)
    assert "Give bits=12" in capsys.readouterr().err
    main([*words, "--bits", "12"])
    said = lines(capsys)
    facts = json.loads((out / "compare.json").read_text())["facts"]["images"]
    for note in (
        f"{Reason.NAME.value}: 1 .txt; the first is {x_rays / 'list.txt'}",
        f"1 of 3 images is of one color, with nothing to see; the first is {x_rays / 'flat.png'}",
        "boxes are known of 2 of 3 images",
        "2 boxes have labels that are no class of the networks: 2 of label 'Ant' (did you mean ant?)",
    ):
        assert f"Images: {note}." in said
        assert note in facts


def test_evaluating_gray_files_of_12_bits(net, tmp_path):
    for name in SHOWN:
        (tmp_path / "val" / name).mkdir(parents=True)
        side = net.preprocessing.height
        values = np.random.default_rng(0).integers(0, 4096, (side, side)).astype(np.uint16)
        values[0, 0] = 4095
        Image.fromarray(values).save(tmp_path / "val" / name / "0.png")
    options = {"faithfulness": 0, "mosaics": 0}
    with pytest.raises(DataError, match=r"0\.png: gray values up to 4095 of 65535.*Give bits=12"):
        evaluate(net, tmp_path, **options)
    image = evaluate(net, tmp_path, bits=12, **options).data.images[0]["image"]
    white = (1 - np.array(net.preprocessing.mean)) / np.array(net.preprocessing.std)
    assert image.amax((1, 2)).tolist() == pytest.approx(white.tolist(), abs=1e-4)
    net.preprocessing = replace(net.preprocessing, bits=12)
    try:
        assert torch.equal(evaluate(net, tmp_path, **options).data.images[0]["image"], image)
        facts = dict(evaluate(net, tmp_path, bits=16, **options).facts)
        assert "16 bits, as given; the network expects 12" in facts["network"]
        assert "nearly black" in facts["images"]
    finally:
        net.preprocessing = replace(net.preprocessing, bits=None)


def test_class_folders_that_are_numbers_go_by_number(tmp_path, root):
    for name in ("10", "9", "2", "1"):
        shutil.copytree(root / "val" / "ant", tmp_path / "data" / "val" / name)
        shutil.copytree(root / "val" / "ant", tmp_path / "data" / "train" / name)
    assert class_folders(tmp_path / "data" / "val") == ["1", "2", "9", "10"]
    folder = labeled(tmp_path / "data", names=None, count=4)
    assert folder.classes == {"1": 0, "2": 1, "9": 2, "10": 3}
    assert "in order of number were assumed" in folder.notes[0]
    assert folder.notes[1] == "class folders are all numbers: in order of number, 1 to 10"
    module = ImageFolderDataModule(str(tmp_path / "data"))
    assert module.class_names == ["1", "2", "9", "10"]
    assert module.notes == [folder.notes[1]]
    (tmp_path / "data" / "val" / "1b").mkdir()
    assert class_folders(tmp_path / "data" / "val") == ["1", "10", "1b", "2", "9"]
    shutil.copytree(root / "val" / "ant", tmp_path / "data" / "train" / "bee")
    assert ImageFolderDataModule(str(tmp_path / "data")).notes == []


def test_checking_images_can_be_left_out(copy, net, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "camify.data.image_checks.decode_image",
        lambda *given, decode=image_checks.decode_image: (decoded.append(1), decode(*given))[1],
    )
    whole = evaluate(net, copy, faithfulness=0, mosaics=0)
    assert len(decoded) == 12
    quick = evaluate(net, copy, faithfulness=0, mosaics=0, check_images=False)
    assert len(decoded) == 12
    assert quick.accuracy == whole.accuracy
    assert {name: one.value for name, one in quick.localization["cam"].items()} == {
        name: one.value for name, one in whole.localization["cam"].items()
    }
    assert "not decoded beforehand" in dict(quick.facts)["images"]
    files = image_files([copy])
    boxed = [image.boxes for image in images_with_notes(files)[0]]
    decoded.clear()
    unchecked = images_with_notes(files, check_images=False)[0]
    assert not decoded
    for image, boxes in zip(unchecked, boxed, strict=True):
        assert (image.boxes is None) == (boxes is None)
        assert boxes is None or torch.equal(image.boxes, boxes)
    (copy / "boxes.csv").unlink()
    (copy / "val" / "ant" / "0.png").write_bytes(b"no image")
    assert len(images_with_notes(files, check_images=False)[0]) == 12
    with pytest.raises(DataError, match=r"0\.png"):
        evaluate(net, copy, faithfulness=0, mosaics=0, check_images=False)


# ---------------------------------------------------------------- the network afterwards


class Moves(torch.nn.Module):
    """A network that says where it is moved to."""

    def __init__(self, net):
        super().__init__()
        self.net, self.moves = net, []
        self.class_names, self.preprocessing = net.class_names, net.preprocessing

    def to(self, *args, **kwargs):
        self.moves.append(str(args[0]))
        return self

    def forward(self, images):
        return self.net(images)


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_put_back_where_it_was(net, root, monkeypatch, fails):
    wrapped = Moves(net)
    options = {"methods": ["gradcam"], "faithfulness": 0, "mosaics": 0, "limit": 2, "device": "cuda:7"}
    if fails:
        monkeypatch.setattr("camify.evaluation.evaluation.measure_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(wrapped, root, **options)
    else:
        evaluate(wrapped, root, **options)
    assert wrapped.moves == ["cuda:7", "cpu"]


def test_a_network_on_several_devices_is_not_moved(net):
    wrapped = Moves(net)
    wrapped.extra = torch.nn.Parameter(torch.zeros(1, device="meta"))
    with pytest.raises(ConfigError, match="lies on 2 devices"), placed_on(wrapped, "cpu"):
        pass
    with placed_on(wrapped, None):
        pass
    assert wrapped.moves == []


# ---------------------------------------------------------------- tables


def test_a_table_gives_what_folders_give(copy):
    """Also where it names the images in another order, or holds other splits."""
    folder = labeled(copy)
    rows = [f"{path.relative_to(copy).as_posix()},{path.parent.name},val" for path in reversed(folder.images.files)]
    table = copy / "labels.csv"
    table.write_text("\n".join(["image,label,split", *rows]) + "\n", encoding="utf-8")
    found = labeled(table)
    assert found.classes == folder.classes
    assert sorted(map(str, found.images.files)) == sorted(map(str, folder.images.files))
    theirs = {sample["path"]: sample for sample in folder.images}
    assert equal({sample["path"]: sample for sample in found.images}, theirs)
    with pytest.raises(DataError, match=r"labels\.csv: no line is of split test"):
        labeled(table, "test")
    with pytest.raises(ConfigError, match="a table has train, val and test"):
        labeled(table, "mine")
    table.write_text("\n".join(["image,label", *(row.removesuffix(",val") for row in rows)]), encoding="utf-8")
    assert len(labeled(table).images) == 12
    with pytest.raises(ConfigError, match="has no column split"):
        labeled(table, "val")
    table.write_text(f"image,labels\n{rows[0].split(',')[0]},ant|bee\n", encoding="utf-8")
    with pytest.raises(DataError, match="images have several labels"):
        labeled(table)
