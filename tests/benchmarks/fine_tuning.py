"""What options of fine-tuning give and cost: ``python tests/benchmarks/fine_tuning.py WHAT``.

``options``: the demo's legacy network on shapes, a bare loop with Zhou's plain recipe beside camify's defaults and each
option alone. ``shortcut``: a watermark gives the class away in training only. ``cache``: frozen epochs with and without
cached features. ``throughput``: ``trainer.fit`` beside a bare loop, precision and memory format. Medians of the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import camify
from camify.data import ShapesDataModule, collate
from camify.maps import select, upsample
from camify.metrics.functional import mosaics

LEGACY = "camify/tiny_vgg@checkpoints/demo_legacy.safetensors"
COMMON = {"model": LEGACY, "head_channels": 128, "input_size": 96}
OPTIONS: dict[str, dict[str, Any]] = {
    "camify, defaults": {},
    "init=ridge": {"init": "ridge"},
    "init=ridge, head_lr_factor=1": {"init": "ridge", "head_lr_factor": 1.0},
    "init=recast": {"init": "recast", "head_channels": None},
    "freeze_epochs=0": {"freeze_epochs": 0},
    "one_cycle": {"schedule": "one_cycle"},
    "layer_decay=0.5": {"layer_decay": 0.5},
    "label_smoothing=0.1": {"label_smoothing": 0.1},
    "teacher=legacy": {"teacher": "legacy"},
    "hide_and_seek=0.5": {"hide_and_seek": 0.5},
    "cutmix=1": {"cutmix": 1.0},
    "adl_layers": {"adl_layers": ["cam_relu"]},
    "clamp_weights": {"clamp_weights": True},
    "pool=gmp": {"pool": "gmp"},
    "pool=lse": {"pool": "lse"},
    "pool=tap": {"pool": "tap"},
    "normalizer=max": {"normalizer": "max"},
    "normalizer=ivr": {"normalizer": "ivr"},
    "box_weight=1": {"box_weight": 1.0},
}


def quality(module: Any, loader: DataLoader[Any]) -> dict[str, float]:
    """Accuracy, box accuracy at IoU 0.5 and 0.7, share of evidence on the object, grid pointing; 0 to 1."""
    net = module.model.eval()
    boxes = {iou: camify.metrics.MaxBoxAccuracy(version=1, iou_thresholds=[iou]) for iou in (0.5, 0.7)}
    energy, grid, right, count = camify.metrics.EnergyPointingGame(), camify.metrics.GridPointingGame(), 0, 0
    images, labels = [], []
    with torch.no_grad():
        for batch in loader:
            logits, maps = module._logits_and_maps(batch["image"])
            raw = upsample(select(maps, batch["label"]), batch["image"].shape[-2:])
            for metric in boxes.values():
                metric.update(camify.normalizers.normalize_maps(raw, *module.normalizer), batch["boxes"])
            energy.update(raw, batch["mask"])
            right, count = right + int((logits.argmax(1) == batch["label"]).sum()), count + len(logits)
            images.append(batch["image"])
            labels.append(batch["label"])
        tiled, classes = mosaics(torch.cat(images), torch.cat(labels))
        for chunk, some in zip(tiled.split(16), classes.split(16), strict=True):
            maps = module._logits_and_maps(chunk)[1]
            cells = torch.arange(4).expand(len(chunk), 4)
            big = torch.stack([upsample(select(maps, some[:, i]), chunk.shape[-2:]) for i in range(4)], 1)
            grid.update(big.flatten(0, 1), cells.flatten())
    net.train()
    found = boxes[0.5].compute()
    return {
        "accuracy": right / count,
        "box .5": float(found["max_box_acc"]),
        "box .7": float(boxes[0.7].compute()["max_box_acc"]),
        "inside": first_share(energy),
        "grid": first_share(grid),
        "centre": float(found["centre_box_acc"]),
    }


def first_share(metric: Any) -> float:
    """The metric's own figure, not its baseline."""
    return next(float(v) for k, v in metric.compute().items() if k != "count" and "centre" not in k)


class Clock(pl.Callback):
    """Seconds of training, without the validation, when every epoch ends, and its accuracy."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.points.append((time.perf_counter() - self.start, float(trainer.callback_metrics["val/acc"])))


def make_trainer(epochs: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), **options,
    )  # fmt: skip


def tuned(data: pl.LightningDataModule, epochs: int, seed: int, **options: Any) -> tuple[Any, Clock]:
    """A fine-tuned module and its clock."""
    pl.seed_everything(seed, verbose=False)
    precision = options.pop("precision", "32-true")
    module, clock = camify.CAMFineTuner(class_names=data.class_names, **COMMON | options), Clock()
    make_trainer(epochs, clock, precision=precision).fit(module, data)
    return module, clock


def plain(data: ShapesDataModule, epochs: int, seed: int) -> tuple[Any, list[tuple[float, float]]]:
    """Zhou et al. 2016: random head, one learning rate, momentum, step decay; a bare loop."""
    pl.seed_everything(seed, verbose=False)
    module = camify.CAMFineTuner(class_names=data.class_names, **COMMON)
    net, start, points = module.model.train(), time.perf_counter(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 4, epochs // 2, 3 * epochs // 4])
    for _ in range(epochs):
        bare_epoch(net, data.train_dataloader(), optimizer)
        scheduler.step()
        points.append((time.perf_counter() - start, accuracy(net, data.val_dataloader())))
    return module, points


def bare_epoch(net: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
    for batch in loader:
        loss = F.cross_entropy(net(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, loader: DataLoader[Any]) -> float:
    net.eval()
    hits = [net(batch["image"]).argmax(1) == batch["label"] for batch in loader]
    net.train()
    return float(torch.cat(hits).float().mean())


def table(rows: dict[str, list[dict[str, float]]]) -> None:
    """Medians over the seeds, as Markdown."""
    names = list(next(iter(rows.values()))[0])
    print(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for name, runs in rows.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(run[key] for run in runs):.3f}' for key in names)} |")


def options(seeds: int, count: int, epochs: int) -> None:
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        data = ShapesDataModule(train_count=count, val_count=240, seed=seed, augment="none")
        data.setup("fit")
        module, points = plain(data, epochs, seed)
        target, cost = points[-1][1], points[-1][0]
        rows.setdefault("plain recipe, bare loop", []).append(
            quality(module, data.val_dataloader()) | {"time": 1.0, "to plain": 1.0}
        )
        for name, given in OPTIONS.items():
            module, clock = tuned(data, epochs, seed, **given)
            reached = next((seconds for seconds, found in clock.points if found >= target), float("nan"))
            times = {"time": clock.points[-1][0] / cost, "to plain": reached / cost}
            rows.setdefault(name, []).append(quality(module, data.val_dataloader()) | times)
            print(name, {key: round(value, 3) for key, value in rows[name][-1].items()}, flush=True)
    table(rows)


class Marked(ShapesDataModule):
    """In training a small square in a corner gives the class away by its grey; few images have boxes."""

    share = 0.05

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        train = self.splits["train"]
        if not hasattr(train, "marked"):
            train.marked = True
            for index, label in enumerate(train.labels):
                train.images[index, :, :12, :12] = 40 * label + 20

    def train_dataloader(self) -> DataLoader[Any]:
        kept = round(self.share * self.counts["train"])

        def few(samples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(samples)
            known = torch.tensor([int(s["path"][-5:]) < kept for s in samples])
            batch["mask"] &= known[:, None, None]
            return batch

        return DataLoader(self.splits["train"], batch_size=self.batch_size, shuffle=True, collate_fn=few)


class MarkedShare(pl.Callback):
    """Share of the evidence of marked training images that lies on the mark."""

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data = trainer.datamodule
        images = data.preprocessing.evaluation()
        samples = [images({"image": image})["image"] for image in data.splits["train"].images[:96]]
        labels = torch.tensor(data.splits["train"].labels[:96])
        pl_module.model.eval()
        maps = upsample(
            select(pl_module.model.forward_with_maps(torch.stack(samples) / 1.0)[1], labels), (96, 96)
        ).clamp(min=0)
        pl_module.model.train()
        self.share = float((maps[:, :12, :12].sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-9)).mean())


def shortcut(seeds: int, count: int, epochs: int) -> None:
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for name, mark, given in (
            ("clean training data", False, {}),
            ("watermarked", True, {}),
            ("watermarked, 5 % boxes, box_weight=1", True, {"box_weight": 1.0}),
            ("watermarked, 5 % boxes, box_weight=5", True, {"box_weight": 5.0}),
        ):
            data = (Marked if mark else ShapesDataModule)(train_count=count, val_count=240, seed=seed, augment="none")
            pl.seed_everything(seed, verbose=False)
            start = {
                "model": "camify/tiny_vgg",
                "optimizer": "adamw",
                "lr": 1e-3,
                "head_lr_factor": 1.0,
                "freeze_epochs": 0,
            }
            module, watch = camify.CAMFineTuner(class_names=data.class_names, **COMMON | start | given), MarkedShare()
            make_trainer(epochs, watch).fit(module, data)
            found = quality(module, data.val_dataloader()) | {"on the mark": watch.share if mark else float("nan")}
            rows.setdefault(name, []).append(found)
            print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    table(rows)


def seconds_per_epoch(data: pl.LightningDataModule, epochs: int, **given: Any) -> float:
    """Median of all epochs but the first."""
    clock = tuned(data, epochs, 0, **given)[1]
    ends = [seconds for seconds, _ in clock.points]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


class Unvalidated(ShapesDataModule):
    """Nearly no validation, so that epochs are training."""

    def __init__(self, count: int) -> None:
        super().__init__(train_count=count, val_count=6, augment="none")


def cache(seeds: int, count: int, epochs: int) -> None:
    data = Unvalidated(count)
    for head in ("direct", "gap"):
        given = {"head": head, "freeze_epochs": epochs}
        ratios = []
        for _ in range(seeds):
            without = seconds_per_epoch(data, epochs, **given)
            ratios.append(
                [without / seconds_per_epoch(data, epochs, feature_cache=w, **given) for w in ("memory", "disk")]
            )
        medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
        print(f"head={head}: an epoch without takes {medians[0]:.1f} times one with memory, {medians[1]:.1f} with disk")


def throughput(seeds: int, count: int, epochs: int) -> None:
    data = Unvalidated(count)
    data.setup("fit")
    ratios: dict[str, list[float]] = {}
    for _ in range(seeds):
        module = camify.CAMFineTuner(class_names=data.class_names, **COMMON)
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
        spent = []
        for _ in range(epochs):
            start = time.perf_counter()
            bare_epoch(module.model, data.train_dataloader(), optimizer)
            spent.append(time.perf_counter() - start)
        bare = statistics.median(spent[1:])
        for name, given in (
            ("trainer.fit", {}),
            ("channels_last", {"channels_last": True}),
            ("bf16-mixed", {"precision": "bf16-mixed"}),
            ("bf16-mixed, channels_last", {"precision": "bf16-mixed", "channels_last": True}),
        ):
            ratios.setdefault(name, []).append(bare / seconds_per_epoch(data, epochs, freeze_epochs=0, **given))
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} of the bare loop's images per second")


WHAT: dict[str, Callable[[int, int, int], None]] = {
    "options": options, "shortcut": shortcut, "cache": cache, "throughput": throughput,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=600, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    WHAT[given.what](given.seeds, given.count, given.epochs)
