"""PredictionTable: what ``train.py predict`` leaves, one line per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from ...console import console
from ...files import numbered, safe_cell, write_whole
from ...task import Classes
from ..run_folder import run_folder

__all__ = ["PredictionTable"]


class PredictionTable(BasePredictionWriter):
    """Writes ``predictions.csv`` (image, class, probability, logit) into the run's folder after predicting.

    Of labels that do not exclude each other the class is the most probable one, and ``present`` lists all of
    probability 0.5 or more.

    A table that lies there is kept: the new one gets the next number.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.rows: list[tuple[Any, ...]] = []
        self.columns: tuple[str, ...] = ()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002 - Lightning's signature
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
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

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Write the table and say where it is."""
        if not self.rows:
            return
        path = _free(run_folder(trainer) / f"predictions{_rank(trainer)}.csv")
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([self.columns, *self.rows])
        write_whole(path, text.getvalue())
        console(soft_wrap=True).print(f"{len(self.rows)} predictions in {path}")
        self.rows = []


def _rank(trainer: pl.Trainer) -> str:
    return f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""


def _free(path: Path) -> Path:
    """The path, or the first one with a number behind its name that does not exist."""
    number, free = 2, path
    while free.exists():
        free, number = numbered(path, number), number + 1
    return free
