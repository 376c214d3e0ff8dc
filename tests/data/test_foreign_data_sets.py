"""Data sets of torchvision and Hugging Face: the same batches and class order as from folders, and refusals by name."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from camify.data import HuggingFaceDataModule, ImageFolderDataModule, TorchvisionDataModule, image_checks
from camify.errors import ConfigError, DataError

OPTIONS = {"image_size": 16, "batch_size": 4, "num_workers": 0, "augment": "none"}
NAMES = ("cat", "dog")


def pixels(seed, size=(20, 40, 3)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def grow(root, splits=("train", "val")):
    for split in splits:
        for label, name in enumerate(NAMES):
            for number in range(3):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels((label, number, len(split)))).save(path)
    return root


def ready(data):
    data.setup()
    return data


def images_of(data, split):
    return torch.stack([sample["image"] for sample in data.splits[split]])


# --- torchvision ------------------------------------------------------------------------------------------


def idx(array):
    """The format of MNIST: http://yann.lecun.com/exdb/mnist, magic number, sizes, bytes."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def test_arrays_of_torchvision(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    digits = {"train": np.arange(20) % 10, "t10k": np.arange(10)}
    for name, labels in digits.items():
        for kind, array in (
            ("images-idx3", pixels(1, (len(labels), 28, 28))),
            ("labels-idx1", labels.astype(np.uint8)),
        ):
            (folder / f"{name}-{kind}-ubyte").write_bytes(idx(array))
            with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(idx(array))
    data = ready(TorchvisionDataModule("MNIST", str(tmp_path), val_share=0.5, **OPTIONS))
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [10, 10, 10]
    assert data.class_names[7] == "7 - seven"
    assert data.splits["test"].labels == list(range(10))
    wanted = data.transform_of("val")(torch.from_numpy(pixels(1, (10, 28, 28))[4]).expand(3, 28, 28))
    assert torch.allclose(data.splits["test"][4]["image"], wanted, atol=1e-5)


def test_files_of_torchvision(tmp_path):
    """EuroSAT is a folder of classes; its images are read as those of an image folder."""
    root = grow(tmp_path / "folders")
    (tmp_path / "eurosat").mkdir()
    (root / "train").rename(tmp_path / "eurosat" / "2750")
    data = ready(TorchvisionDataModule("EuroSAT", str(tmp_path), **OPTIONS))
    assert data.class_names == list(NAMES)
    assert len(data.splits["train"]) == 4
    assert any("2 of 6 training images were set aside" in note for note in data.notes)
    path = tmp_path / "eurosat" / "2750" / "dog" / "1.png"
    (place,) = [n for split in ("train", "val") for n, one in enumerate(data.splits[split].paths) if one == str(path)]
    split = "train" if str(path) in data.splits["train"].paths else "val"
    wanted = data.transform_of("val")(torch.from_numpy(pixels((1, 1, 5))).permute(2, 0, 1))
    assert torch.allclose(data.splits[split][place]["image"], wanted, atol=1e-5)


def test_what_torchvision_cannot_give_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="pickles, which can run code"):
        TorchvisionDataModule("CIFAR10", str(tmp_path))
    with pytest.raises(ConfigError, match=r"is unknown\. Choose one of Country211"):
        TorchvisionDataModule("Cats", str(tmp_path))
    with pytest.raises(DataError, match=r"torchvision\.datasets\.Flowers102\('.*', split='train', download=True\)"):
        TorchvisionDataModule("Flowers102", str(tmp_path))
    with pytest.raises(ConfigError, match="takes no such option"):
        TorchvisionDataModule("EuroSAT", str(tmp_path), options={"download": True})


# --- Hugging Face -----------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


def rows(datasets, **columns):
    count = len(next(iter(columns.values())))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["dog", "cat"]),
            "labels": datasets.List(datasets.ClassLabel(names=["dog", "cat"])),
            "objects": {"bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                        "category": datasets.List(datasets.ClassLabel(names=["dog", "cat"]))},
        }
    )  # fmt: skip
    images = [Image.fromarray(pixels(number)) for number in range(count)]
    kept = datasets.Features({name: features[name] for name in ("image", *columns)})
    return datasets.Dataset.from_dict({"image": images, **columns}, features=kept)


def test_a_folder_gives_what_folders_give(datasets, tmp_path):
    root = grow(tmp_path / "set", ("train", "validation"))
    data = ready(HuggingFaceDataModule(str(root), **OPTIONS))
    (root / "validation").rename(root / "val")
    folder = ready(ImageFolderDataModule(str(root), **OPTIONS))
    assert data.class_names == folder.class_names
    for split in ("train", "val"):
        assert data.splits[split].labels == folder.splits[split].labels
    assert torch.equal(images_of(data, "train"), images_of(folder, "train"))


def test_names_order_and_boxes_are_those_of_the_data(datasets, tmp_path):
    objects = [{"bbox": [[1, 2, 10, 5], [0, 0, 3, 3]], "category": [0, 1]}, {"bbox": [], "category": []}] * 2
    saved = datasets.DatasetDict(
        train=rows(datasets, label=[0, 1, 0, 1], objects=objects), test=rows(datasets, label=[-1, -1])
    )
    saved.save_to_disk(tmp_path / "saved")
    data = ready(HuggingFaceDataModule(str(tmp_path / "saved"), val_share=0.5, **OPTIONS))
    assert data.class_names == ["dog", "cat"]
    assert set(data.splits) == {"train", "val"}
    assert any("split test has no labels and is left out" in note for note in data.notes)
    boxes = [data.splits[split].boxes[n].tolist() for split in ("train", "val") for n in range(2)]
    assert sorted(boxes) == [[], [], [[1, 2, 11, 7]], [[1, 2, 11, 7]]], "of the image's class, x and y of the end"
    bad = rows(datasets, label=[0], objects=[{"bbox": [[30, 2, 20, 5]], "category": [0]}])
    datasets.DatasetDict(train=bad, validation=rows(datasets, label=[0])).save_to_disk(tmp_path / "bad")
    with pytest.raises(DataError, match="leaves the image"):
        ready(HuggingFaceDataModule(str(tmp_path / "bad"), **OPTIONS))


def test_rows_are_decoded_once_while_they_are_the_same(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("CAMIFY_CACHE", str(tmp_path / "checks"))
    seen, look = [], image_checks._checked
    monkeypatch.setattr(image_checks, "_checked", lambda file, *given: (seen.append(str(file)), look(file, *given))[1])
    rows(datasets, label=[0, 1, 0, 1]).to_parquet(tmp_path / "rows.parquet")
    for _ in range(2):
        ready(HuggingFaceDataModule(str(tmp_path / "rows.parquet"), **OPTIONS))
    assert len(seen) == 4
    rows(datasets, label=[1, 0, 1, 1]).to_parquet(tmp_path / "rows.parquet")
    ready(HuggingFaceDataModule(str(tmp_path / "rows.parquet"), **OPTIONS))
    assert len(seen) == 8, "they may be others now"


def test_several_labels_and_parquet(datasets, tmp_path):
    rows(datasets, labels=[[0], [0, 1], [], [1]]).to_parquet(tmp_path / "rows.parquet")
    data = ready(HuggingFaceDataModule(str(tmp_path / "rows.parquet"), val_share=0.25, **OPTIONS))
    assert data.task == "multilabel"
    labels = torch.cat([data.splits[split].labels for split in ("train", "val")])
    assert sorted(labels.tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_what_cannot_be_read_is_refused(datasets, tmp_path):
    with pytest.raises(DataError, match="cannot be read as a data set of Hugging Face"):
        HuggingFaceDataModule(str(tmp_path / "none"))
    rows(datasets, label=[0, 1]).save_to_disk(tmp_path / "saved")
    for option, value in (("image_column", "x"), ("label_column", "x"), ("val_split", "x")):
        with pytest.raises(ConfigError, match=f"{option}='x'"):
            HuggingFaceDataModule(str(tmp_path / "saved"), **{option: value})
    with pytest.raises(ConfigError, match="boxes and masks name files"):
        HuggingFaceDataModule(str(tmp_path / "saved"), boxes="coco.json")
    with pytest.raises(DataError, match="label 'cat' is none of the classes"):
        HuggingFaceDataModule(str(tmp_path / "saved"), class_names=["dog", "emu"])
    broken = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": [{"bytes": b"no image", "path": "a.png"}] * 2, "label": ["x", "y"]}
    datasets.Dataset.from_dict(columns, features=broken).save_to_disk(tmp_path / "broken")
    with pytest.raises(DataError, match=r"2 images cannot be read[\s\S]*broken train row 0 \(a.png\)"):
        ready(HuggingFaceDataModule(str(tmp_path / "broken"), **OPTIONS))
