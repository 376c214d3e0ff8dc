"""The validation images of an epoch that are worth a look: confident mistakes, maps beside the object, changed maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...batch import Batch
from ...drawing.own_shape import in_shape
from ...evaluation.engine import energy_row
from ...metrics.functional import box_masks, resize_boxes
from ...model import CAMNet
from ..cam_metrics import ValidationBatch
from .watched_images import restored_pictures

__all__ = ["HIGHLIGHT_KINDS", "DrawnHighlight", "Highlight", "Highlights"]

HIGHLIGHT_KINDS = ("mistakes", "beside", "changed")


@dataclass(frozen=True)
class Highlight:
    """One image that is worth a look, on the CPU.

    Attributes:
        score: why: the wrong class's probability, the share of evidence beside the object, or the drift.
        name: of its file, or its number.
        image: (C, H, W), as the network takes it.
        classes: predicted and true class.
        maps: their raw maps, (2, h, w).
        logits: theirs, (2,).
        probabilities: theirs, (2,).
        boxes: ground truth, (n, 4) xyxy pixels; None where the data have none.
        original_size: (height, width) of the image before it was resized; None where that is not known.
    """

    score: float
    name: str
    image: Tensor
    classes: tuple[int, int]
    maps: Tensor
    logits: Tensor
    probabilities: Tensor
    boxes: Tensor | None
    original_size: tuple[int, int] | None

    def drawn(self, kind: str, place: int, network: CAMNet) -> DrawnHighlight:
        """With the picture, in its own shape."""
        restored = restored_pictures(self.image[None], network)[0].nan_to_num().clamp(0, 1)
        picture = in_shape(restored, self.original_size)
        shapes = [(one.shape[-2], one.shape[-1]) for one in (self.image, picture)]
        return DrawnHighlight(
            kind, place, (picture * 255).round().to(torch.uint8), self.name, self.classes, self.maps, self.logits,
            self.probabilities, None if self.boxes is None else resize_boxes(self.boxes, shapes[0], shapes[1]),
        )  # fmt: skip


@dataclass(frozen=True)
class DrawnHighlight:
    """A highlight with all that is drawn of it, on the CPU; as a dict it can be kept in a checkpoint.

    Attributes:
        kind: one of ``HIGHLIGHT_KINDS``.
        place: among those of its kind, 0 is the most telling.
        picture: (3, h, w), uint8, in its own shape.
        name, classes, maps, logits, probabilities, boxes: as in ``Highlight``; boxes in pixels of the picture.
    """

    kind: str
    place: int
    picture: Tensor
    name: str
    classes: tuple[int, int]
    maps: Tensor
    logits: Tensor
    probabilities: Tensor
    boxes: Tensor | None

    @property
    def is_wrong(self) -> bool:
        """Whether another class than the true one was predicted."""
        return self.classes[0] != self.classes[1]


class Highlights:
    """Collects, batch by batch, the most telling images of each kind; what is kept does not grow.

    Args:
        count: images of each kind.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: dict[str, list[Highlight]] = {}
        self._seen = 0

    def begin(self) -> None:
        """A new epoch."""
        self.kept, self._seen = {kind: [] for kind in HIGHLIGHT_KINDS}, 0

    def kept_by_kind(self) -> dict[str, list[Highlight]]:
        """By kind what was found, the most telling first."""
        return {kind: highlights for kind, highlights in self.kept.items() if highlights}

    def pictures(self, network: CAMNet) -> list[DrawnHighlight]:
        """All that were found, as they are drawn."""
        return [
            highlight.drawn(kind, place, network)
            for kind, highlights in self.kept_by_kind().items()
            for place, highlight in enumerate(highlights)
        ]

    @torch.no_grad()
    def update(self, seen: ValidationBatch, batch: Batch) -> None:
        """Look through a batch, of which files and original sizes are taken."""
        probabilities = seen.network.classes.probabilities(seen.logits)
        highest, predicted = probabilities.max(1)
        scores = {"mistakes": torch.where(predicted != seen.labels, highest, torch.nan)}
        if seen.boxes is not None:
            scores["beside"] = 1 - energy_row(seen.evidence, box_masks(seen.boxes, *seen.size))
        if seen.drift is not None:
            scores["changed"] = seen.drift
        for kind, values in scores.items():
            self._keep(kind, values.cpu(), seen, predicted, probabilities, batch)
        self._seen += len(seen.labels)

    def _keep(
        self, kind: str, scores: Tensor, seen: ValidationBatch, predicted: Tensor, probabilities: Tensor,
        batch: Batch,
    ) -> None:  # fmt: skip
        kept = self.kept[kind]
        for index in scores.nan_to_num(-1).argsort(descending=True)[: self.count].tolist():
            score = float(scores[index])
            if not score > 0 or (len(kept) == self.count and score <= kept[-1].score):
                break
            pair = torch.stack([predicted[index], seen.labels[index]])
            kept.append(
                Highlight(
                    score,
                    Path(batch.paths[index]).stem if batch.paths is not None else str(self._seen + index),
                    seen.images[index].float().cpu(),
                    (int(pair[0]), int(pair[1])),
                    seen.maps[index, pair].float().cpu(),
                    seen.logits[index, pair].float().cpu(),
                    probabilities[index, pair].cpu(),
                    seen.boxes[index].cpu() if seen.boxes is not None else None,
                    None if batch.original_sizes is None else batch.original_sizes[index],
                )
            )
            kept.sort(key=lambda highlight: -highlight.score)
            del kept[self.count :]
