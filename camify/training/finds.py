"""The validation images of an epoch that are worth a look: confident mistakes, maps beside the object, changed maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..maps import select, upsample
from ..metrics.functional import box_masks, drift, energy_share

__all__ = ["FIND_KINDS", "Find", "Finds"]

FIND_KINDS = ("mistakes", "beside", "changed")
_MOST_MAPS = 4096  # of the epoch before that are kept: some hundred kB


@dataclass(frozen=True)
class Find:
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
    """

    score: float
    name: str
    image: Tensor
    classes: tuple[int, int]
    maps: Tensor
    logits: Tensor
    probabilities: Tensor
    boxes: Tensor | None


@dataclass
class Finds:
    """Collects, batch by batch, the ``count`` most telling images of each kind; what is kept does not grow.

    Attributes:
        count: images of each kind.
        kept: by kind, the most telling first.
        before: maps (n, h, w) of the first images in the epoch before, in the order of validation.
    """

    count: int
    kept: dict[str, list[Find]] = field(default_factory=dict)
    before: Tensor | None = None
    _now: list[Tensor] = field(default_factory=list)
    _seen: int = 0

    def begin(self) -> None:
        """A new epoch."""
        self.kept = {kind: [] for kind in FIND_KINDS}
        self._now, self._seen = [], 0

    def end(self) -> dict[str, list[Find]]:
        """What was found; the maps of this epoch are those before the next one."""
        self.before = torch.cat(self._now) if self._now else None
        self._now = []
        return {kind: found for kind, found in self.kept.items() if found}

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor, logits: Tensor, maps: Tensor, known: Mapping[str, Any]) -> None:
        """Look through a batch.

        Args:
            images: (N, C, H, W).
            labels: (N,).
            logits: (N, K).
            maps: raw maps (N, K, h, w).
            known: else of the batch: ``boxes``, a list of (n, 4), and ``path``, where there are such.
        """
        probabilities = logits.float().softmax(1)
        highest, predicted = probabilities.max(1)
        own = select(maps, labels).float()
        scores = {"mistakes": torch.where(predicted != labels, highest, torch.nan)}
        if "boxes" in known:
            boxes = [found.cpu() for found in known["boxes"]]
            height, width = images.shape[-2:]
            masks = box_masks(boxes, height, width).to(own.device)
            beside = 1 - energy_share(upsample(own, (height, width)), masks)
            scores["beside"] = torch.where(masks.flatten(1).any(1), beside, torch.nan)
        first, last = self._seen, self._seen + len(labels)
        self._seen = last
        if last <= _MOST_MAPS:
            kept = own.cpu()
            if self.before is not None and last <= len(self.before) and kept.shape[1:] == self.before.shape[1:]:
                scores["changed"] = drift(kept, self.before[first:last])
            self._now.append(kept)
        for kind, values in scores.items():
            self._keep(kind, values.cpu(), first, images, labels, predicted, logits, maps, probabilities, known)

    def _keep(
        self, kind: str, scores: Tensor, first: int, images: Tensor, labels: Tensor, predicted: Tensor, logits: Tensor,
        maps: Tensor, probabilities: Tensor, known: Mapping[str, Any],
    ) -> None:  # fmt: skip
        kept = self.kept.setdefault(kind, [])
        for index in scores.nan_to_num(-1).argsort(descending=True)[: self.count].tolist():
            score = float(scores[index])
            if not score > 0 or (len(kept) == self.count and score <= kept[-1].score):
                break
            pair = torch.stack([predicted[index], labels[index]])
            kept.append(
                Find(
                    score,
                    _name(known.get("path"), index, first),
                    images[index].float().cpu(),
                    (int(pair[0]), int(pair[1])),
                    maps[index, pair].float().cpu(),
                    logits[index, pair].float().cpu(),
                    probabilities[index, pair].cpu(),
                    known["boxes"][index].cpu() if "boxes" in known else None,
                )
            )
            kept.sort(key=lambda find: -find.score)
            del kept[self.count :]


def _name(paths: Sequence[str] | None, index: int, first: int) -> str:
    return Path(paths[index]).stem if paths is not None else str(first + index)
