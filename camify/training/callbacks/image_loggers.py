"""Pictures to experiment loggers: one small table of logger types."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_warn

from ...console import shown
from ...image_files import open_image

__all__ = ["TABLES", "WRITERS", "ImageLog", "Offer", "offer_confusions"]

_CORNERS = ("minX", "minY", "maxX", "maxY")  # as W&B names them


class Offer(NamedTuple):
    """A picture for loggers.

    Attributes:
        key: such as ``"overlays/00_cat"``.
        png: the encoded picture.
        boxes: by what they show, xyxy in pixels of the picture; drawn into it already, and offered to loggers that can
            show and hide them.
    """

    key: str
    png: bytes
    boxes: Mapping[str, Sequence[Sequence[float]]] = {}


def _tensorboard(logger: Any, offer: Offer, step: int) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]  # slow to import

    size = _picture(offer)  # reads the header only
    image = Summary.Image(encoded_image_string=offer.png, width=size.width, height=size.height, colorspace=3)
    # Not `add_image`, which would encode the picture again, for longer than it takes to draw it.
    logger.experiment.file_writer.add_summary(Summary(value=[Summary.Value(tag=offer.key, image=image)]), step)


def _wandb(logger: Any, offer: Offer, step: int) -> None:
    boxes = {
        name.replace(" ", "_"): {
            "box_data": [
                {"position": dict(zip(_CORNERS, map(float, box), strict=True)), "domain": "pixel", "class_id": kind}
                for box in boxes_of_kind
            ],
            "class_labels": {kind: name},
        }
        for kind, (name, boxes_of_kind) in enumerate(offer.boxes.items())
    }
    logger.log_image(offer.key, [_picture(offer)], step=step, **({"boxes": [boxes]} if boxes else {}))


def _mlflow(logger: Any, offer: Offer, step: int) -> None:
    logger.experiment.log_image(logger.run_id, _picture(offer), key=offer.key, step=step)


def _comet(logger: Any, offer: Offer, step: int) -> None:
    logger.experiment.log_image(_picture(offer), name=offer.key, step=step)


def _trackio(logger: Any, offer: Offer, step: int) -> None:
    logger.log_image(offer.key, [_picture(offer)], step=step)


def _aim(logger: Any, offer: Offer, step: int) -> None:
    from aim import Image as AimImage  # type: ignore[import-not-found]  # who has such a logger has it

    logger.experiment.track(AimImage(_picture(offer)), name=offer.key, step=step)


def _picture(offer: Offer) -> Image.Image:
    return open_image(io.BytesIO(offer.png))


def _nothing(logger: Any, offer: Offer, step: int) -> None:
    """CSV files hold no pictures; they lie on disk anyway."""


WRITERS: dict[str, Callable[[Any, Offer, int], None]] = {
    "TensorBoardLogger": _tensorboard,
    "WandbLogger": _wandb,
    "MLFlowLogger": _mlflow,
    "CometLogger": _comet,
    "AimLogger": _aim,
    "TrackioLogger": _trackio,
    "CSVLogger": _nothing,
}
"""By the name of the logger's type or one that it inherits from: no logger's package is imported to look."""


def _wandb_table(logger: Any, names: Sequence[str], pairs: Sequence[Sequence[int]], step: int) -> None:
    rows = [[names[true], names[predicted], count] for true, predicted, count in pairs]
    logger.log_table("classes/confusions", columns=["true", "predicted", "images"], data=rows, step=step)


def _comet_matrix(logger: Any, names: Sequence[str], pairs: Sequence[Sequence[int]], step: int) -> None:
    matrix = [[0] * len(names) for _ in names]
    for true, predicted, count in pairs:
        matrix[true][predicted] = count
    logger.experiment.log_confusion_matrix(matrix=matrix, labels=list(names), step=step, max_categories=len(names))


TABLES: dict[str, Callable[[Any, Sequence[str], Sequence[Sequence[int]], int], None]] = {
    "WandbLogger": _wandb_table,
    "CometLogger": _comet_matrix,
}
"""Loggers that show a confusion matrix of their own."""
_MOST_CLASSES = 200  # of such a matrix


def offer_confusions(
    loggers: Iterable[Logger], names: Sequence[str], pairs: Sequence[Sequence[int]], step: int
) -> None:
    """Offer the numbers of a confusion matrix, (true, predicted, images), to the loggers that show one."""
    for logger in loggers if len(names) <= _MOST_CLASSES else ():
        kinds = [kind.__name__ for kind in type(logger).__mro__]
        write = next((TABLES[kind] for kind in kinds if kind in TABLES), None)
        try:
            if write is not None:
                write(logger, names, pairs, step)
        except Exception as error:  # noqa: BLE001 - a logger never stops training
            rank_zero_warn(shown(f"{type(logger).__name__} has no confusion matrix: {type(error).__name__}: {error}."))


class ImageLog:
    """Offers pictures to loggers. One that takes none, or fails, is named once and left alone; nothing is raised."""

    def __init__(self) -> None:
        self._given_up: set[int] = set()

    def offer(self, loggers: Iterable[Logger], offer: Offer, step: int) -> None:
        """Offer a picture at a global step to every logger."""
        for logger in loggers:
            if id(logger) in self._given_up:
                continue
            kinds = [kind.__name__ for kind in type(logger).__mro__]
            writer = next((WRITERS[kind] for kind in kinds if kind in WRITERS), None)
            if writer is None:
                self._give_up(logger, "takes no pictures from camify")
                continue
            try:
                writer(logger, offer, step)
            except Exception as error:  # noqa: BLE001 - a logger never stops training
                self._give_up(logger, f"failed ({type(error).__name__}: {error})")

    def _give_up(self, logger: Logger, why: str) -> None:
        self._given_up.add(id(logger))
        rank_zero_warn(shown(f"{type(logger).__name__} {why}: its pictures are on disk only. Training goes on."))
