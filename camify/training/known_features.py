"""Features of images that a run looks at again and again while they stay frozen: kept by the images' own bytes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..model import CAMNet
from .feature_cache import FrozenPart, run_new_layers

__all__ = ["KnownFeatures"]


class KnownFeatures:
    """The last spatial map of images, from kept features where an image was seen before; see ``CAMNet.known_features``.

    Validation, baselines, the choice of boxes and the pictures all run the same images, epoch after epoch. An image is
    known by a hash of its bytes, so that another one can never be given its features. What is kept is what goes into
    the new layers, on the CPU; when ``limit_gb`` is full, nothing more is.

    Args:
        limit_gb: the most that is kept, 10^9 bytes.
    """

    def __init__(self, limit_gb: float) -> None:
        self._left = limit_gb * 1e9
        self._kept: dict[bytes, Tensor] = {}

    def __deepcopy__(self, memo: object) -> KnownFeatures:
        """A copy of the network has the same frozen features."""
        return self

    def __call__(self, network: CAMNet, images_NCHW: Tensor) -> Tensor:
        """What ``network.features`` gives of images; it is in eval mode, and no gradient is needed."""
        keys = [_key(image) for image in images_NCHW]
        new = [place for place, key in enumerate(keys) if key not in self._kept]
        computed: dict[bytes, Tensor] = {}
        if new:
            kept = FrozenPart(network)(images_NCHW[new])
            computed = {keys[place]: features for place, features in zip(new, kept, strict=True)}
            for key, features in computed.items():
                size = features.numel() * features.element_size()
                if size <= self._left:
                    self._left -= size
                    self._kept[key] = features.clone()
        features_NCHW = torch.stack([self._kept[key] if key in self._kept else computed[key] for key in keys])
        return run_new_layers(network, features_NCHW.to(images_NCHW))


def _key(image_CHW: Tensor) -> bytes:
    plain = image_CHW.detach().contiguous()
    content = plain.view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16
    return hashlib.blake2b(content + f"{tuple(plain.shape)} {plain.dtype}".encode(), digest_size=32).digest()
