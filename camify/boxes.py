"""How maps become boxes: the rule that a network carries, and the only code that finds regions and their boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import CheckpointError
from .maps import MAP_KINDS, class_maps, select, upsample
from .normalizers import normalize_maps

__all__ = ["BoxRule", "component_boxes", "largest_boxes", "percentile"]


@dataclass(frozen=True)
class BoxRule:
    """A box is the tight one around the largest region of a map, normalized, that reaches the threshold.

    Attributes:
        normalizer: see ``camify.normalizers``.
        percentile: of the normalizer, None where it has none.
        threshold: in [0, 1).
        kind: of the maps that are cut, see ``camify.maps.map_weight``.
        clamp_weights: the map is made of the positive weights of the classifier only (Bae et al. 2020, section 3.2).
        source: ``"boxes"``, or ``"mosaics"``: chosen on 2 x 2 mosaics, whose cells stand for boxes; ``"default"``: not
            chosen on any.
        count: images that it was chosen on.
        accuracy: share of them that it gives the right box (IoU 0.5).
    """

    normalizer: str = "minmax"
    percentile: float | None = None
    threshold: float = 0.5
    kind: str = "plain"
    clamp_weights: bool = False
    source: str = "boxes"
    count: int = 0
    accuracy: float | None = None

    def maps(self, features_NCHW: Tensor, weight_KC: Tensor, classes_N: Tensor) -> Tensor:
        """Raw maps (N, h, w) of one class per image; the weights are of the rule's kind."""
        return select(class_maps(features_NCHW, weight_KC.clamp(min=0) if self.clamp_weights else weight_KC), classes_N)

    def boxes(self, maps_NHW: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """One box (1, 4) per map, xyxy pixels of the image, exclusive; (0, 4) where a map shows nothing."""
        masks = self.regions(maps_NHW, size).cpu().numpy()
        return [torch.from_numpy(component_boxes(mask, largest=True)).to(torch.float32) for mask in masks]

    def regions(self, maps_NHW: Tensor, size: tuple[int, int]) -> Tensor:
        """The pixels (N, H, W), bool, of images of that size that reach the threshold; none of a map without heat."""
        heat = normalize_maps(upsample(maps_NHW.float(), size), self.normalizer, self.percentile)
        return (heat >= self.threshold) & (heat.amax((1, 2), keepdim=True) > 0)

    def __str__(self) -> str:
        share = "" if self.percentile is None else f" {self.percentile:g}"
        clamp = " of positive weights" if self.clamp_weights else ""
        chosen = "the default" if self.source == "default" else f"the network's rule, from {self.source}"
        kind = "" if self.kind == "plain" else f"{self.kind} map, "
        return f"{kind}{self.normalizer}{share}{clamp} >= {self.threshold:g} ({chosen})"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BoxRule:
        """The rule of a checkpoint.

        Raises:
            CheckpointError: a field is unknown or has a value that cannot work.
        """
        known = {field.name for field in fields(cls)}
        try:
            rule = cls(**{key: value for key, value in data.items() if key in known})
            normalize_maps(torch.zeros(1, 2, 2, dtype=torch.float32), rule.normalizer, rule.percentile)
            if rule.kind not in MAP_KINDS:
                raise ValueError(f"kind={rule.kind!r}")
            if not 0 <= rule.threshold <= 1:
                raise ValueError(f"threshold={rule.threshold}")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"box_rule: a field has a value that cannot work ({error}).") from error
        return rule


# ---------------------------------------------------------------- regions


def component_boxes(mask_HW: np.ndarray, *, largest: bool = False) -> np.ndarray:
    """Tight boxes (n, 4), xyxy pixels, exclusive, of a mask's 8-connected components; (0, 4) if it is empty.

    With ``largest`` only that of the component of most pixels, those of its holes included; the topmost, then
    leftmost box wins a tie.
    """
    outlines, hierarchy = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return np.zeros((0, 4), dtype=np.int64)
    # Level 1 of RETR_CCOMP (no parent) are the outer borders of all components, also of those inside holes.
    outer = [outline for outline, (*_, parent) in zip(outlines, hierarchy[0], strict=True) if parent < 0]
    boxes = np.array([cv2.boundingRect(outline) for outline in outer])
    boxes[:, 2:] += boxes[:, :2]
    if largest and len(outer) > 1:
        order = [(-_filled_pixels(outline), y, x) for outline, (x, y, *_) in zip(outer, boxes, strict=True)]
        return boxes[[order.index(min(order))]]
    return boxes


def _filled_pixels(outline: np.ndarray) -> float:
    """Pixels of a component without its holes' gaps, by Pick's theorem on its border."""
    return cv2.contourArea(outline) + len(outline) / 2 + 1


# ---------------------------------------------------------------- the same as tensor steps, for exported graphs

ROUNDS = 10
"""Rounds of joining: eight join a path of 13,000 pixels, and noise at its percolation threshold (tests)."""


def largest_boxes(mask_NHW: Tensor) -> Tensor:
    """Boxes (N, 4), xyxy pixels, exclusive, of each mask's largest 8-connected component; zeros if it is empty.

    The largest has most pixels; those of holes do not count, unlike in ``component_boxes``, so that of
    two about equally large ones another may be chosen. The first in reading order wins a tie. Components are joined as
    by Zhang, Azad & Buluc 2020, "FastSV: a distributed-memory connected component algorithm with fast convergence":
    every pixel points to one of higher index, trees are hooked onto neighbors' trees and halved in height.
    """
    count, height, width = mask_NHW.shape
    mask = mask_NHW.reshape(count, height * width)
    parents = torch.arange(height * width, device=mask.device).expand(count, -1)
    for _ in range(ROUNDS):
        grand = torch.where(mask, parents.gather(1, parents), -1).float()
        near = F.max_pool2d(grand.reshape(count, 1, height, width), 3, stride=1, padding=1).reshape(mask.shape).long()
        near = torch.where(mask, near, parents)
        parents = torch.maximum(parents.scatter_reduce(1, parents, near, "amax"), near)
        parents = parents.gather(1, parents)
    sizes = torch.zeros_like(grand).scatter_add(1, parents, mask.float()).gather(1, parents)
    sizes = torch.where(mask, sizes, 0)
    first = (sizes == sizes.amax(1, keepdim=True)).float().argmax(1, keepdim=True)
    chosen = (mask & (parents == parents.gather(1, first))).reshape(count, height, width).float()
    x0, x1 = _span(chosen.amax(1))
    y0, y1 = _span(chosen.amax(2))
    return torch.stack([x0, y0, x1, y1], dim=1)


def _span(hit_NL: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place + 1 of the ones in each row; 0 and 0 where there is none."""
    places = torch.arange(hit_NL.shape[1], device=hit_NL.device, dtype=torch.float32)
    some = hit_NL.amax(1)
    end = (hit_NL * (places + 1)).amax(1)
    start = hit_NL.shape[1] - (hit_NL * (hit_NL.shape[1] - places)).amax(1)
    return start * some, end


def percentile(maps_NHW: Tensor, share: float) -> Tensor:
    """The percentile (0..100) of each map, (N, 1, 1): linear between the two nearest values, as ``torch.quantile``."""
    values = maps_NHW.flatten(1).sort(dim=1).values
    last = torch.ones_like(values[:1]).sum(1, keepdim=True) - 1
    place = last * (share / 100)
    low = place.floor()
    below, above = (
        values.gather(1, at.long().expand(values.shape[0], 1)) for at in (low, torch.minimum(low + 1, last))
    )
    return (below + (above - below) * (place - low))[:, :, None]
