"""Pictures to experiment loggers: one small table of logger types."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

__all__ = ["log_picture"]


def _tensorboard(logger: TensorBoardLogger, key: str, picture: Image.Image, step: int) -> None:
    logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")


def _nothing(logger: Logger, key: str, picture: Image.Image, step: int) -> None:
    """CSV files hold no pictures; they lie on disk anyway."""


_WRITERS: dict[type[Logger], Callable[..., None]] = {TensorBoardLogger: _tensorboard, CSVLogger: _nothing}


def log_picture(loggers: Iterable[Logger], key: str, picture: Image.Image, step: int) -> list[str]:
    """Offer a picture to every logger; returns the names of the types that take none."""
    unknown = []
    for logger in loggers:
        writer = next((write for kind, write in _WRITERS.items() if isinstance(logger, kind)), None)
        if writer is None:
            unknown.append(type(logger).__name__)
        else:
            writer(logger, key, picture, step)
    return unknown
