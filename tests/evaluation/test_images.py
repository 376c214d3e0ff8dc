"""Which images are measured, and what stops it before it begins."""

from __future__ import annotations

import shutil

import pytest
import torch

from camify.data import Preprocessing
from camify.errors import ConfigError, ConversionError, DataError
from camify.evaluation import evaluate
from camify.evaluation.images import find_labeled
from camify.surgery.tiny_vgg import TinyVGG
from camify.task import Classes

from .conftest import NAMES, PREPROCESSING, SHOWN


def labelled(root, split=None, names=NAMES, count=7, **options):
    return find_labeled(root, split, PREPROCESSING, Classes.of(None, names, count), count, **options)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "data")


def test_classes_go_by_name(root):
    found = labelled(root)
    assert found.classes == {name: NAMES.index(name) for name in sorted(SHOWN)}
    for record in found.images.records:
        assert record.label == NAMES.index(record.path.parent.name)
    assert found.has_boxes
    assert [len(record.boxes) for record in found.images.records] == [2, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert (found.available, found.notes) == (12, ())


def test_a_folder_without_splits(copy):
    found = labelled(copy / "val")
    assert len(found.images) == 12
    assert not found.has_boxes
    assert f"{copy / 'val' / 'boxes.csv'} does not exist" in found.notes[0]
    other = copy / "other"
    (copy / "val").rename(other)
    found = labelled(copy, "other")
    assert not found.has_boxes
    assert "knows none of these images" in found.notes[0]


def test_limit_draws_images(root):
    first, again, other = (labelled(root, limit=5, seed=seed) for seed in (1, 1, 2))
    assert [r.path for r in first.images.records] == [r.path for r in again.images.records]
    assert [r.path for r in first.images.records] != [r.path for r in other.images.records]
    assert (len(first.images), first.available) == (5, 12)
    assert len(labelled(root, limit=50).images) == 12


def test_a_network_without_names(root):
    found = labelled(root, names=None, count=4)
    assert found.classes == {name: index for index, name in enumerate(sorted(SHOWN))}
    assert "alphabetical" in found.notes[0]
    with pytest.raises(ConfigError, match="has 4 classes, the network 7"):
        labelled(root, names=None)


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
        labelled(root, names=["dog", "c|at"], count=2)
    with pytest.raises(DataError, match="several classes of that name"):
        labelled(root, names=[*NAMES, "ant"], count=8)
    (copy / "val").rename(copy / "test")
    (copy / "train").mkdir()
    with pytest.raises(ConfigError, match="name the split with --split"):
        labelled(copy)
    with pytest.raises(DataError, match="no such folder"):
        labelled(copy, "val")


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
    assert found.localisation == found.hard == found.hard_share == {}
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
    assert found.localisation["cam"]["max_box_acc_v1"].count == 1


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
    assert [name for name in found.localisation if name.startswith(("cam", "grad"))] == ["gradcam"]
