"""CAMOverlayLogger: after every epoch, where the network looks, on the same few images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ..box_rule import BoxRule
from ..data import Preprocessing
from ..files import slug, write_whole
from ..methods import Method, find_method, observe
from ..model import CAMNet
from ..normalizers import Normalizer
from ..report.overlay import ClassMap, Region, overlay_picture, strip_picture
from ..report.page import ImageTrack
from .asking import is_dry_run, labels_of, run_folder, single_loader
from .loggers import PictureLog

__all__ = ["CAMOverlayLogger", "choose_probes"]


@dataclass
class _Probes:
    """The watched images, as pictures and as the network's input."""

    batch: dict[str, Any]
    pictures: Tensor  # (n, 3, H, W) in [0, 1]
    names: list[str]


class CAMOverlayLogger(pl.Callback):
    """Draws the class activation maps of a fixed set of validation images after every epoch.

    Per image and epoch one picture (image with ground-truth box, map of the predicted and of the true class,
    probability, raw scale), and per image one strip over all epochs. Written to ``overlays/`` in the run's
    folder first, then offered to TensorBoard. The colour scale of an image is the largest map value it has had
    in any epoch; when training ends all its pictures are drawn again on the final scale, so that they compare.

    Drawing never stops training: the first failure is reported once.

    Args:
        num_images: images to watch, spread over the classes.
        seed: another seed watches others.
        colormap: name in ``matplotlib.colormaps``; ``"jet"`` is the literature's.
        every_n_epochs: draw in every n-th epoch only.
        method: explanation method by name (see ``camify.explain``); ``"cam"`` costs nothing extra.

    Raises:
        ConfigError: the method is unknown.
    """

    def __init__(
        self,
        num_images: int = 12,
        seed: int = 0,
        colormap: str = "inferno",
        every_n_epochs: int = 1,
        method: str = "cam",
    ) -> None:
        self.num_images, self.seed, self.method = num_images, seed, find_method(method)
        self.colormap, self.every_n_epochs = colormap, max(1, every_n_epochs)
        self.history: dict[int, dict[str, Tensor]] = {}  # by epoch, see `_look`; and the threshold
        self.class_names: list[str] = []
        self.folder: Path | None = None
        self._probes: _Probes | None = None
        self._encoded: dict[str, tuple[int, bytes]] = {}
        self._failed = False
        self._log = PictureLog()
        self._normalizer = Normalizer(BoxRule.normalizer)

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The maps so far: after resuming, strips go on where they stopped."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the maps of an interrupted run."""
        self.history = dict(state_dict["history"])

    # ------------------------------------------------------------ hooks

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, unless this is the sanity check, a dry run or not the turn of this epoch."""
        network = getattr(pl_module, "model", None)
        skip = trainer.sanity_checking or is_dry_run(trainer) or not trainer.is_global_zero
        if skip or trainer.state.fn != "fit" or not isinstance(network, CAMNet):
            return
        if trainer.current_epoch % self.every_n_epochs == 0:
            self._attempt(self._draw_epoch, trainer, pl_module, network)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Draw all epochs again on the final colour scale."""
        if trainer.is_global_zero and self._probes is not None:
            self._attempt(self._draw_all)

    def _attempt(self, draw: Any, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            draw(*arguments)
        except Exception as error:  # noqa: BLE001 - pictures never stop training
            self._failed = True
            rank_zero_warn(f"Overlays are off from here on: {type(error).__name__}: {error}. Training goes on.")

    # ------------------------------------------------------------ drawing

    def _draw_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, network: CAMNet) -> None:
        if self._probes is None:
            self._probes = _read_probes(trainer, network, self.num_images, self.seed)
            self.folder = run_folder(trainer) / "overlays"
            self.class_names = network.class_names or [f"class {index}" for index in range(network.num_classes)]
        epoch = trainer.current_epoch
        with trainer.precision_plugin.forward_context():
            self.history[epoch] = _look(self.method(network), self._probes.batch, pl_module.device)
        best = trainer.callback_metrics.get("val/best_threshold", torch.tensor(BoxRule.threshold))
        self.history[epoch]["threshold"] = best.detach().float().cpu()
        self._normalizer = getattr(pl_module, "normalizer", self._normalizer)
        for index, name in enumerate(self._probes.names):
            picture = self._picture(epoch, index)
            self._write(picture, _frame(epoch, name))
            self._write(self._strip(index), _strip(name))
            self._log.offer(trainer.loggers, f"overlays/{name}", picture, trainer.global_step)

    def _draw_all(self) -> None:
        probes = self._probes
        for index, name in enumerate(probes.names if probes is not None else ()):
            for epoch in self.history:
                self._write(self._picture(epoch, index), _frame(epoch, name))

    def scale(self, index: int) -> float:
        """Largest raw map value of an image so far: what is drawn as full heat."""
        return max(0.0, *(float(looks["maps"][index].max()) for looks in self.history.values()))

    def _picture(self, epoch: int, index: int) -> Image.Image:
        probes, looks = self._require(), self.history[epoch]
        classes = (int(looks["classes"][index]), int(probes.batch["label"][index]))
        predicted, true = (
            ClassMap(self.class_names[k], looks["maps"][index, i], float(looks["logits"][index, i]), p)
            for i, (k, p) in enumerate(zip(classes, looks["probabilities"][index].tolist(), strict=True))
        )
        rule = BoxRule(self._normalizer.name, self._normalizer.percentile, float(looks["threshold"]))
        size = (probes.pictures.shape[-2], probes.pictures.shape[-1])
        region = rule.regions(looks["maps"][index, 1:], size)[0].numpy()
        return overlay_picture(
            probes.pictures[index],
            true,
            predicted,
            region=Region(region, rule.threshold),
            scale=self.scale(index),
            boxes=probes.batch["boxes"][index] if "boxes" in probes.batch else None,
            colormap=self.colormap,
            title=f"{probes.names[index]} · epoch {epoch}",
        )

    def _strip(self, index: int) -> Image.Image:
        probes = self._require()
        epochs = sorted(self.history)
        return strip_picture(
            probes.pictures[index],
            [self.history[epoch]["maps"][index, 1] for epoch in epochs],
            [f"{epoch} · p {self.history[epoch]['probabilities'][index, 1]:.2f}" for epoch in epochs],
            scale=self.scale(index),
            boxes=probes.batch["boxes"][index] if "boxes" in probes.batch else None,
            colormap=self.colormap,
            title=f"{probes.names[index]} · map of {self.class_names[int(probes.batch['label'][index])]} by epoch",
        )

    def _require(self) -> _Probes:
        if self._probes is None:
            raise RuntimeError("no images were chosen yet")
        return self._probes

    def _write(self, picture: Image.Image, name: str) -> None:
        if self.folder is not None:
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG", compress_level=3)
            write_whole(self.folder / name, buffer.getvalue())

    # ------------------------------------------------------------ for the report

    def tracks(self) -> list[ImageTrack]:
        """The watched images with their pictures of all epochs, for the run's page."""
        if self._probes is None or self.folder is None:
            return []
        tracks = []
        for index, name in enumerate(self._probes.names):
            frames = []
            for epoch, looks in sorted(self.history.items()):
                probability, guess = float(looks["probabilities"][index, 0]), int(looks["classes"][index])
                caption = f"predicted {self.class_names[guess]}, p {probability:.2f}"
                frames.append((epoch, self._webp(_frame(epoch, name)), caption))
            true = self.class_names[int(self._probes.batch["label"][index])]
            tracks.append(ImageTrack(name, true, frames, self._webp(_strip(name))))
        return tracks

    def _webp(self, name: str) -> bytes:
        """A written picture as WebP, a fifth of its PNG; encoded once as long as the file stays the same."""
        path = (self.folder or Path()) / name
        changed = path.stat().st_mtime_ns
        if self._encoded.get(name, (0, b""))[0] != changed:
            buffer = io.BytesIO()
            with Image.open(path) as picture:
                picture.save(buffer, format="WEBP", quality=82, method=2)
            self._encoded[name] = (changed, buffer.getvalue())
        return self._encoded[name][1]


def _frame(epoch: int, name: str) -> str:
    return f"epoch_{epoch:03d}/{name}.png"


def _strip(name: str) -> str:
    return f"strips/{name}.png"


def choose_probes(count: int, labels: Sequence[int] | None, total: int, seed: int) -> list[int]:
    """Indices of ``count`` samples, the same for the same seed, as evenly over the classes as can be.

    Without labels the samples are spread evenly over the data set, which in sorted folders comes to the same.
    """
    generator = np.random.default_rng(seed)
    count = min(count, total)
    if labels is None:
        offset = generator.random()
        return [int((index + offset) * total / count) for index in range(count)]
    order = generator.permutation(total)
    turns: dict[int, int] = {}
    keys = []
    for index in order.tolist():  # each class's first sample, then each class's second, ...
        turn = turns[labels[index]] = turns.get(labels[index], -1) + 1
        keys.append((turn, index))
    chosen = [index for _, index in sorted(keys, key=lambda key: key[0])[:count]]
    return sorted(chosen, key=lambda index: (labels[index], index))


def _read_probes(trainer: pl.Trainer, network: CAMNet, count: int, seed: int) -> _Probes:
    loader = single_loader(trainer.val_dataloaders)
    dataset = loader.dataset
    labels = labels_of(loader)
    single = labels is not None and all(isinstance(label, int) for label in labels)
    indices = choose_probes(count, labels if single else None, len(dataset), seed)
    batch = loader.collate_fn([dataset[index] for index in indices])
    batch = dict(batch) if isinstance(batch, dict) else {"image": batch[0], "label": batch[1]}
    if batch["label"].ndim == 2:  # several classes at once: the first of them is shown
        batch["label"] = batch["label"].long().argmax(1)
    images = batch["image"].float()
    if network.preprocessing is not None:
        pictures = Preprocessing.from_dict(network.preprocessing).restore(images)
    else:  # unknown normalisation: each image between its own extremes
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        pictures = (images - low) / (high - low).clamp_min(1e-6)
    if pictures.shape[1] == 1:
        pictures = pictures.expand(-1, 3, -1, -1)
    stems = [Path(path).stem for path in batch["path"]] if "path" in batch else [str(index) for index in indices]
    names = [f"{number:02d}_{slug(stem)}" for number, stem in enumerate(stems)]
    return _Probes(batch, pictures, names)


def _look(method: Method, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Maps, logits and probabilities of the predicted (0) and the true class (1), on the CPU."""
    with observe(method.model, batch["image"].to(device), gradients=method.uses_gradients) as forward:
        classes = forward.logits.argmax(dim=1)
        pair = torch.stack([classes, batch["label"].to(device)], dim=1)
        return {
            "classes": classes.cpu(),
            "maps": method.look(forward, pair).float().cpu(),
            "logits": forward.logits.gather(1, pair).float().cpu(),
            "probabilities": forward.logits.softmax(dim=1).gather(1, pair).float().cpu(),
        }
