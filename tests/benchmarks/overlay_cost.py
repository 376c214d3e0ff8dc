"""Share of an epoch that pictures, record and page, and CAM metrics take, timed inside one run.

``python tests/benchmarks/overlay_cost.py``: four epochs of the demo. ``--photos [COUNT]``: an epoch of MobileNetV2 at
224 px, with as many validation as training images (noise with boxes, in memory).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.models import mobilenet_v2

import camify
from camify.data import collate
from camify.training import RunRecord


class Stopwatch(pl.Callback):
    """Wall time of the epochs, the end of the last one included."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.whole = time.perf_counter() - self.start


class Noise(Dataset):
    """Images of 224 px in ten classes, each with a box."""

    def __init__(self, count: int) -> None:
        self.labels = [index % 10 for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        image = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(index % 64))
        return {"image": image, "label": self.labels[index], "boxes": torch.tensor([[40.0, 60, 160, 200]])}


def timed(owner: object, *hooks: str) -> list[float]:
    """Durations of an object's methods, filled in as they run."""
    durations: list[float] = []

    def watched(inner: Callable) -> Callable:
        def outer(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            found = inner(*arguments, **options)
            durations.append(time.perf_counter() - start)
            return found

        return outer

    for hook in hooks:
        setattr(owner, hook, watched(getattr(owner, hook)))
    return durations


def demo() -> tuple[camify.CAMFineTuner, object, dict]:
    """The demo's network, data and number of epochs."""
    root, data = Path(__file__).parents[2], camify.data.ShapesDataModule()
    module = camify.CAMFineTuner(
        f"camify/tiny_vgg@{root / 'checkpoints' / 'demo_legacy.safetensors'}",
        class_names=data.class_names, head_channels=128, input_size=96, lr=0.005, freeze_epochs=1,
    )  # fmt: skip
    return module, {"datamodule": data}, {"max_epochs": 4}


def photos(count: int) -> tuple[camify.CAMFineTuner, object, dict]:
    """MobileNetV2 on noise."""
    module = camify.CAMFineTuner(mobilenet_v2(num_classes=10), head="direct", freeze_epochs=0)
    loaders = [DataLoader(Noise(count), 32, collate_fn=collate) for _ in range(2)]
    return module, {"train_dataloaders": loaders[0], "val_dataloaders": loaders[1]}, {"max_epochs": 1}


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, nargs="?", const=1000, default=None)
    given = parser.parse_args()
    module, data, options = demo() if given.photos is None else photos(given.photos)
    overlays, record, watch = camify.CAMOverlayLogger(), RunRecord(quiet=True), Stopwatch()
    parts = {
        "looking and drawing": timed(
            overlays, "on_validation_batch_start", "on_validation_batch_end", "on_validation_end"
        ),
        "results and page": timed(record, "on_train_epoch_end"),
        "CAM metrics": timed(module.quality, "update", "compute", "grid_pointing"),
    }
    forwards = timed(module, "_logits_and_maps")
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            logger=False, enable_checkpointing=False, default_root_dir=folder, enable_progress_bar=False,
            num_sanity_val_steps=0, callbacks=[watch, overlays, record], **options,
        )  # fmt: skip
        trainer.fit(module, **data)
    for name, durations in parts.items():
        print(f"{name}: {sum(durations):.2f} s, {100 * sum(durations) / watch.whole:.1f} % of the epochs")
    print(f"together {100 * sum(map(sum, parts.values())) / watch.whole:.1f} % of {watch.whole:.1f} s")
    metrics = sum(parts["CAM metrics"])
    print(f"CAM metrics: {100 * metrics / sum(forwards):.1f} % of the validation's forwards ({sum(forwards):.1f} s)")


if __name__ == "__main__":
    main()
