"""CAMOverlayLogger: after every epoch, where the network looks, on the same few images."""

# ruff: noqa: ARG002 - Lightning's signatures

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ..box_rule import BoxRule
from ..files import slug, write_whole
from ..methods import find_method
from ..model import CAMNet
from ..normalizers import Normalizer
from ..report.encoding import encoded
from ..report.overlay import ClassMap, Region, overlay_picture, sheet_picture, strip_picture
from ..report.run import INDEX
from .asking import is_dry_run, run_folder, single_loader
from .finds import Finds
from .loggers import PictureLog
from .probes import Probes, look, named_probes, pictures_of, read_probes

__all__ = ["CAMOverlayLogger"]

_DURATION = 700  # of one epoch in an animation, ms


class CAMOverlayLogger(pl.Callback):
    """Draws the class activation maps of a fixed set of validation images after every epoch.

    Per image and epoch one picture (image with ground-truth box, map of the predicted and of the true class,
    probability, raw scale), and per image one strip over all epochs. Written to ``overlays/`` in the run's
    folder first, then offered to every logger that takes pictures. The colour scale of an image is the largest map
    value it has had in any epoch; when training ends all its pictures are drawn again on the final scale, so that
    they compare, and the strips together (``overlays/sheet.png``) and as animations (``overlays/animations/``).

    Beside them, per epoch, the validation images that are worth a look: the most confident mistakes, those whose
    evidence lies beside the object, where boxes are known, and those whose map changed most since the epoch before
    (each on its own scale; of what the first process saw).

    Drawing never stops training: the first failure is reported once.

    Args:
        num_images: images to watch, spread over the classes.
        seed: another seed watches others.
        colormap: name in ``matplotlib.colormaps``; ``"jet"`` is the literature's.
        every_n_epochs: draw in every n-th epoch only.
        method: explanation method by name (see ``camify.explain``); ``"cam"`` costs nothing extra.
        images: watch these validation images, by path or the end of it, instead of ``num_images``.
        num_finds: images that are worth a look, of each kind; 0 looks for none.

    Raises:
        ConfigError: the method is unknown, or an image.
    """

    def __init__(
        self,
        num_images: int = 12,
        seed: int = 0,
        colormap: str = "inferno",
        every_n_epochs: int = 1,
        method: str = "cam",
        images: list[str] | None = None,
        num_finds: int = 4,
    ) -> None:
        self.num_images, self.seed, self.method = num_images, seed, find_method(method)
        self.colormap, self.every_n_epochs = colormap, max(1, every_n_epochs)
        self.history: dict[int, dict[str, Tensor]] = {}  # by epoch, see `_look`; and the threshold
        self.class_names: list[str] = []
        self.images, self.finds = images or [], Finds(num_finds)
        self.folder: Path | None = None
        self._probes: Probes | None = None
        self._found: list[dict[str, Any]] = []  # of all epochs, as the index has them
        self._failed = False
        self._log = PictureLog()
        self._normalizer = Normalizer(BoxRule.normalizer)

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The maps so far: after resuming, strips go on where they stopped."""
        return {"history": self.history, "found": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the maps of an interrupted run."""
        self.history, self._found = dict(state_dict["history"]), list(state_dict["found"])

    # ------------------------------------------------------------ hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse names of images that are none."""
        if self.images:
            named_probes(single_loader(trainer.val_dataloaders).dataset, self.images)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch, look at the watched images: with the weights that are validated, averaged or not."""
        network = getattr(pl_module, "model", None)
        if batch_idx == 0 and dataloader_idx == 0 and isinstance(network, CAMNet) and self._has_turn(trainer):
            self.finds.begin()
            self._attempt(self._look, trainer, pl_module, network)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Look for images that are worth a look among those of the batch."""
        seen = outputs.get("seen") if isinstance(outputs, Mapping) else None
        if self.finds.count and dataloader_idx == 0 and seen is not None and self._has_turn(trainer):
            self._attempt(self.finds.update, seen, batch.get("path") if isinstance(batch, Mapping) else None)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, unless this is the sanity check, a dry run or not the turn of this epoch."""
        if isinstance(getattr(pl_module, "model", None), CAMNet) and self._has_turn(trainer):
            self._attempt(self._draw_epoch, trainer, pl_module)

    def _has_turn(self, trainer: pl.Trainer) -> bool:
        skip = trainer.sanity_checking or is_dry_run(trainer) or not trainer.is_global_zero
        return not skip and trainer.state.fn == "fit" and trainer.current_epoch % self.every_n_epochs == 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, network: CAMNet) -> None:
        if self._probes is None:
            self._probes = read_probes(trainer, network, self.num_images, self.seed, self.images)
            self.folder = run_folder(trainer) / "overlays"
            self.class_names = network.class_names or [f"class {index}" for index in range(network.num_classes)]
        with trainer.precision_plugin.forward_context():
            self.history[trainer.current_epoch] = look(self.method(network), self._probes.batch, pl_module.device)

    def _draw_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, probes = trainer.current_epoch, self._require()
        best = trainer.callback_metrics.get("val/best_threshold", torch.tensor(BoxRule.threshold))
        self.history[epoch]["threshold"] = best.detach().float().cpu()
        self._normalizer = getattr(pl_module, "normalizer", self._normalizer)
        for index, name in enumerate(probes.names):
            picture = self._picture(epoch, index)
            self._write(picture, _frame(epoch, name))
            self._write(self._strip(index), _strip(name))
            self._log.offer(trainer.loggers, f"overlays/{name}", picture, trainer.global_step)
        if self.finds.count:
            self._draw_finds(trainer, pl_module.model)  # type: ignore[arg-type]  # see `on_validation_end`
        self._write_index()

    def _draw_finds(self, trainer: pl.Trainer, network: CAMNet) -> None:
        epoch = trainer.current_epoch
        self._found = [found for found in self._found if found["epoch"] != epoch]  # of an epoch that is done again
        for kind, finds in self.finds.found().items():
            for place, find in enumerate(finds):
                file = f"epoch_{epoch:03d}/{kind}/{place}_{slug(find.name)}.png"
                picture = self._overlay(
                    pictures_of(find.image[None], network)[0],
                    find.classes,
                    (find.maps, find.logits, find.probabilities),
                    find.boxes,
                    f"{find.name} · epoch {epoch}",
                    threshold=float(self.history[epoch]["threshold"]),
                    scale=max(0.0, float(find.maps.max())),
                )
                self._write(picture, file)
                self._log.offer(trainer.loggers, f"{kind}/{place}", picture, trainer.global_step)
                true, caption = self.class_names[find.classes[1]], self._caption(find.classes[0], find.probabilities)
                entry = {"kind": kind, "epoch": epoch, "name": find.name, "true": true, "file": file}
                self._found.append({**entry, "caption": caption})

    def _draw_all(self) -> None:
        names = self._require().names
        for index, name in enumerate(names):
            frames = [self._picture(epoch, index) for epoch in sorted(self.history)]
            for epoch, frame in zip(sorted(self.history), frames, strict=True):
                self._write(frame, _frame(epoch, name))
            if self.folder is not None:
                buffer = io.BytesIO()
                first, *rest = frames
                first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=_DURATION, loop=0, quality=80)
                write_whole(self.folder / "animations" / f"{name}.webp", buffer.getvalue())
        self._write(sheet_picture([self._strip(index) for index in range(len(names))], 1), "sheet.png")

    def _write_index(self) -> None:
        """What is drawn, for the run's page: ``overlays/index.json``."""
        watched = [
            {
                "name": name,
                "true": self.class_names[int(self._require().batch["label"][index])],
                "strip": _strip(name),
                "frames": [
                    {
                        "epoch": epoch,
                        "file": _frame(epoch, name),
                        "caption": self._caption(int(looks["classes"][index]), looks["probabilities"][index]),
                    }
                    for epoch, looks in sorted(self.history.items())
                ],
            }
            for index, name in enumerate(self._require().names)
        ]
        if self.folder is not None:
            content = {"watched": watched, "finds": self._found}
            write_whole(self.folder / Path(INDEX).name, json.dumps(content, ensure_ascii=False, indent=1))

    def _caption(self, predicted: int, probabilities: Tensor) -> str:
        return f"predicted {self.class_names[predicted]}, p {float(probabilities[0]):.2f}"

    def scale(self, index: int) -> float:
        """Largest raw map value of an image so far: what is drawn as full heat."""
        return max(0.0, *(float(looks["maps"][index].max()) for looks in self.history.values()))

    def _picture(self, epoch: int, index: int) -> Image.Image:
        probes, looks = self._require(), self.history[epoch]
        return self._overlay(
            probes.pictures[index],
            (int(looks["classes"][index]), int(probes.batch["label"][index])),
            (looks["maps"][index], looks["logits"][index], looks["probabilities"][index]),
            probes.batch["boxes"][index] if "boxes" in probes.batch else None,
            f"{probes.names[index]} · epoch {epoch}",
            threshold=float(looks["threshold"]),
            scale=self.scale(index),
        )

    def _overlay(
        self, image: Tensor, classes: tuple[int, int], looks: tuple[Tensor, Tensor, Tensor], boxes: Tensor | None,
        title: str, *, threshold: float, scale: float,
    ) -> Image.Image:  # fmt: skip
        """A picture of the predicted and the true class: their maps (2, h, w), logits and probabilities (2,)."""
        predicted, true = (
            ClassMap(self.class_names[k], one, float(logit), float(p))
            for k, one, logit, p in zip(classes, *looks, strict=True)
        )
        rule = BoxRule(self._normalizer.name, self._normalizer.percentile, threshold)
        region = rule.regions(looks[0][1:], (image.shape[-2], image.shape[-1]))[0].numpy()
        return overlay_picture(
            image,
            true,
            predicted,
            scale=scale,
            boxes=boxes,
            region=Region(region, threshold),
            colormap=self.colormap,
            title=title,
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

    def _require(self) -> Probes:
        if self._probes is None:
            raise RuntimeError("no images were chosen yet")
        return self._probes

    def _write(self, picture: Image.Image, name: str) -> None:
        if self.folder is not None:
            write_whole(self.folder / name, encoded(picture, "png"))


def _frame(epoch: int, name: str) -> str:
    return f"epoch_{epoch:03d}/{name}.png"


def _strip(name: str) -> str:
    return f"strips/{name}.png"
