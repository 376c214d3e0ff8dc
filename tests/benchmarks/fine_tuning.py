"""What options of fine-tuning give and cost: ``python tests/benchmarks/fine_tuning.py WHAT``.

``options``: a bare loop with Zhou's plain recipe beside camify's defaults and each option alone, on shapes with the
demo's legacy network, or with ``--photos FOLDER --network SOURCE`` on photographs of 112 px with a pretrained one.
``fits``: heads fitted in closed form, without a step. ``cache``: frozen epochs with and without cached features.
``throughput``: ``trainer.fit`` beside a bare loop, precision and memory format. Medians of the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import camify
from camify.data import ImageFolderDataModule, ShapesDataModule
from camify.drawing.grid import POSITIVE, Cell, Row, grid_figure
from camify.drawing.primitives import PANEL
from camify.maps import select, upsample
from camify.metrics.functional import mosaics
from camify.normalizers import Normalizer
from camify.training import MetricsOptions
from camify.training.cam_metrics import logits_and_maps

LEGACY = "camify/tiny_vgg@demo"
OPTIONS: dict[str, dict[str, Any]] = {
    "camify, defaults": {},
    "init=ridge": {"init": "ridge"},
    "init=recast": {"init": "recast", "head_channels": None},
    "freeze_epochs=0": {"freeze_epochs": 0},
    "one_cycle": {"schedule": "one_cycle"},
    "layer_decay=0.5": {"layer_decay": 0.5},
    "label_smoothing=0.1": {"label_smoothing": 0.1},
    "teacher=legacy": {"teacher": "legacy"},
    "hide_and_seek=0.5": {"hide_and_seek": 0.5},
    "cutmix=1": {"cutmix": 1.0},
    "adl_layers": {"adl_layers": True},  # the last of the features
    "pool=gmp": {"pool": "gmp"},
    "pool=lse": {"pool": "lse"},
    "pool=tap": {"pool": "tap"},
    "box_weight=1": {"box_weight": 1.0},
    "align_weight=0.5": {"align_weight": 0.5},
    "equivariance_weight=1": {"equivariance_weight": 1.0},
}
ON_PHOTOS = {"init=recast", "teacher=legacy"}  # need the legacy's classes: not there
AFTERWARDS = {  # change how maps are read, not the training
    "clamp_weights": {"clamp_weights": True},
    "normalizer=max": {"normalizer": "max"},
    "normalizer=ivr": {"normalizer": "ivr"},
}


@dataclass(frozen=True)
class Setting:
    """A legacy network, and data for it."""

    model: str
    given: dict[str, Any]
    make_data: Callable[[int], pl.LightningDataModule]
    rows: dict[str, dict[str, Any]]

    def tuner(self, data: Any, **options: Any) -> camify.CAMFineTuner:
        """The network, to be tuned with these options."""
        wanted = {"model": self.model, "class_names": data.class_names, **self.given, **options}
        if wanted.get("adl_layers"):
            plain = self.tuner(data, **{**options, "adl_layers": None}).model
            leaves = [name for name, layer in plain.features.named_modules() if not list(layer.children())]
            wanted["adl_layers"] = [name for name in leaves if name not in plain.head_layers][-1:]
        return camify.CAMFineTuner(**wanted)


def shapes(count: int) -> Setting:
    return Setting(
        LEGACY, {"head_channels": 128, "input_size": 96},
        lambda seed: ShapesDataModule(train_count=count, val_count=240, seed=seed, augment="none"), OPTIONS,
    )  # fmt: skip


def photographs(folder: str, network: str) -> Setting:
    rows = {name: given for name, given in OPTIONS.items() if name not in ON_PHOTOS}
    side = 112

    def make_data(seed: int) -> pl.LightningDataModule:
        return ImageFolderDataModule(folder, image_size=side, num_workers=0, augment="flip", check_images=False)

    return Setting(network, {"head": "direct", "input_size": side}, make_data, rows)


def quality(module: Any, loader: DataLoader[Any]) -> dict[str, float]:
    """Accuracy, box accuracy at IoU 0.5 and 0.7, share of evidence on the object, grid pointing; 0 to 1."""
    net = module.model.eval()
    maps_of = partial(logits_and_maps, net, clamp_weights=module.options.metrics.clamp_weights)
    boxes = {iou: camify.metrics.MaxBoxAccuracy(version=1, iou_thresholds=[iou]) for iou in (0.5, 0.7)}
    energy, grid, right, count = camify.metrics.EnergyPointingGame(), camify.metrics.GridPointingGame(), 0, 0
    images, labels = [], []
    with torch.no_grad():
        for batch in loader:
            logits, maps = maps_of(batch["image"])
            raw = upsample(select(maps, batch["label"]), batch["image"].shape[-2:])
            for metric in boxes.values():
                metric.update(camify.normalizers.normalize_maps(raw, *module.normalizer), batch["boxes"])
            energy.update(raw, batch["mask"] if "mask" in batch else batch["boxes"])
            right, count = right + int((logits.argmax(1) == batch["label"]).sum()), count + len(logits)
            images.append(batch["image"])
            labels.append(batch["label"])
        tiled, classes = mosaics(torch.cat(images), torch.cat(labels))
        for chunk, some in zip(tiled.split(16), classes.split(16), strict=True):
            maps = maps_of(chunk)[1]
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
        "center": float(found["center_box_acc"]),
    }


def first_share(metric: Any) -> float:
    """The metric's own figure, not its baseline."""
    return next(float(v) for k, v in metric.compute().items() if k != "count" and "center" not in k)


class Clock(pl.Callback):
    """Seconds of training until every epoch ends, and its accuracy."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics.get("val/acc", float("nan")))
        self.points.append((time.perf_counter() - self.start, accuracy))


@torch.no_grad()
def draw_maps(modules: dict[str, Any], samples: list[dict[str, Any]], data: Any, file: Path) -> None:
    """Maps of the true class of some samples, one row each, by every network."""
    rows = []
    for sample in samples:
        label, cells = int(sample["label"]), []
        for module in modules.values():
            _, found = module.model.eval().forward_with_maps(sample["image"][None])
            cells.append(Cell.of_map(found[0, label]))
        picture = data.preprocessing.restore(sample["image"][None])[0]
        rows.append(Row(picture, sample["boxes"], (data.class_names[label], ""), cells))
    figure = grid_figure("", [("", name) for name in modules], rows, rule=POSITIVE, side=PANEL)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.save(file)


def make_trainer(epochs: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), **options,
    )  # fmt: skip


def tuned(setting: Setting, data: Any, epochs: int, seed: int, **options: Any) -> tuple[Any, Clock]:
    """A fine-tuned module and its clock."""
    pl.seed_everything(seed, verbose=False)
    of_trainer = {name: options.pop(name) for name in ("precision", "limit_val_batches") if name in options}
    module, clock = setting.tuner(data, **options), Clock()
    make_trainer(epochs, clock, **of_trainer).fit(module, data)
    return module, clock


def plain(setting: Setting, data: Any, epochs: int, seed: int) -> tuple[Any, list[tuple[float, float]]]:
    """Zhou et al. 2016: random head, one learning rate, momentum, step decay; a bare loop."""
    pl.seed_everything(seed, verbose=False)
    module = setting.tuner(data)
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


def options(setting: Setting, seeds: int, epochs: int) -> None:
    rows: dict[str, list[dict[str, float]]] = {}

    def note(name: str, found: dict[str, float]) -> None:
        rows.setdefault(name, []).append(found)
        print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)

    for seed in range(seeds):
        data = setting.make_data(seed)
        data.setup("fit")
        module, points = plain(setting, data, epochs, seed)
        cost, target = points[-1]
        note("plain recipe, bare loop", quality(module, data.val_dataloader()) | {"time": 1.0, "to plain": 1.0})
        for name, given in setting.rows.items():
            module, clock = tuned(setting, data, epochs, seed, **given)
            reached = next((seconds for seconds, found in clock.points if found >= target), float("nan"))
            times = {"time": clock.points[-1][0] / cost, "to plain": reached / cost}
            note(name, quality(module, data.val_dataloader()) | times)
            if not given:
                for other, change in AFTERWARDS.items():
                    module.options = replace(module.options, metrics=MetricsOptions(**change))
                    module.normalizer = Normalizer.published(change.get("normalizer", "minmax"))
                    note(other, quality(module, data.val_dataloader()) | times)
    table(rows)


def fits(setting: Setting, seeds: int, epochs: int) -> None:
    """Lambda of least leave-one-out error, and the largest that is as right."""
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        data = setting.make_data(seed)
        data.setup("fit")
        for ridge in (None, "one_se"):
            pl.seed_everything(seed, verbose=False)
            module = setting.tuner(data)
            target = {"labels": True} if module.legacy is None else {"teacher": module.legacy}
            report = camify.fit_head(module.model, data.train_dataloader(), ridge=ridge, **target)
            found = quality(module, data.val_dataloader()) | {"KL": report.kl_after}
            rows.setdefault(f"ridge={ridge}", []).append(found)
    table(rows)


def seconds_per_epoch(setting: Setting, epochs: int, **given: Any) -> float:
    """Median of all epochs but the first, of training alone."""
    clock = tuned(setting, setting.make_data(0), epochs, 0, limit_val_batches=0, **given)[1]
    ends = [seconds for seconds, _ in clock.points]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


class _LinearLayer(pl.LightningModule):
    """The head ``direct`` alone, on features that are there: as little as Lightning can be given to do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        features, labels = batch
        return F.cross_entropy(self.layer(features.mean((2, 3))), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def seconds_of_lightning(setting: Setting, epochs: int) -> float:
    """Median of all epochs but the first, of the linear layer on features in memory: what no cache goes below."""
    data = setting.make_data(0)
    data.setup("fit")
    loader = data.train_dataloader()
    network = setting.tuner(data, head="direct").model.eval()
    with torch.no_grad():
        kept = [(network.forward_features(batch["image"]), batch["label"]) for batch in loader]
    features, labels = map(torch.cat, zip(*kept, strict=True))
    batches = DataLoader(TensorDataset(features, labels), loader.batch_size, shuffle=True)
    clock = Clock()
    make_trainer(epochs, clock, limit_val_batches=0).fit(_LinearLayer(network.classifier), batches)
    return statistics.median(b - a for (a, _), (b, _) in itertools.pairwise(clock.points))


def cache(setting: Setting, seeds: int, epochs: int) -> None:
    for head in ("direct", "gap"):
        given = {"head": head, "freeze_epochs": epochs}
        cached = {**given, "cached_views": 1}
        ratios = []
        for _ in range(seeds):
            without = seconds_per_epoch(setting, epochs, feature_cache="off", **given)
            ratios.append(
                [
                    *(
                        without / seconds_per_epoch(setting, epochs, feature_cache=w, **cached)
                        for w in ("memory", "disk")
                    ),
                    without / seconds_of_lightning(setting, epochs),
                ]
            )
        medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
        print(f"head={head}: an epoch without takes {medians[0]:.1f} times one with memory, {medians[1]:.1f} with disk")
        print(f"  and {medians[2]:.1f} times one of Lightning with nothing but a linear layer")


def throughput(setting: Setting, seeds: int, epochs: int) -> None:
    data = setting.make_data(0)
    data.setup("fit")
    ratios: dict[str, list[float]] = {}
    for _ in range(seeds):
        module = setting.tuner(data)
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
            ratios.setdefault(name, []).append(bare / seconds_per_epoch(setting, epochs, freeze_epochs=0, **given))
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} of the bare loop's images per second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["options", "fits", "cache", "throughput"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=600, help="training images, where they are shapes")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", help="of options, this one alone")
    parser.add_argument("--photos", help="folder for ImageFolderDataModule, instead of shapes")
    parser.add_argument("--network", default="torchvision/mobilenet_v2", help="source, for photographs")
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    chosen = photographs(wanted.photos, wanted.network) if wanted.photos else shapes(wanted.count)
    if wanted.only:
        chosen = replace(chosen, rows={wanted.only: chosen.rows[wanted.only]})
    run = {"options": options, "fits": fits, "cache": cache, "throughput": throughput}[wanted.what]
    run(chosen, wanted.seeds, wanted.epochs)
