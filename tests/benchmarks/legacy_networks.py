"""Legacy networks on photographs: ``python tests/benchmarks/legacy_networks.py --data ROOT --weights FOLDER``.

ROOT holds ``train/CLASS/*``, ``val/CLASS/*`` and ``boxes.csv`` (``image,x0,y0,x1,y1,label``), and where it is there
``hard.txt``, the images that no centered box solves, one a line. FOLDER holds the files of ``NETWORKS``. The frozen
features are computed once and kept in ``--cache``.

``--table maps``: linear heads on frozen features, and what each kind of their maps gives. ``--table alignment``: new
convolutions trained on the frozen features with ``align_weight``. ``--table recipes``: a legacy network with a fully
connected head, what camify's default fine-tuning makes of it, and what its object maps give without boxes and with
some. ``--table all``: every one. All as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import camify
from camify.conversion.new_layers import Conv3x3, append_layers
from camify.conversion.published_recipes import default_convs
from camify.data import ImageFolderDataModule
from camify.maps import class_maps, map_weight, select, upsample
from camify.metrics.functional import (
    best_ious_by_threshold,
    cell_masks,
    center_boxes,
    energy_share,
    iou_with_best_box,
    mosaic_plan,
    tiled,
)
from camify.normalizers import normalize_maps
from camify.task import Task
from camify.training.feature_cache import run_new_layers
from camify.training.losses import Objective, balanced_weights, classification_loss

SIDE = 224
NETWORKS = {  # torchvision's name: file, and where the features end (None: all of them)
    "alexnet": ("alexnet-imagenet-features-fp16.safetensors", 12),
    "vgg16": ("vgg16-imagenet-features-fp16.safetensors", 30),
    "mobilenet_v2": ("mobilenet_v2-coral-ptq-mirrored.pth", None),
    "squeezenet1_0": ("squeezenet1_0-deepcompression.pth", None),
}
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
MAX_BOX = (0.3, 0.5, 0.7)  # IoUs of version 2


@dataclass
class Photographs:
    """Frozen features of photographs, half precision, and what is known of these.

    Attributes:
        train_VNCHW: of the training images and, second, of their mirror images.
        val_NCHW: of the validation images.
        mosaics_MCHW: of 2 x 2 mosaics of validation images.
        mosaic_labels: (M, 4) classes of the cells.
        seconds: that the training images took.
    """

    train_VNCHW: Tensor
    train_labels: Tensor
    val_NCHW: Tensor
    val_labels: Tensor
    boxes: list[Tensor]
    hard: Tensor
    mosaics_MCHW: Tensor
    mosaic_labels: Tensor
    class_count: int
    seconds: float


def features_of(name: str, weights: Path) -> nn.Module:
    """The network's features up to the last spatial map, with its weights."""
    file, end = NETWORKS[name]
    path = weights / file
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    network = torchvision.models.get_model(name, weights=None)
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=end is None)
    return network.features[:end].eval()


@torch.no_grad()
def photographs(name: str, options: argparse.Namespace) -> Photographs:
    """What ``--cache`` holds of a network, or computed now."""
    kept = Path(options.cache) / f"{name}-{options.mosaics}.pt"
    if kept.is_file():
        return Photographs(**torch.load(kept, weights_only=True))
    data = ImageFolderDataModule(options.data, image_size=SIDE, num_workers=0, augment="none", check_images=False)
    data.setup("fit")
    network = features_of(name, Path(options.weights))
    train, val = (whole(loader) for loader in (data.train_dataloader(), data.val_dataloader()))
    start = time.perf_counter()
    views = [run(network, train["image"])]
    seconds = time.perf_counter() - start
    views.append(run(network, train["image"].flip(-1)))
    plan = mosaic_plan(val["label"])[: options.mosaics]
    listed = Path(options.data) / "hard.txt"
    hard = set(listed.read_text().split()) if listed.is_file() else set()
    names = [Path(path).resolve().relative_to(Path(options.data).resolve()).as_posix() for path in val["path"]]
    found = {
        "train_VNCHW": torch.stack(views), "train_labels": train["label"],
        "val_NCHW": run(network, val["image"]), "val_labels": val["label"], "boxes": val["boxes"],
        "hard": torch.tensor([name in hard for name in names]),
        "mosaics_MCHW": run(network, tiled(val["image"][plan.flatten()]), 8), "mosaic_labels": val["label"][plan],
        "class_count": len(data.class_names), "seconds": seconds,
    }  # fmt: skip
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, kept)
    return Photographs(**found)


def whole(loader: DataLoader[Any]) -> dict[str, Any]:
    """All samples of a loader's data set, in its order."""
    samples = [loader.dataset[index] for index in range(len(loader.dataset))]  # type: ignore[arg-type]
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.tensor([int(sample["label"]) for sample in samples]),
        "boxes": [torch.as_tensor(sample["boxes"]) for sample in samples],
        "path": [sample["path"] for sample in samples],
    }


def run(network: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    return torch.cat([network(chunk).half() for chunk in images.split(batch)])


# ---------------------------------------------------------------- figures


def figures(
    data: Photographs, maps_NHW: Tensor, mosaics_MKHW: Tensor, predicted: Tensor, seconds: float
) -> dict[str, float]:
    """A row of the table.

    Args:
        data: the photographs.
        maps_NHW: of the true class of each validation image.
        mosaics_MKHW: all classes' maps of the mosaics.
        predicted: classes (N,).
        seconds: what the maps took beyond the features.
    """
    heats = normalize_maps(upsample(maps_NHW.float(), (SIDE, SIDE)))
    rows = [best_ious_by_threshold(heat, boxes) for heat, boxes in zip(heats, data.boxes, strict=True)]
    of_all, of_largest = (torch.stack(column) for column in zip(*rows, strict=True))
    found = {"top-1": share(predicted == data.val_labels), **box_figures(of_largest, of_all)}
    if bool(data.hard.any()):
        on_hard = box_figures(of_largest[data.hard], of_all[data.hard])
        found |= {f"hard {key}": value for key, value in on_hard.items()}
    found["grid pointing"] = grid_pointing(mosaics_MKHW, data.mosaic_labels)
    return found | {"seconds": seconds}


def box_figures(of_largest_NT: Tensor, of_all_NT: Tensor) -> dict[str, float]:
    """MaxBoxAcc of both versions, from the best IoU of each image at each threshold."""
    second = [float((of_all_NT >= iou).double().mean(0).max()) for iou in MAX_BOX]
    return {"V1": float((of_largest_NT >= 0.5).double().mean(0).max()), "V2": sum(second) / len(second)}


def center_row(data: Photographs) -> dict[str, float]:
    """The best fixed box around the center."""
    boxes = center_boxes(SIDE, SIDE)
    ious = torch.stack([iou_with_best_box(boxes, truth) for truth in data.boxes])
    found = {"top-1": float("nan"), **box_figures(ious, ious)}
    if bool(data.hard.any()):
        found |= {f"hard {key}": value for key, value in box_figures(ious[data.hard], ious[data.hard]).items()}
    return found | {"grid pointing": 0.25, "seconds": 0.0}


def grid_pointing(maps_MKHW: Tensor, labels_M4: Tensor) -> float:
    """Share of a class's positive evidence in its own cell; maps of one channel belong to every class."""
    shares = []
    for cell, labels in enumerate(labels_M4.unbind(1)):
        maps = maps_MKHW[:, 0] if maps_MKHW.shape[1] == 1 else select(maps_MKHW, labels)
        big = upsample(maps.float(), (2 * SIDE, 2 * SIDE))
        shares.append(energy_share(big, cell_masks(torch.full((len(big),), cell), 2, 2 * SIDE, 2 * SIDE)))
    return float(torch.cat(shares).mean())


def share(hits: Tensor) -> float:
    return float(hits.double().mean())


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for name, row in rows.items():
        cells = [
            "" if value != value else f"{value:.1f}" if key == "seconds" else f"{value:.3f}"
            for key, value in row.items()
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


# ---------------------------------------------------------------- linear heads on frozen features


def ridge_head(data: Photographs) -> camify.CAMNet:
    """Fitted in closed form."""
    model = linear_head(data)
    camify.fit_head(model, data.train_VNCHW[0].float(), labels=data.train_labels)
    return model


def linear_head(data: Photographs) -> camify.CAMNet:
    return camify.CAMNet(nn.Identity(), nn.Linear(data.train_VNCHW.shape[2], data.class_count))


def trained_head(data: Photographs, task: Task, start: camify.CAMNet | None = None, epochs: int = 30) -> camify.CAMNet:
    """Trained by gradient on the pooled features of images and mirror images; AdamW, one-cycle."""
    model = linear_head(data)
    if start is not None:
        model.load_state_dict(start.state_dict())
    pooled, labels = data.train_VNCHW.float().mean((3, 4)).flatten(0, 1), data.train_labels.repeat(2)
    targets, weights = labels, None
    if task is not Task.MULTICLASS:
        targets = F.one_hot(labels, data.class_count).float()
        weights = balanced_weights(targets, data.class_count, task=task)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batches = -(-len(labels) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(32):
            logits = model.classifier(pooled[chosen])
            loss = classification_loss(logits, targets[chosen], task=task, class_weights=weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def class_means(data: Photographs) -> camify.CAMNet:
    """The mean features of the classes as weights; its logits take the class whose mean is nearest."""
    model, pooled = linear_head(data), data.train_VNCHW[0].float().mean((2, 3))
    means = torch.stack([pooled[data.train_labels == label].mean(0) for label in range(data.class_count)])
    model.classifier.weight.data, model.classifier.bias.data = means, -means.square().sum(1) / 2
    return model


def map_rows(data: Photographs) -> Iterator[tuple[str, dict[str, float]]]:
    """Every kind of map, with its figures."""
    torch.manual_seed(0)
    val, mosaics, mean = data.val_NCHW.float(), data.mosaics_MCHW.float(), data.train_VNCHW[0].float().mean((0, 2, 3))

    def row(weight_KC: Tensor, head: camify.CAMNet, seconds: float) -> dict[str, float]:
        own = weight_KC[data.val_labels] if len(weight_KC) > 1 else weight_KC.expand(len(val), -1)
        start = time.perf_counter()
        maps = torch.einsum("nchw,nc->nhw", val, own)
        seconds += time.perf_counter() - start
        predicted = head.classifier(val.mean((2, 3))).argmax(1)
        return figures(data, maps, class_maps(mosaics, weight_KC), predicted, seconds)

    def timed(make: Callable[..., camify.CAMNet], *given: Any) -> tuple[camify.CAMNet, Tensor, float]:
        start = time.perf_counter()
        head = make(data, *given)
        return head, head.classifier.weight.detach(), time.perf_counter() - start

    heads = {"ridge": timed(ridge_head), "softmax": timed(trained_head, Task.MULTICLASS)}
    with torch.no_grad():
        yield "best center box", center_row(data)
        for name, (head, weight, seconds) in heads.items():
            yield f"{name} head: plain", row(weight, head, seconds)
            contrast = map_weight(weight, "contrast")
            yield f"{name} head: contrast", row(contrast, head, seconds)
            unit = mean / mean.norm() * contrast.norm(dim=1).mean()
            for strength in STRENGTHS:
                both = map_weight(weight, "object", strength * unit)
                yield f"{name} head: contrast + {strength:g} mean feature", row(both, head, seconds)
    softmax, _, before = heads["softmax"]
    _, weight, seconds = timed(trained_head, Task.MULTILABEL, softmax)
    anew = timed(trained_head, Task.MULTILABEL)
    with torch.no_grad():
        yield "sigmoid branch, from the softmax head", row(weight, softmax, before + seconds)
        yield "sigmoid branch, from scratch", row(anew[1], softmax, before + anew[2])
        means, weight, seconds = timed(class_means)
        yield "class means as weights", row(weight, means, seconds)
        ridge, _, seconds = heads["ridge"]
        yield "mean of the channels (label-free)", row(torch.ones(1, val.shape[1]) / val.shape[1], ridge, 0.0)


def maps_table(name: str, data: Photographs, options: argparse.Namespace) -> None:
    """Linear heads: what each kind of map gives."""
    title = f"{name}: {len(data.train_labels)} training images, whose features took {data.seconds:.1f} s"
    print_table(
        f"{title}; {len(data.val_labels)} validation images, {len(data.mosaic_labels)} mosaics", dict(map_rows(data))
    )


# ---------------------------------------------------------------- new convolutions with aligned directions


def aligned_head(name: str, data: Photographs, weight: float, options: argparse.Namespace) -> camify.CAMNet:
    """New convolutions on the frozen features of images and mirror images; AdamW 1e-3, one-cycle, dropout 0.5."""
    network = torchvision.models.get_model(name, weights=None)
    widths = options.head_channels or default_convs(list(network.features.modules()))
    features, layers = append_layers(nn.Sequential(), data.train_VNCHW.shape[2], tuple(map(Conv3x3, widths)))
    model = camify.CAMNet(features, nn.Linear(widths[-1], data.class_count), dropout=0.5, head_layers=layers).train()
    objective = Objective(label_smoothing=0.05, alignment=weight)
    inputs, labels = data.train_VNCHW.flatten(0, 1), data.train_labels.repeat(2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    steps = options.epochs * -(-len(labels) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(labels)).split(32):
            maps = model.forward_features(inputs[chosen].float())
            aligned = {"features_NCHW": maps, "weight_KC": model.classifier.weight}
            loss = objective(model.forward_head(maps), labels[chosen], **aligned)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def alignment_table(name: str, data: Photographs, options: argparse.Namespace) -> None:
    """``align_weight`` off and on, its plain maps and those with the mean feature: means over the seeds."""
    runs: dict[str, list[dict[str, float]]] = {}
    for weight in options.align_weights:
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            start = time.perf_counter()
            model = aligned_head(name, data, weight, options)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                train, val, mosaics = (
                    torch.cat([model.forward_features(chunk.float()) for chunk in maps.split(32)])
                    for maps in (data.train_VNCHW[0], data.val_NCHW, data.mosaics_MCHW)
                )
                predicted, mean = model.forward_head(val).argmax(1), train.mean((0, 2, 3))
                plain = model.classifier.weight
                unit = mean / mean.norm() * map_weight(plain, "contrast").norm(dim=1).mean()
                for kind, weight_KC in (
                    ("plain", plain),
                    ("contrast + 1 mean feature", map_weight(plain, "object", unit)),
                ):
                    maps = select(class_maps(val, weight_KC), data.val_labels)
                    found = figures(data, maps, class_maps(mosaics, weight_KC), predicted, seconds)
                    runs.setdefault(f"align_weight={weight:g}: {kind}", []).append(found)
                    print(name, weight, seed, kind, {key: round(value, 3) for key, value in found.items()}, flush=True)
    rows = {
        label: {key: sum(run[key] for run in found) / len(found) for key in found[0]} for label, found in runs.items()
    }
    title = f"{name}: new convolutions, {options.epochs} epochs on frozen features, means of {options.seeds} seeds"
    print_table(title, {"best center box": center_row(data), **rows})


# ---------------------------------------------------------------- fine-tuning by default

PER_CLASS = (1, 3, 8)  # boxes that are given


def legacy_network(name: str, data: Photographs, weights: Path) -> tuple[nn.Module, float]:
    """The network with a fully connected head trained on its features, as people have it, and its top-1.

    Flatten, linear 512, ReLU, dropout, linear; AdamW 3e-4, label smoothing 0.05, mirror images. Networks that end in
    global average pooling get one linear layer.
    """
    torch.manual_seed(0)
    features, pool = features_of(name, weights), nn.Identity()
    if name in ("alexnet", "vgg16"):
        pool = nn.MaxPool2d(3, 2) if name == "alexnet" else nn.MaxPool2d(2, 2)  # type: ignore[assignment]
        width = pool(data.val_NCHW[:1].float()).numel()
        head: nn.Module = nn.Sequential(
            nn.Flatten(), nn.Linear(width, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, data.class_count)
        )
    else:
        width = data.val_NCHW.shape[1]
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, data.class_count))
    inputs, labels = data.train_VNCHW.flatten(0, 1), data.train_labels.repeat(2)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-4)
    for _ in range(8):
        for chosen in torch.randperm(len(labels)).split(32):
            loss = F.cross_entropy(head(pool(inputs[chosen].float())), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head.eval()
    with torch.no_grad():
        predicted = torch.cat([head(pool(chunk.float())) for chunk in data.val_NCHW.split(32)]).argmax(1)
    return nn.Sequential(features, pool, *head.children()).eval(), share(predicted == data.val_labels)


def recipes_table(name: str, data: Photographs, options: argparse.Namespace) -> None:
    """The legacy, a ridge head on its frozen features, and ``CAMFineTuner`` with its defaults, then object maps."""
    legacy, top1 = legacy_network(name, data, Path(options.weights))
    ridge = ridge_head(data)
    with torch.no_grad():
        predicted = ridge.classifier(data.val_NCHW.float().mean((2, 3))).argmax(1)
    names = sorted(path.name for path in (Path(options.data) / "train").iterdir() if path.is_dir())
    photos = ImageFolderDataModule(options.data, batch_size=16, num_workers=2)
    head = "gap" if name in ("alexnet", "vgg16") else "direct"
    pl.seed_everything(0, verbose=False)
    module = camify.CAMFineTuner(legacy, class_names=names, head=head, input_size=SIDE)
    trainer = pl.Trainer(
        max_epochs=options.epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, photos)
    seconds = time.perf_counter() - start
    model = module.model.eval()
    rows = {
        "best center box": center_row(data),
        "legacy network": {"top-1": top1},
        "ridge head on frozen features": {"top-1": share(predicted == data.val_labels)},
    }
    with torch.no_grad():
        train, val, mosaics = (
            torch.cat([run_new_layers(model, chunk.float()) for chunk in maps.split(32)])
            for maps in (data.train_VNCHW[0], data.val_NCHW, data.mosaics_MCHW)
        )
        predicted = model.forward_head(val).argmax(1)

        def row(kind: str, seconds: float) -> dict[str, float]:
            weight = model.map_weight(kind)
            maps = select(class_maps(val, weight), data.val_labels)
            return figures(data, maps, class_maps(mosaics, weight), predicted, seconds)

        rows |= {"default: plain maps": row("plain", seconds), "contrast maps": row("contrast", seconds)}
        known = dict(enumerate(train_boxes(photos)))
        budgets: list[tuple[str, set[int]]] = [("without boxes", set())]
        for count in PER_CLASS:
            places = {place for label in range(data.class_count)
                      for place in (data.train_labels == label).nonzero().flatten()[:count].tolist()}  # fmt: skip
            budgets.append((f"{len(places)} boxes", places))
        budgets.append((f"all {len(known)} boxes", set(known)))
        for label, places in budgets:
            batches = [
                {
                    "features": train[chunk], "size": torch.full((len(chunk), 2), SIDE),
                    "boxes": [known[place] if place in places else known[place][:0] for place in chunk.tolist()],
                }
                for chunk in torch.arange(len(train)).split(32)
            ]  # fmt: skip
            report = camify.fit_object_map(model, batches, boxes=bool(places) or None)
            rows[f"object maps, {label} (strength {report.strength:g})"] = row("object", report.seconds)
    full = {key: float("nan") for key in rows["default: plain maps"]}
    title = f"{name}: default fine-tuning, {options.epochs} epochs, {'; '.join(module.plan.reasons)}"  # type: ignore[union-attr]
    print_table(title, {label: full | cells for label, cells in rows.items()})


def train_boxes(photos: ImageFolderDataModule) -> list[Tensor]:
    """Boxes (n, 4) of the training images, in pixels of the input."""
    with photos.without_augmentation():
        return [torch.as_tensor(sample["boxes"]) for sample in photos.splits["train"]]


TABLES: dict[str, Callable[[str, Photographs, argparse.Namespace], None]] = {
    "maps": maps_table,
    "alignment": alignment_table,
    "recipes": recipes_table,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of photographs")
    parser.add_argument("--weights", required=True, help="folder of the networks' weights")
    parser.add_argument("--table", choices=[*TABLES, "all"], default="maps")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--cache", help="folder that keeps the features; default: a temporary one")
    parser.add_argument("--mosaics", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--align_weights", type=float, nargs="+", default=[0.0, 0.05, 0.5])
    parser.add_argument("--head_channels", type=int, nargs="+", help="of the new convolutions; default: as published")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted.cache = wanted.cache or folder
        for chosen_name in wanted.networks:
            for table in TABLES if wanted.table == "all" else [wanted.table]:
                if table != "alignment" or chosen_name in ("alexnet", "vgg16"):
                    TABLES[table](chosen_name, photographs(chosen_name, wanted), wanted)
