"""Checks of images: made once, remembered, by workers, or while the first epoch goes through them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

import camify
from camify.data import ImageFolderDataModule, image_checks
from camify.data.file_list import FileList
from camify.data.image_checks import CHECK
from camify.data.remembered_checks import RememberedChecks, check_files, identities
from camify.errors import ConfigError, DataError

OPTIONS = {"image_size": 32, "batch_size": 3, "num_workers": 0}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes, four images each in both splits; what is remembered lies beside them."""
    monkeypatch.setenv("CAMIFY_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for number in range(4):
                path = tmp_path / "set" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch):
    """The files that are looked at, as they are."""
    seen, look = [], image_checks._checked
    monkeypatch.setattr(image_checks, "_checked", lambda file, *given: (seen.append(str(file)), look(file, *given))[1])
    return seen


def ready(root, **options):
    data = ImageFolderDataModule(str(root), **(OPTIONS | options))
    data.setup()
    return data


def test_only_new_and_changed_images_are_decoded_again(root, decoded):
    ready(root)
    assert len(decoded) == 16
    decoded.clear()
    ready(root)
    assert decoded == []
    changed, new = root / "val" / "dog" / "1.png", root / "train" / "cat" / "new.png"
    os.utime(changed, ns=(1, 1))
    Image.new("RGB", (9, 9)).save(new)
    (root / "train" / "cat" / "0.png").unlink()
    ready(root)
    assert sorted(decoded) == sorted(map(str, (changed, new)))
    decoded.clear()
    ready(root, bits=12)
    assert len(decoded) == 16, "values are others then"


def test_what_cannot_be_read_is_never_remembered(root, decoded):
    bad = root / "val" / "dog" / "1.png"
    bad.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 image cannot be read[\s\S]*1\.png"):
            ready(root)
    assert decoded.count(str(bad)) == 2
    assert len(decoded) == 17, "the others were remembered"


def test_notes_and_sizes_are_the_same_from_memory(root, decoded):
    flat = root / "train" / "cat" / "flat.png"
    Image.new("RGB", (9, 9), "red").save(flat)
    (root / "boxes.csv").write_text("image,x0,y0,x1,y1,label\nval/dog/1.png,1,1,40,20,dog\n", encoding="utf-8")
    first, again = ready(root), ready(root)
    assert len(decoded) == 17
    assert first.notes == again.notes
    assert any("1 of 17 images is of one color" in note and str(flat) in note for note in again.notes)
    assert again.splits["val"].boxes[5].tolist() == [[1, 1, 40, 20]]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"x" * 500])
def test_a_damaged_memory_is_made_anew_with_a_line(root, tmp_path, decoded, content):
    ready(root)
    (memory,) = (tmp_path / "cache" / "checked").iterdir()
    memory.write_bytes(content)
    decoded.clear()
    assert any("cannot be read, so all images are checked again" in note for note in ready(root).notes)
    assert len(decoded) == 16
    decoded.clear()
    ready(root)
    assert decoded == []


def test_a_memory_with_objects_starts_nothing(root, tmp_path, decoded):
    """NumPy's files can hold pickles, which run code; they are not read."""
    ready(root)
    (memory,) = (tmp_path / "cache" / "checked").iterdir()
    np.save(memory, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert any("cannot be read, so all images are checked again" in note for note in ready(root).notes)


def test_where_nothing_can_be_remembered_it_is_said(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CAMIFY_CACHE", str(tmp_path / "file"))
    assert any("cannot be remembered" in note and "CAMIFY_CACHE" in note for note in ready(root).notes)


def test_workers_see_what_one_process_sees(root):
    files = FileList(root, sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png")) * 9)
    alone, bad = image_checks.check_readable(files, np.arange(len(files)), decode=True)
    shared, bad_too = image_checks.check_readable(files, np.arange(len(files)), decode=True, workers=2)
    assert (alone == shared).all()
    assert not bad
    assert not bad_too
    assert (alone["width"] == 40).all()
    assert (alone["brightest"] > 200).all()


def test_others_of_a_folder_stay_remembered(root):
    files = FileList(root, sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png")))
    check_files(files, decode=True)
    check_files(files[:3], decode=True)
    checks, known = RememberedChecks(*identities(files), None).known()
    assert known.all()
    assert checks.dtype == CHECK


# --- while training ---------------------------------------------------------------------------------------


def fit(root, tmp_path, **options):
    data = ImageFolderDataModule(str(root), **(OPTIONS | {"check": "first_epoch"} | options))
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    options = {"head": "direct", "input_size": 32, "freeze_epochs": 0}
    module = camify.CAMFineTuner(network, class_names=data.class_names, **options)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return data


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*use of fork.*")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_epoch_checks_while_it_trains(root, tmp_path, decoded, capsys, workers):
    for path in root.rglob("*.png"):
        Image.new("RGB", (9, 9), (5, 5, 5)).save(path)
    data = fit(root, tmp_path, num_workers=workers)
    said = " ".join(capsys.readouterr().out.split())
    assert not decoded
    assert "all 16 images are nearly black" in said
    assert "16 of 16 images are of one color" in said
    assert said.count("nearly black") == 1
    ready(root)
    assert not decoded, "they are remembered"
    assert data.check == "never"


def test_a_check_that_is_unknown_is_refused(root):
    with pytest.raises(ConfigError, match="check='later' is unknown"):
        ImageFolderDataModule(str(root), check="later")
    assert ImageFolderDataModule(str(root), check_images=False).check == "never"


# --- boxes and masks of other formats ---------------------------------------------------------------------


def coco(root):
    images = [{"id": 1, "file_name": "train/cat/0.png", "width": 40, "height": 20},
              {"id": 2, "file_name": "val/dog/1.png", "width": 40, "height": 20}]  # fmt: skip
    boxes = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 2, 20, 10]},
             {"id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 8, 8]},
             {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9]}]  # fmt: skip
    names = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    path = root.parent / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}), encoding="utf-8")
    return path


def test_boxes_of_another_format(root):
    data = ready(root, boxes=str(coco(root)))
    assert data.splits["train"].boxes[0].tolist() == [[4, 2, 24, 12]]
    assert data.splits["val"].boxes[5].tolist() == [[0, 0, 8, 8]]
    assert data.splits["train"].boxes.counts.sum() == 1
    assert any("read as coco" in note for note in data.notes)
    assert any("1 box is left out, since it is of another class than the image" in note for note in data.notes)
    with pytest.raises(ConfigError, match="boxes_kind, voc_origin and exif say how boxes are meant"):
        ImageFolderDataModule(str(root), voc_origin=1)


def test_boxes_are_part_of_what_a_run_is_resumed_with(root):
    before = ready(root, boxes=str(coco(root))).fingerprint()
    (root.parent / "coco.json").write_text(
        (root.parent / "coco.json").read_text(encoding="utf-8").replace("[4, 2", "[5, 2"), encoding="utf-8"
    )
    after = ready(root, boxes=str(root.parent / "coco.json")).fingerprint()
    assert {name for name in before if before[name] != after[name]} == {"coco.json"}


def test_masks_of_images(root):
    place = root.parent / "masks" / "train" / "cat"
    place.mkdir(parents=True)
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:20] = 255
    Image.fromarray(mask).save(place / "0.png")
    data = ready(root, masks=str(root.parent / "masks"), augment="none")
    sample = data.splits["train"][0]
    rows, columns = sample["mask"].any(1).nonzero(), sample["mask"].any(0).nonzero()
    assert (int(rows.min()), int(rows.max())) == (8, 23)
    assert (int(columns.min()), int(columns.max())) == (8, 15)
    assert not data.splits["train"][1]["mask"].any()
    assert next(iter(data.val_dataloader()))["mask"].shape == (3, 32, 32)
    assert any("images without a mask: 15 of 16" in note for note in data.notes), data.notes


# --- decoding at a part -----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_large_photographs_are_decoded_at_a_part_for_training(tmp_path, orientation):
    """Within two gray levels of the whole image, resized; boxes stay where they are."""
    rows, columns = np.mgrid[:1200, :1600]
    picture = np.stack([(rows / 9) % 256, (columns / 9) % 256, (rows + columns) / 14 % 256], axis=2).astype(np.uint8)
    picture[100:500, 200:900] = (250, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("train", "val"):
        (tmp_path / "set" / split / "cat").mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "set" / split / "cat" / "0.jpg", quality=95, exif=exif)
    lines = ["image,x0,y0,x1,y1,label", *(f"{split}/cat/0.jpg,200,100,900,500,cat" for split in ("train", "val"))]
    (tmp_path / "set" / "boxes.csv").write_text("\n".join(lines), encoding="utf-8")
    data = ready(tmp_path / "set", image_size=64, augment="none")
    train, val = data.splits["train"], data.splits["val"]
    assert train.least_size == (128, 128)
    assert val.least_size is None
    assert torch.allclose(train[0]["boxes"], val[0]["boxes"], atol=0.3)
    difference = (data.preprocessing.restore(train[0]["image"]) - data.preprocessing.restore(val[0]["image"])).abs()
    assert float(difference.mean()) < 0.5 / 255
    assert float(difference.max()) < 6 / 255
    reduced = camify.image_files.read_reduced(tmp_path / "set" / "train" / "cat" / "0.jpg", least=(128, 128))
    whole = (1600, 1200) if orientation in (6, 8) else (1200, 1600)
    assert reduced[2] == whole
    assert tuple(reduced[0].shape[-2:]) == (whole[0] // 8, whole[1] // 8)


# --- loading processes ------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="nothing says who sent a signal here")
@pytest.mark.filterwarnings("ignore:.*use of fork.*")
def test_loading_processes_heed_their_own_main_process_alone(root):
    """A signal that goes to all processes of a run must not take the batches of the validation that it ends."""
    data = ready(root, num_workers=1, check="never")
    batches = iter(data.train_dataloader())
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    stranger = multiprocessing.get_context("fork").Process(target=os.kill, args=(worker.pid, signal.SIGTERM))
    stranger.start()
    stranger.join()
    os.kill(worker.pid, signal.SIGINT)
    assert len([first, *batches]) == 3
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
