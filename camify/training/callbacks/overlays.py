"""CAMOverlayLogger: after every epoch, where the network looks, on the same few images."""

# ruff: noqa: ARG002 - Lightning's signatures

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib import colormaps
from pytorch_lightning.utilities import rank_zero_deprecation, rank_zero_warn
from torch import Tensor

from ...batch import Batch
from ...boxes import BoxRule
from ...console import shown
from ...data.counts import require_counts
from ...errors import ConfigError
from ...former_names import with_current_keys
from ...methods import find_method
from ...model import CAMNet
from ...normalizers import Normalizer
from ..loaders import indexed, is_dry_run
from ..run_folder import run_folder
from .highlights import DrawnHighlight, Highlights
from .image_loggers import ImageLog, Offer
from .overlay_files import OverlayFiles, highlight_entry
from .watched_images import Observation, WatchedImages, observe_watched, read_watched, watched_by_name
from .worker import Background

__all__ = ["CAMOverlayLogger"]

_OFFERS = 4  # pictures for the loggers after a batch: TensorBoard lets who has more than 10 wait


class CAMOverlayLogger(pl.Callback):
    """Draws the class activation maps of a fixed set of validation images after every epoch.

    Per image and epoch one picture (image with ground-truth box, map of the predicted and of the true class,
    probability, raw scale), and per image one strip over all epochs. Written to ``overlays/`` in the run's
    folder first, then offered to every logger that takes pictures. The color scale of an image is the largest map
    value it has had in any epoch; when training ends all its pictures are drawn again on the final scale, so that
    they compare, and the strips together (``overlays/sheet.png``) and as animations (``overlays/animations/``).

    Beside them, per epoch, the validation images that are worth a look: the most confident mistakes, those whose
    evidence lies beside the object, where boxes are known, and those whose map changed most since the epoch before
    (each on its own scale; of what the first process saw).

    Drawn and written is beside training, in a thread of its own, and at the latest when training ends or is stopped;
    a run that was killed meanwhile draws it when it goes on. Drawing never stops training: the first failure is
    reported once.

    Args:
        num_images: images to watch, spread over the classes.
        seed: another seed watches others.
        colormap: name in ``matplotlib.colormaps``; ``"jet"`` is the literature's.
        every_n_epochs: draw in every n-th epoch only.
        method: explanation method by name (see ``camify.explain``); ``"cam"`` costs nothing extra. Of several, which
            share one forward, the first one's pictures lie in the places named above, those of another in folders
            with its name; ``report.html`` switches between them.
        images: watch these validation images, by path or the end of it, instead of ``num_images``.
        num_highlights: images that are worth a look, of each kind; 0: none.
        num_finds: the former name of ``num_highlights``.

    Raises:
        ConfigError: a method, an image or a colormap is unknown, no method is named, or a count is out of range.
    """

    def __init__(
        self,
        num_images: int = 12,
        seed: int = 0,
        colormap: str = "inferno",
        every_n_epochs: int = 1,
        method: str | list[str] = "cam",
        images: list[str] | None = None,
        num_highlights: int = 4,
        num_finds: int | None = None,
    ) -> None:
        if num_finds is not None:
            rank_zero_deprecation("CAMOverlayLogger: num_finds is called num_highlights now.")
            num_highlights = num_finds
        self.methods = [method] if isinstance(method, str) else list(dict.fromkeys(method))
        if not self.methods:
            raise ConfigError("method=[]: name at least one.")
        for name in self.methods:
            find_method(name)
        require_counts(least=0 if images else 1, num_images=num_images)
        require_counts(least=1, every_n_epochs=every_n_epochs)
        require_counts(least=0, seed=seed, num_highlights=num_highlights)
        if colormap not in colormaps:
            raise ConfigError(f"colormap={colormap!r}: matplotlib has none of that name. Try inferno, viridis or jet.")
        self.num_images, self.seed = num_images, seed
        self.colormap, self.every_n_epochs = colormap, every_n_epochs
        self.history: dict[int, Observation] = {}  # by epoch
        self.class_names: list[str] = []
        self.images, self.highlights = images or [], Highlights(num_highlights)
        self.folder = Path()
        self._watched: WatchedImages | None = None
        self._entries: list[dict[str, Any]] = []  # of all epochs, as the index has them
        self._drawing: Future[list[Offer]] | None = None
        self._drawn: deque[Offer] = deque()  # and is not offered to the loggers yet
        self._undrawn: dict[str, Any] = {}  # what these two are: epoch, step and highlights
        self._methods_before = self.methods
        self._failed = False
        self._log = ImageLog()
        self._normalizer = Normalizer(BoxRule.normalizer)

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The maps so far, and what is being drawn: after resuming, strips go on where they stopped."""
        return {"history": self.history, "found": self._entries, "methods": self.methods, "undrawn": self._undrawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the maps of an interrupted run; one that knew a single method has them without its name."""
        self._methods_before = list(state_dict.get("methods", self.methods[:1]))
        self._entries, self._undrawn = list(state_dict["found"]), with_current_keys(dict(state_dict.get("undrawn", {})))
        history: dict[int, Any] = dict(state_dict["history"])
        for epoch, seen in history.items():
            if isinstance(seen["maps"], Tensor):
                history[epoch] = {**seen, "maps": {self._methods_before[0]: seen["maps"]}}
        self.history = history

    # ------------------------------------------------------------ hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse names of images that are none."""
        if self.images:
            watched_by_name(indexed(trainer.val_dataloaders).dataset, self.images)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch, look at the watched images: with the weights that are validated, averaged or not."""
        network: CAMNet | None = getattr(pl_module, "cam_net", None)
        if batch_idx == 0 and dataloader_idx == 0 and network is not None and self._has_turn(trainer):
            self.highlights.begin()
            self._attempt(self._look, trainer, pl_module, network)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Look for images that are worth a look among those of the batch."""
        seen = outputs.get("seen") if isinstance(outputs, Mapping) else None
        if self.highlights.count and dataloader_idx == 0 and seen is not None and self._has_turn(trainer):
            self._attempt(self.highlights.update, seen, Batch.of(batch))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, unless this is the sanity check, a dry run or not the turn of this epoch."""
        if getattr(pl_module, "cam_net", None) is not None and self._has_turn(trainer):
            self._attempt(self._draw_epoch, trainer, pl_module)

    def _has_turn(self, trainer: pl.Trainer) -> bool:
        skip = trainer.sanity_checking or is_dry_run(trainer) or not trainer.is_global_zero
        return not skip and trainer.state.fn == "fit" and trainer.current_epoch % self.every_n_epochs == 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Offer what was drawn meanwhile to the loggers: few of them can be called from several threads."""
        if self._drawing is not None and self._drawing.done():
            self._attempt(self._take_drawn)
        self._attempt(self._offer, trainer, _OFFERS)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw all epochs again on the final color scale."""
        self._attempt(self._collect, trainer)
        if trainer.is_global_zero and self._watched is not None:
            self._attempt(self._pictures().write_all)
        Background.of(trainer).finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Wait until everything is drawn."""
        self._attempt(self._collect, trainer)
        Background.of(trainer).finish()

    def _attempt(self, draw: Any, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            draw(*arguments)
        except Exception as error:  # noqa: BLE001 - pictures never stop training
            self._failed, self._drawing = True, None
            rank_zero_warn(shown(f"Overlays are off from here on: {type(error).__name__}: {error}. Training goes on."))

    # ------------------------------------------------------------ drawing

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, network: CAMNet) -> None:
        self._normalizer = getattr(pl_module, "normalizer", self._normalizer)
        if self._watched is None:
            self._watched = read_watched(trainer, network, self.num_images, self.seed, self.images)
            self.folder = run_folder(trainer) / "overlays"
            self.class_names = network.classes.titles(network.num_classes)
            channels = self._watched.batch.images.shape[1]
            if channels not in (1, 3):
                shown_channels = "first three" if channels > 3 else "first, in gray,"
                rank_zero_warn(f"Overlays show the {shown_channels} of the images' {channels} channels.")
            if self.history:
                self._catch_up(trainer)
        with trainer.precision_plugin.forward_context():
            observation = observe_watched(network, self.methods, self._watched.batch, pl_module.device)
        self.history[trainer.current_epoch] = observation

    def _catch_up(self, trainer: pl.Trainer) -> None:
        """Draw what the interrupted run has looked at and not drawn, or drawn by other methods."""
        pictures, undrawn = self._pictures(), self._undrawn
        epochs = sorted(self.history) if self._methods_before != self.methods else pictures.missing()
        highlights = [DrawnHighlight(**highlight) for highlight in undrawn.get("highlights", [])]
        self._hand_over(trainer, {epoch: [] for epoch in epochs} | ({undrawn["epoch"]: highlights} if undrawn else {}))

    def _draw_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, network = trainer.current_epoch, pl_module.model
        best = trainer.callback_metrics.get("val/best_threshold", torch.tensor(torch.nan, dtype=torch.float32))
        self.history[epoch]["threshold"] = best.detach().float().cpu()
        highlights = self.highlights.pictures(network) if self.highlights.count else []  # type: ignore[arg-type]  # see the hook
        self._entries = [entry for entry in self._entries if entry["epoch"] != epoch]  # of an epoch that is done again
        self._entries += [highlight_entry(epoch, highlight, self.class_names) for highlight in highlights]
        self._collect(trainer)  # what is older than one epoch has been drawn
        self._undrawn = {
            "epoch": epoch,
            "step": trainer.global_step,
            "highlights": [asdict(highlight) for highlight in highlights],
        }
        self._hand_over(trainer, {epoch: highlights})

    def _hand_over(self, trainer: pl.Trainer, highlights_by_epoch: Mapping[int, Sequence[DrawnHighlight]]) -> None:
        self._drawing = Background.of(trainer).start(
            partial(_draw, self._pictures(), highlights_by_epoch, list(self._entries))
        )

    def _collect(self, trainer: pl.Trainer) -> None:
        """Wait for what is being drawn, and offer all of it to the loggers."""
        self._take_drawn()
        self._offer(trainer, len(self._drawn))

    def _take_drawn(self) -> None:
        if self._drawing is not None:
            self._drawn.extend(self._drawing.result())
            self._drawing = None

    def _offer(self, trainer: pl.Trainer, count: int) -> None:
        for _ in range(min(count, len(self._drawn))):
            self._log.offer(trainer.loggers, self._drawn.popleft(), self._undrawn.get("step", trainer.global_step))
            if not self._drawn:
                self._undrawn = {}

    def _pictures(self) -> OverlayFiles:
        if self._watched is None:
            raise RuntimeError("no images were chosen yet")
        return OverlayFiles(
            self.folder, self._watched, self.class_names, self.methods, dict(self.history), self.colormap,
            self._normalizer,
        )  # fmt: skip


def _draw(
    pictures: OverlayFiles,
    highlights_by_epoch: Mapping[int, Sequence[DrawnHighlight]],
    entries: Sequence[Mapping[str, Any]],
) -> list[Offer]:
    """Write the pictures of some epochs, then the index; those of the last one are for the loggers."""
    offers: list[Offer] = []
    for epoch, highlights in sorted(highlights_by_epoch.items()):
        offers = pictures.write_epoch(epoch, highlights)
    pictures.write_index(entries)
    return offers
