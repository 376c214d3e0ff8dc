"""The last spatial map that a box rule's maps are made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .boxes import BoxRule
from .graphs.map_stride import finer_map

__all__ = ["box_features"]


def box_features(network: Any, images: Tensor, rule: BoxRule, known: dict[int | None, Tensor] | None = None) -> Tensor:
    """The features (N, C, h, w) of a rule: finer where it says so, and the mean with the mirrored image's.

    Those are mirrored back. Maps are linear in features: the maps of these are the mean of both images' maps.

    Args:
        network: a ``CAMNet`` in eval mode.
        images: (N, 3, H, W).
        rule: whose ``map_stride`` and ``flip`` say so.
        known: features of the images by stride, None: the network's own; what is computed is added.

    Raises:
        ConversionError: the network has no map of the rule's stride.
    """
    stride, known = rule.map_stride, {} if known is None else known

    def run(x: Tensor) -> Tensor:
        features: Tensor = network.forward_features(x) if stride is None else finer_map(network.features, stride, x)
        return features

    if stride not in known:
        known[stride] = run(images)
    return (known[stride] + run(images.flip(-1)).flip(-1)) / 2 if rule.flip else known[stride]
