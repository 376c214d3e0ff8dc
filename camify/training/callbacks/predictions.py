"""PredictionTable: what ``train.py predict`` leaves, one line per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from ...batch import Batch
from ...console import console
from ...data.box_formats.upright import read_image_sizes
from ...data.box_formats.writing import (
    BOX_FILES,
    LOCAL_FILES,
    BoxFiles,
    PredictedBox,
    PredictedImage,
    Predictions,
    relative_names,
    write_box_file,
)
from ...data.boxes_csv import Box
from ...errors import ConfigError
from ...evaluation.explained_folder import model_sha256
from ...files import numbered, safe_cell, write_whole
from ...model import CAMNet
from ...task import Classes
from ..run_folder import run_folder

__all__ = ["PredictionTable"]


class PredictionTable(BasePredictionWriter):
    """Writes ``predictions.csv`` (image, class, probability, logit) into the run's folder after predicting.

    Of labels that do not exclude each other the class is the most probable one, and ``present`` lists all of
    probability 0.5 or more.

    A table that lies there is kept: the new one gets the next number.

    Args:
        boxes: files of boxes for other tools as well, of ``coco``, ``yolo``, ``cvat``, ``labelstudio``: cut by the
            network's rule from the map of the predicted class, in pixels of the file, of data modules that resize the
            whole image.
        image_url_prefix: what stands before an image's name where Label Studio gets it.

    Raises:
        ConfigError: there are no files of that kind.
    """

    def __init__(self, boxes: list[str] | None = None, image_url_prefix: str = LOCAL_FILES) -> None:
        super().__init__(write_interval="batch")
        self.box_files = BoxFiles(tuple(boxes or ()), image_url_prefix)
        self.rows: list[tuple[Any, ...]] = []
        self.columns: tuple[str, ...] = ()
        self.boxes: list[tuple[Path, tuple[PredictedBox, ...]]] = []
        self.class_names: list[str] = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002 - Lightning's signature
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int,  # noqa: ARG002
    ) -> None:
        """Keep the figures of a batch; its maps are let go."""
        classes: Classes = pl_module.classes  # type: ignore[assignment]
        logits = classes.two_sided(prediction["logits"].float())
        chosen, names = prediction["classes"], classes.titles(logits.shape[1])
        probabilities = classes.probabilities(logits)
        first = len(self.rows)
        images = prediction.get("path") or [str(first + index) for index in range(len(logits))]
        for row, (image, k) in enumerate(zip(images, chosen.tolist(), strict=True)):
            figures = (round(float(probabilities[row, k]), 6), round(float(logits[row, k]), 6))
            present = [names[index] for index in (probabilities[row] >= 0.5).nonzero().flatten().tolist()]
            cells = [safe_cell(str(image)), safe_cell(names[k]), *figures]
            self.rows.append((*cells, *([] if classes.task.exclusive else [safe_cell("; ".join(present))])))
        self.columns = ("image", "class", "probability", "logit", *([] if classes.task.exclusive else ["present"]))
        if self.box_files.kinds:
            self._keep_boxes(pl_module, Batch.of(batch), chosen, probabilities, names)

    def _keep_boxes(
        self, module: pl.LightningModule, batch: Batch, chosen: Tensor, probabilities: Tensor, names: Sequence[str]
    ) -> None:
        """Keep the boxes of a batch, in shares of its images.

        Raises:
            ConfigError: the network has no maps, or the batch names no files.
        """
        network: CAMNet | None = module.cam_net  # type: ignore[assignment]
        if network is None or batch.paths is None:
            missing = "the network is not CAM-ready" if network is None else "the data module gives no paths of files"
            raise ConfigError(f"PredictionTable: boxes={list(self.box_files.kinds)} cannot be written: {missing}.")
        height, width = batch.image_size
        boxes = network.predict_boxes(batch.images, chosen)
        for row, (path, k) in enumerate(zip(batch.paths, chosen.tolist(), strict=True)):
            score = float(probabilities[row, k])
            shares = boxes[row].cpu().double() / torch.tensor([width, height] * 2)
            kept = (PredictedBox((x0, y0, x1, y1), names[k], k, score) for x0, y0, x1, y1 in shares.tolist())
            self.boxes.append((Path(path), tuple(kept)))
        self.class_names = list(names)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table and the files of boxes, and say where they are."""
        if not self.rows:
            return
        path = _free(run_folder(trainer) / f"predictions{_rank(trainer)}.csv")
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([self.columns, *self.rows])
        write_whole(path, text.getvalue())
        console(soft_wrap=True).print(f"{len(self.rows)} predictions in {path}")
        self.rows = []
        if self.boxes:
            self._write_boxes(trainer, pl_module)

    def _write_boxes(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        folder, images = run_folder(trainer), list[PredictedImage]()
        paths = [path.resolve() for path, _ in self.boxes]
        sizes = read_image_sizes([path for path, _ in self.boxes])
        for name, (path, boxes) in zip(relative_names(paths), self.boxes, strict=True):
            width, height = sizes[path].upright
            scale = (width, height, width, height)
            scaled = tuple(replace(box, corners=_scaled(box.corners, scale)) for box in boxes)
            images.append(PredictedImage(name, (width, height), scaled))
        network: CAMNet = module.cam_net  # type: ignore[assignment]
        model = f"{folder.resolve().name} {model_sha256(network)[:12]}"
        predictions = Predictions(images, self.class_names, model, self.box_files.url_prefix)
        for kind in self.box_files.kinds:
            file = Path(BOX_FILES[kind][0])
            place = _free(folder / f"{file.stem}{_rank(trainer)}{file.suffix}")
            write_box_file(kind, place, predictions)
            console(soft_wrap=True).print(f"boxes in {place}")
        self.boxes = []


def _scaled(corners: Box, scale: Box) -> Box:
    x0, y0, x1, y1 = (round(value * side, 4) for value, side in zip(corners, scale, strict=True))
    return x0, y0, x1, y1


def _rank(trainer: pl.Trainer) -> str:
    return f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""


def _free(path: Path) -> Path:
    """The path, or the first one with a number behind its name that does not exist."""
    number, free = 2, path
    while free.exists():
        free, number = numbered(path, number), number + 1
    return free
