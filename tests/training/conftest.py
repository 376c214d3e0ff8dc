"""A small run: two classes of noise with boxes, a narrow network, a trainer without ornaments."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import camify
from camify.data import Preprocessing, collate

SIZE = 32


class Blobs(Dataset):
    """Class 0 is a red square, class 1 a green one, somewhere on dark noise; its box is known."""

    def __init__(self, count: int, seed: int, boxes: bool = True):
        generator = torch.Generator().manual_seed(seed)
        self.samples = []
        for index in range(count):
            label = index % 2
            image = 0.2 * torch.rand(3, SIZE, SIZE, generator=generator)
            x, y = (int(v) for v in torch.randint(0, SIZE - 12, (2,), generator=generator))
            image[label, y : y + 12, x : x + 12] += 0.8
            sample = {"image": (image - 0.5) / 0.25, "label": label, "path": f"val/{label}/blob {index}.png"}
            if boxes:
                sample["boxes"] = torch.tensor([[x, y, x + 12.0, y + 12.0]])
            self.samples.append(sample)
        self.labels = [sample["label"] for sample in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class BlobData(pl.LightningDataModule):
    def __init__(self, boxes: bool = True):
        super().__init__()
        self.class_names = ["red", "green"]
        self.preprocessing = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.boxes = boxes

    def train_dataloader(self):
        return DataLoader(Blobs(48, 0, self.boxes), batch_size=8, shuffle=True, collate_fn=collate)

    def val_dataloader(self):
        return DataLoader(Blobs(20, 1, self.boxes), batch_size=8, collate_fn=collate)

    def test_dataloader(self):
        return self.val_dataloader()

    def predict_dataloader(self):
        return self.val_dataloader()


class SmallLegacy(nn.Module):
    """Convolutions with batch norm, max-pools, flatten, two linear layers."""

    def __init__(self, classes: int = 2):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(12 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def tuner(legacy, **options):
    names = ["red", "green"]
    options = {"class_names": names, "legacy_class_names": names, "input_size": SIZE, "head_channels": 8} | options
    options = {"optimizer": "sgd", "lr": 0.02, "dropout": 0.0} | options
    return camify.CAMFineTuner(legacy, **options)


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small lose more to threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data():
    return BlobData()


@pytest.fixture
def legacy():
    torch.manual_seed(3)
    return SmallLegacy()


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **options):
        options = {
            "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": tmp_path,
        } | options  # fmt: skip
        return pl.Trainer(callbacks=list(callbacks), **options)

    return make
