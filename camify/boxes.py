"""How maps become boxes: the rule that a network carries, and the only code that finds regions and their boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import CheckpointError, ConfigError
from .maps import MAP_KINDS, class_maps, select, upsample
from .normalizers import check_normalizer, normalize_maps

__all__ = [
    "DEFAULT_RULE", "OTSU", "BoxRule", "component_boxes", "filled_pixels", "largest_boxes", "otsu_thresholds",
    "percentile", "percentile_of_sorted",
]  # fmt: skip

OTSU: Literal["otsu"] = "otsu"
"""In place of a threshold: each map has its own, see ``otsu_thresholds``."""
_SOURCES = ("boxes", "mosaics", "otsu", "default")
_REGIONS = ("largest", "all")
_LEAST = 0.01  # of the image's pixels, of a region beside the largest


@dataclass(frozen=True)
class BoxRule:
    """A box is the tight one around the largest region of a map, normalized, that reaches the threshold.

    ``camify.choose_box_rule`` chooses one.

    Attributes:
        normalizer: see ``camify.normalizers``.
        percentile: of the normalizer, None where it has none.
        threshold: in [0, 1], or ``"otsu"``: of each map the one that parts its pixels best (Otsu 1979).
        kind: of the maps that are cut, see ``camify.maps.map_weight``.
        clamp_weights: the map is made of the positive weights of the classifier only (Bae et al. 2020, section 3.2).
        flip: the map is the mean of the image's and of the mirrored image's, mirrored back: a second forward.
        map_stride: pixels of the image per cell of the map, where that is finer than the network's own: the same
            weights with strides as dilations, another forward. None: the network's own.
        regions: ``"largest"``: one box; ``"all"``: a box for each region of at least 1 % of the image, the largest
            first.
        source: what it was chosen on: ``"boxes"``; ``"otsu"``: there were none; ``"default"``: nothing; of former
            versions ``"mosaics"``.
        count: images that it was chosen on.
        accuracy: share of them that get the right box (IoU 0.5), cross-validated: by the rule that others choose. Of
            former versions: by the rule chosen on all of them.

    Raises:
        ConfigError: a field has a value that cannot work.
    """

    normalizer: str = "minmax"
    percentile: float | None = None
    threshold: float | Literal["otsu"] = 0.5
    kind: str = "plain"
    clamp_weights: bool = False
    flip: bool = False
    map_stride: int | None = None
    regions: str = "largest"
    source: str = "boxes"
    count: int = 0
    accuracy: float | None = None

    def __post_init__(self) -> None:
        check_normalizer(self.normalizer, self.percentile)
        works = {
            "threshold": self.threshold == OTSU if isinstance(self.threshold, str) else _is_share(self.threshold),
            "kind": self.kind in MAP_KINDS,
            "clamp_weights": isinstance(self.clamp_weights, bool),
            "flip": isinstance(self.flip, bool),
            "map_stride": self.map_stride is None or (type(self.map_stride) is int and self.map_stride > 0),
            "regions": self.regions in _REGIONS,
            "source": self.source in _SOURCES,
            "count": type(self.count) is int and self.count >= 0,
            "accuracy": self.accuracy is None or _is_share(self.accuracy),
        }
        for name, is_right in works.items():
            if not is_right:
                raise ConfigError(f"BoxRule: {name}={str(getattr(self, name))[:80]!r} cannot work.")

    def maps(self, features_NCHW: Tensor, weight_KC: Tensor, classes_N: Tensor) -> Tensor:
        """Raw maps (N, h, w) of one class per image; features (``camify.box_features``) and weights are the rule's."""
        return select(class_maps(features_NCHW, self.weight(weight_KC)), classes_N)

    def weight(self, weight_KC: Tensor) -> Tensor:
        """Weights of the rule's kind as its maps take them."""
        return weight_KC.clamp(min=0) if self.clamp_weights else weight_KC

    def boxes(self, maps_NHW: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """The boxes (n, 4) of each map, xyxy pixels of the image, exclusive; (0, 4) where a map shows nothing."""
        masks = self.masks(maps_NHW, size).cpu().numpy()
        return [torch.from_numpy(self.mask_boxes(mask)).to(torch.float32) for mask in masks]

    def masks(self, maps_NHW: Tensor, size: tuple[int, int]) -> Tensor:
        """The pixels (N, H, W), bool, of images of that size that reach the threshold; none of a map without heat."""
        heat = normalize_maps(upsample(maps_NHW.float(), size), self.normalizer, self.percentile)
        return self.cut(heat)

    def cut(self, heat_NHW: Tensor) -> Tensor:
        """The pixels (N, H, W), bool, of heat in [0, 1] that reach the threshold; tensor steps alone."""
        threshold = otsu_thresholds(heat_NHW) if isinstance(self.threshold, str) else self.threshold
        return (heat_NHW >= threshold) & (heat_NHW.amax((1, 2), keepdim=True) > 0)

    def mask_boxes(self, mask_HW: np.ndarray) -> np.ndarray:
        """The boxes (n, 4) of the pixels that reach the threshold, the largest region's first."""
        return component_boxes(mask_HW, largest=True) if self.regions == "largest" else _sizable_boxes(mask_HW)

    @property
    def threshold_text(self) -> str:
        """The threshold, in words for a legend."""
        return "Otsu's threshold" if isinstance(self.threshold, str) else f"threshold {self.threshold:.2f}"

    def __str__(self) -> str:
        kind = "" if self.kind == "plain" else f"{self.kind} map, "
        share = "" if self.percentile is None else f" {self.percentile:g}"
        clamp = " of positive weights" if self.clamp_weights else ""
        threshold = "Otsu's threshold" if isinstance(self.threshold, str) else f"{self.threshold:g}"
        more = [
            *([f"map stride {self.map_stride}"] if self.map_stride is not None else []),
            *(["with the mirrored image"] if self.flip else []),
            *(["every region"] if self.regions == "all" else []),
        ]
        chosen = {"default": "the default", "otsu": "the network's rule, no boxes were there to choose it on"}
        source = chosen.get(self.source, f"the network's rule, from {self.source}")
        return f"{kind}{self.normalizer}{share}{clamp} >= {', '.join([threshold, *more])} ({source})"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BoxRule:
        """The rule of a checkpoint; fields that came later are what they were without them.

        Raises:
            CheckpointError: a field has a value that cannot work.
        """
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{key: value for key, value in data.items() if key in known})
        except (TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"box_rule: a field has a value that cannot work ({error}).") from error


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


DEFAULT_RULE = BoxRule("pas", 90.0, OTSU, source="default")
"""Where no box was ever there to choose a rule on.

With four networks and real photographs it gave 51 to 59 % right boxes (IoU 0.5), Otsu's threshold of min-max
normalized maps 41 to 57 %, and the best of all normalizers and thresholds, chosen on 20 images with boxes, 44 to 54 %.
"""


# ---------------------------------------------------------------- regions


def component_boxes(mask_HW: np.ndarray, *, largest: bool = False) -> np.ndarray:
    """Tight boxes (n, 4), xyxy pixels, exclusive, of a mask's 8-connected components; (0, 4) if it is empty.

    With ``largest`` only that of the component of most pixels, those of its holes included; the topmost, then
    leftmost box wins a tie.
    """
    outer, boxes = _components(mask_HW)
    return boxes[_by_size(outer, boxes)[:1]] if largest and len(outer) > 1 else boxes


def _sizable_boxes(mask_HW: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) of the components that are the largest or not small, the largest first."""
    outer, boxes = _components(mask_HW)
    order = _by_size(outer, boxes)
    return boxes[[i for i in order if i == order[0] or filled_pixels(outer[i]) >= _LEAST * mask_HW.size]]


def _components(mask_HW: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Outer borders of a mask's components, and their boxes (n, 4)."""
    outlines, hierarchy = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return [], np.zeros((0, 4), dtype=np.int64)
    # Level 1 of RETR_CCOMP (no parent) are the outer borders of all components, also of those inside holes.
    outer = [outline for outline, (*_, parent) in zip(outlines, hierarchy[0], strict=True) if parent < 0]
    boxes = np.array([cv2.boundingRect(outline) for outline in outer])
    boxes[:, 2:] += boxes[:, :2]
    return outer, boxes


def _by_size(outer: list[np.ndarray], boxes: np.ndarray) -> list[int]:
    """The places of components, the largest first."""
    keys = [(-filled_pixels(outline), y, x) for outline, (x, y, *_) in zip(outer, boxes, strict=True)]
    return sorted(range(len(outer)), key=keys.__getitem__)


def filled_pixels(outline: np.ndarray) -> float:
    """Pixels of a component, those of its holes included, by Pick's theorem on its border.

    Args:
        outline: all pixels of the outer border, as ``cv2.findContours`` gives them.

    Example:
        >>> filled_pixels(np.array([[[0, 0]], [[0, 1]], [[1, 1]], [[1, 0]]]))
        4.0
    """
    return cv2.contourArea(outline) + len(outline) / 2 + 1


# ---------------------------------------------------------------- the same as tensor steps, for exported graphs


def otsu_thresholds(heat_NHW: Tensor) -> Tensor:
    """Of each heat in [0, 1] the threshold (N, 1, 1) that parts its pixels best, at 256 levels.

    Otsu 1979, "A threshold selection method from gray-level histograms": the variance between the means of the two
    parts is largest. The first of equals.

    Example:
        >>> otsu_thresholds(torch.tensor([[[0.0, 0.2, 0.8, 1.0]]])) * 255  # between the levels 51 and 52
        tensor([[[51.5000]]])
    """
    levels = (heat_NHW.flatten(1) * 255 + 0.5).floor()
    none = torch.zeros_like(levels[:, :1]).expand(-1, 256)  # a size as a number would fix the batch of a graph
    counts = none.scatter_add(1, levels.long(), torch.ones_like(levels))
    below = counts.cumsum(1)
    sums = (counts * torch.arange(256, device=counts.device, dtype=counts.dtype)).cumsum(1)
    above, rest = below[:, -1:] - below, sums[:, -1:] - sums
    parted = (below > 0) & (above > 0)
    distance = sums / torch.where(parted, below, 1) - rest / torch.where(parted, above, 1)
    between = torch.where(parted, below / below[:, -1:] * above * distance * distance, 0)
    return (between.argmax(1)[:, None, None] + 0.5) / 255


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
    return percentile_of_sorted(maps_NHW.flatten(1).sort(dim=1).values, share)


def percentile_of_sorted(values: Tensor, share: float) -> Tensor:
    """``percentile`` of values (N, L) in order."""
    last = torch.ones_like(values[:1]).sum(1, keepdim=True) - 1
    place = last * (share / 100)
    low = place.floor()
    below, above = (
        values.gather(1, at.long().expand(values.shape[0], 1)) for at in (low, torch.minimum(low + 1, last))
    )
    return (below + (above - below) * (place - low))[:, :, None]
