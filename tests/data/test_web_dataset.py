"""Shards of tar files, read as streams: every sample once, however the work is split; hostile ones are refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import camify
from camify.data import WebDatasetDataModule, collate
from camify.data import web_dataset as module
from camify.data.loading import TrainingLoader
from camify.data.web_dataset import ShardImages, SizedShardImages, shard_files
from camify.errors import ConfigError, DataError
from camify.preprocessing import Preprocessing

pytest.importorskip("webdataset")
NAMES = ["cat", "dog"]
OPTIONS = {"image_size": 16, "batch_size": 2, "num_workers": 0, "class_names": NAMES}


def png(seed, size=(20, 40, 3)):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def write(path, samples):
    """A tar file of samples: files by their ends."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for suffix, content in files.items():
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Four training shards of five samples, with boxes; two validation shards of three."""
    for split, count, size in (("train", 4, 5), ("val", 2, 3)):
        for shard in range(count):
            samples = {
                f"{shard}/{number}": {
                    "png": png((shard, number)),
                    "json": {
                        "label": NAMES[number % 2],
                        "boxes": [[1, 2, 10 + number, 12]],
                        "box_labels": [NAMES[number % 2]],
                    },
                }
                for number in range(size)
            }
            write(tmp_path / f"{split}-{shard:03d}.tar", samples)
    return tmp_path


def data_of(shards, **options):
    return WebDatasetDataModule(
        **({"train": f"{shards}/train-{{000..003}}.tar", "val": f"{shards}/val-*.tar"} | OPTIONS | options)
    )


def keys(batches):
    return [path.rsplit(": ", 1)[1] for batch in batches for path in batch["path"]]


def test_every_sample_comes_once_with_label_and_boxes(shards):
    data = data_of(shards, augment="none")
    data.setup()
    training = list(data.train_dataloader())
    assert sorted(keys(training)) == [f"{shard}/{number}" for shard in range(4) for number in range(5)]
    batch = next(iter(data.val_dataloader()))
    assert keys([batch]) == ["0/0", "0/1"]
    assert batch["label"].tolist() == [0, 1]
    assert batch["boxes"][1][0].tolist() == pytest.approx([1 * 16 / 40, 2 * 16 / 20, 11 * 16 / 40, 12 * 16 / 20])
    wanted = data.transform_of("val")(torch.from_numpy(np.array(Image.open(io.BytesIO(png((0, 1)))))).permute(2, 0, 1))
    assert torch.allclose(batch["image"][1], wanted, atol=1e-6)
    assert any("4 shards, read as a stream" in note for note in data.notes)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_samples(shards, workers):
    files, transform = shard_files(f"{shards}/train-*.tar"), Preprocessing(16).evaluation()
    seen = Counter()
    for rank in range(2):
        images = ShardImages(files, NAMES, transform, rank=rank, world_size=2)
        seen.update(keys(DataLoader(images, batch_size=2, num_workers=workers, collate_fn=collate)))
    assert set(seen.values()) == {1}
    assert len(seen) == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_settled_length_is_the_same_for_the_same_seed(shards, workers):
    files = shard_files(f"{shards}/train-*.tar")
    images = SizedShardImages(
        files, NAMES, Preprocessing(16).training("crop_flip"), shuffled=4, batches=7, batch_size=3
    )
    loader = TrainingLoader(
        images, batch_size=3, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate
    )
    assert len(loader) == 7
    torch.manual_seed(1)
    first, second = list(loader), list(loader)
    torch.manual_seed(1)
    again = list(loader)
    assert [len(batch["image"]) for batch in first] == [3] * 7
    assert keys(first) == keys(again) != keys(second)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))


def test_numbers_and_several_labels(tmp_path):
    samples = {"a": {"png": png(0), "cls": b"1\n"}, "b": {"jpg": png(1), "cls": b"cat"}}
    write(tmp_path / "one.tar", samples)
    data = data_of(tmp_path, train=f"{tmp_path}/one.tar", val=f"{tmp_path}/one.tar")
    data.setup()
    assert [int(sample["label"]) for sample in data.splits["val"]] == [1, 0]
    assert data.task is None
    assert not data.splits["val"].has_boxes
    write(
        tmp_path / "two.tar",
        {"a": {"png": png(0), "json": {"labels": ["dog", "cat"]}}, "b": {"png": png(1), "json": {"labels": []}}},
    )
    several = data_of(tmp_path, train=f"{tmp_path}/two.tar", val=f"{tmp_path}/two.tar")
    assert several.task == "multilabel"
    several.setup()
    assert next(iter(several.val_dataloader()))["label"].tolist() == [[1, 1], [0, 0]]


BAD = [
    ({"png": png(0)}, "a: no label"),
    ({"cls": b"1"}, "a: no image. Its files: cls"),
    ({"png": b"no image", "cls": b"1"}, "a.png: cannot be read as an image"),
    ({"png": png(0), "cls": b"2"}, "a: label '2' is none of the 2 classes (cat, dog)"),
    ({"png": png(0), "cls": b"-1"}, "a: label '-1' is none"),
    ({"png": png(0), "cls": b"\xff"}, "a.cls: cannot be read as UTF-8"),
    ({"png": png(0), "json": b"{"}, "a.json: cannot be read"),
    ({"png": png(0), "json": b"[" * 100_000}, "a.json: cannot be read"),
    ({"png": png(0), "json": [1]}, "a.json: holds a list"),
    ({"png": png(0), "json": {"label": 0, "boxes": [[1, 2, 3]]}}, "a.json: boxes must be lists of four numbers"),
    ({"png": png(0), "json": {"label": 0, "boxes": [[1, 2, 90, 9]]}}, "leaves the image (40 x 20 px)"),
    (
        {"png": png(0), "json": {"label": 0, "boxes": [[1, 2, 9, 9]], "box_labels": []}},
        "box_labels must be a list of 1",
    ),
]


@pytest.mark.parametrize(("files", "said"), BAD, ids=[said[:30] for _, said in BAD])
def test_samples_that_cannot_be_right_are_named(tmp_path, files, said):
    path = write(tmp_path / "bad.tar", {"a": files})
    with pytest.raises(DataError) as caught:
        data_of(tmp_path, train=str(path), val=str(path))
    assert f"{path}: " in str(caught.value)
    assert said in str(caught.value)


def test_shards_that_cannot_be_read_are_named(shards, monkeypatch):
    cut = shards / "cut.tar"
    cut.write_bytes((shards / "train-000.tar").read_bytes()[:4000])
    with pytest.raises(DataError, match=r"cut\.tar: cannot be read as a tar file after"):
        list(module.samples_of(cut))
    (shards / "text.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match=r"text\.tar: cannot be read as a tar file after its beginning"):
        list(module.samples_of(shards / "text.tar"))
    monkeypatch.setattr(module, "_LARGEST", 100)
    with pytest.raises(DataError, match="bytes; at most 100 are read"):
        list(module.samples_of(shards / "train-000.tar"))


@pytest.mark.parametrize("name", ["pipe:touch started", "http://x/a.tar", "s3://x/a.tar"])
def test_addresses_and_commands_are_no_files(tmp_path, monkeypatch, name):
    """webdataset itself would start the program."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError)):
        shard_files(name)
    assert not (tmp_path / "started").exists()
    with pytest.raises(DataError, match=r"none-000\.tar: no such file"):
        shard_files(str(tmp_path / "none-{000..003}.tar"))


def test_links_in_a_shard_lead_nowhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(0))
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
        info = tarfile.TarInfo("a.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"0"))
    with pytest.raises(DataError, match="a: no image"):
        data_of(tmp_path, train=str(tmp_path / "link.tar"), val=str(tmp_path / "link.tar"))


def test_several_processes_need_the_length_of_an_epoch(shards):
    class Trainer:
        global_rank, world_size, is_global_zero, lightning_module = 0, 2, True, None

    data = data_of(shards)
    data.trainer = Trainer
    with pytest.raises(ConfigError, match="samples_per_epoch is needed with several processes"):
        data.setup()
    sized = data_of(shards, samples_per_epoch=12)
    sized.trainer = Trainer
    sized.setup()
    assert len(sized.splits["train"]) == 6
    Trainer.world_size = 3
    with pytest.raises(ConfigError, match="val: 2 shards for 3 processes"):
        sized.setup()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:Your `IterableD.*")
@pytest.mark.parametrize("samples", [None, 20])
def test_a_run_on_streams_watches_and_chooses_on_the_first_samples(shards, tmp_path, samples):
    """Also where it is settled how many samples an epoch has, so that the stream has a length."""
    data = data_of(shards, image_size=32, samples_per_epoch=samples)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    tuner = camify.CAMFineTuner(
        network, class_names=data.class_names, head="direct", input_size=32, init="ridge",
        cam_metrics=["max_box_acc", "drift"],
    )  # fmt: skip
    overlays = camify.CAMOverlayLogger(num_images=3)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path / "run", enable_model_summary=False, callbacks=[overlays],
    )  # fmt: skip
    trainer.fit(tuner, data)
    assert trainer.global_step == 20
    assert len(list((tmp_path / "run").rglob("*.png"))) >= 3
    assert {"val/acc", "val/max_box_acc"} <= set(trainer.callback_metrics)
