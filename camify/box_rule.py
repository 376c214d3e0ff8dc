"""How a network's maps become boxes: a normaliser and a threshold, chosen on data and kept with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .maps import class_maps, component_boxes, select, upsample
from .normalizers import normalize_maps

__all__ = ["BoxRule"]


@dataclass(frozen=True)
class BoxRule:
    """A box is the tight one around the largest region of a map, normalised, that reaches the threshold.

    Attributes:
        normalizer: see ``camify.normalizers``.
        percentile: of the normaliser, None where it has none.
        threshold: in [0, 1).
        clamp_weights: the map is made of the positive weights of the classifier only (Bae et al. 2020, section 3.2).
        source: ``"boxes"``, or ``"mosaics"``: chosen on 2 x 2 mosaics, whose cells stand for boxes.
        count: images that it was chosen on.
        accuracy: share of them that it gives the right box (IoU 0.5).
    """

    normalizer: str = "minmax"
    percentile: float | None = None
    threshold: float = 0.5
    clamp_weights: bool = False
    source: str = "boxes"
    count: int = 0
    accuracy: float | None = None

    def maps(self, features_NCHW: Tensor, weight_KC: Tensor, classes_N: Tensor) -> Tensor:
        """Raw maps (N, h, w) of one class per image."""
        return select(class_maps(features_NCHW, weight_KC.clamp(min=0) if self.clamp_weights else weight_KC), classes_N)

    def boxes(self, maps_NHW: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """One box (1, 4) per map, xyxy pixels of the image, exclusive; (0, 4) where a map shows nothing."""
        found = [component_boxes(mask, largest=True) for mask in self.regions(maps_NHW, size).cpu().numpy()]
        return [torch.from_numpy(boxes).to(torch.float32) for boxes in found]

    def regions(self, maps_NHW: Tensor, size: tuple[int, int]) -> Tensor:
        """The pixels (N, H, W), bool, of images of that size that reach the threshold; none of a map without heat."""
        heat = normalize_maps(upsample(maps_NHW.float(), size), self.normalizer, self.percentile)
        return (heat >= self.threshold) & (heat.amax((1, 2), keepdim=True) > 0)

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
            normalize_maps(torch.zeros(1, 2, 2), rule.normalizer, rule.percentile)
            if not 0 <= rule.threshold <= 1:
                raise ValueError(f"threshold={rule.threshold}")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"box_rule: a field has a value that cannot work ({error}).") from error
        return rule
