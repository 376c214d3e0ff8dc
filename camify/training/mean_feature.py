"""The object map while a run goes on: along the mean feature of the training images, which costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..conversion.object_map import STRENGTH
from ..maps import contrast_maps, select
from ..ranks import current

__all__ = ["MeanFeature", "predicted_contrast"]


class MeanFeature:
    """The mean feature of an epoch's training images, and the object map that it gives while the run goes on.

    Attributes:
        total: sum of the images' mean features (C,) so far; None before the first.
        object_weight: the vector (C,) of the object maps, see ``CAMNet.object_weight``; None before it is known.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.object_weight: Tensor | None = None

    def add(self, features_NCHW: Tensor) -> None:
        """Add a batch's last spatial map."""
        total = features_NCHW.detach().float().mean((2, 3)).sum(0)
        self.total = total if self.total is None else self.total.to(total.device) + total  # no wait for the device

    def begin(self) -> None:
        """Forget what was added: an epoch starts."""
        self.total = None

    @torch.no_grad()
    def settle(self, features_NCHW: Tensor, maps_NHW: Tensor) -> None:
        """Set the object vector along the mean feature, at the strength that it has without boxes.

        Args:
            features_NCHW: of some images, to see how much the shared map varies.
            maps_NHW: of their predicted classes, contrast maps.
        """
        if self.total is None or not float(self.total.norm()) > 0:
            return
        ranks = current()
        ranks.add(self.total)
        direction_C = (self.total / self.total.norm()).to(features_NCHW)
        shared_NHW = torch.einsum("nchw,c->nhw", features_NCHW, direction_C)
        unit = _deviation(maps_NHW) / _deviation(shared_NHW).clamp_min(torch.finfo(torch.float32).tiny)
        self.object_weight = ranks.everywhere((STRENGTH * unit * direction_C).cpu()).to(features_NCHW)


def _deviation(maps_NHW: Tensor) -> Tensor:
    return maps_NHW.float().flatten(1).var(1, correction=0).mean().sqrt()


def predicted_contrast(logits_NK: Tensor, maps_NKHW: Tensor) -> Tensor:
    """The contrast maps (N, h, w) of the predicted classes of K >= 2, from the plain ones."""
    return select(contrast_maps(maps_NKHW), logits_NK.argmax(1))
