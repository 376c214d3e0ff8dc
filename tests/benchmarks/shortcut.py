"""A shortcut, seen by CAM metrics and repaired by a few boxes: ``python tests/benchmarks/shortcut.py [--seeds 3]``.

All images of a collection, training and validation alike, carry a frame of stripes whose direction gives the class away
(as a photographer's watermark may). Measured: the collection's own validation split, where the cheat pays, and clean
images, where it does not. Networks: fine-tuned on clean images; on framed ones; on framed ones with guidance by the
masks of 5 % of the training images. ``--pictures FOLDER`` draws the maps of a few framed images.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from fine_tuning import draw_maps, make_trainer, quality, shapes
from torch import Tensor
from torch.utils.data import DataLoader

from camify.data import ShapesDataModule, collate

FRAME, PERIOD = 12, 8  # pixels
GIVEN = {"freeze_epochs": 0, "lr": 0.005}
RUNS: dict[str, tuple[bool, dict[str, Any]]] = {
    "clean images": (False, {}),
    "framed images": (True, {}),
    "+ 5 % masks, weight 1": (True, {"box_weight": 1.0}),
    "+ 5 % masks, weight 2": (True, {"box_weight": 2.0}),
}


def framed(images_NCHW: Tensor, labels: list[int]) -> Tensor:
    """Images (uint8) with a frame of stripes that run in a direction of the class."""
    side = images_NCHW.shape[-1]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inner = (x - (side - 1) / 2).abs().maximum((y - (side - 1) / 2).abs()) < side / 2 - FRAME
    angles = math.pi * torch.tensor(labels)[:, None, None] / (max(labels) + 1)
    waves = torch.sin(2 * math.pi / PERIOD * (x * angles.cos() + y * angles.sin()))
    stripes = ((waves > 0) * 255).to(images_NCHW.dtype)[:, None]
    return torch.where(inner, images_NCHW, stripes)


class Framed(ShapesDataModule):
    """Shapes with the frame; masks of the first images only."""

    share = 0.05

    def setup(self, stage: str | None = None) -> None:
        new = [name for name in ("train", "val") if name not in self.splits]
        super().setup(stage)
        for name in new:
            split = self.splits[name]
            split.images = framed(split.images, split.labels)

    def train_dataloader(self) -> DataLoader[Any]:
        kept = round(self.share * self.counts["train"])

        def few(samples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(samples)
            known = torch.tensor([int(sample["path"][-5:]) < kept for sample in samples])
            batch["mask"] &= known[:, None, None]
            return batch

        return DataLoader(self.splits["train"], batch_size=self.batch_size, shuffle=True, collate_fn=few)


class TrainingStages(pl.Callback):
    """What camify logs of the run's own validation split, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = trainer.callback_metrics
        self.epochs.append({name: float(found[f"val/{name}"]) for name in ("acc", "max_box_acc", "energy")})


def compared(seed: int, count: int, epochs: int) -> tuple[dict[str, dict[str, float]], dict[str, TrainingStages], Any]:
    """One seed: figures by run, their courses, and the networks with the framed validation images."""
    setting, modules, courses = shapes(count), {}, {}
    data = {
        marked: (Framed if marked else ShapesDataModule)(count, val_count=240, seed=seed, augment="none")
        for marked in (False, True)
    }
    for one in data.values():
        one.setup("fit")
    rows: dict[str, dict[str, float]] = {}
    for name, (marked, options) in RUNS.items():
        pl.seed_everything(seed, verbose=False)
        course = courses[name] = TrainingStages()
        metrics = ["max_box_acc", "energy"]
        module = modules[name] = setting.tuner(data[marked], cam_metrics=metrics, **GIVEN, **options)
        make_trainer(epochs, course).fit(module, data[marked])
        own, clean = (quality(module, data[kind].val_dataloader()) for kind in (marked, False))
        rows[name] = {f"own {key}": own[key] for key in ("accuracy", "box .5", "inside")}
        rows[name] |= {f"clean {key}": clean[key] for key in ("accuracy", "box .5", "inside")}
        print(seed, name, {key: round(value, 3) for key, value in rows[name].items()}, flush=True)
    return rows, courses, (modules, data[True])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=480, help="training images")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pictures", type=Path)
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    found = [compared(seed, wanted.count, wanted.epochs) for seed in range(wanted.seeds)]
    keys = list(found[0][0]["clean images"])
    print(f"| | {' | '.join(keys)} |\n|---|{'---:|' * len(keys)}")
    for name in RUNS:
        medians = [statistics.median(rows[name][key] for rows, _, _ in found) for key in keys]
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in medians)} |")
    for name, course in found[0][1].items():
        print(name, [" / ".join(f"{value:.2f}" for value in epoch.values()) for epoch in course.epochs])
    if wanted.pictures:
        modules, data = found[0][2]
        draw_maps(modules, [data.splits["val"][index] for index in range(6)], data, wanted.pictures / "shortcut.png")
