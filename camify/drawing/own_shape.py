"""Pictures in the shape of their files: what a network takes is resized to one size, what is shown is not."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .primitives import drawn_side

__all__ = ["in_shape", "reduced"]


def reduced(image: Tensor, long_side: int) -> Tensor:
    """An image (3, H, W) uint8 whose longer side has at most ``long_side`` pixels; smaller ones stay as they are.

    A panorama keeps up to three times as many (:func:`~camify.drawing.primitives.drawn_side`).
    """
    height, width = image.shape[-2:]
    factor = drawn_side(height, width, long_side) / max(height, width)
    if factor >= 1:
        return image.as_subclass(Tensor)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    pixels = np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).numpy())
    return torch.from_numpy(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)).permute(2, 0, 1)


def in_shape(picture: Tensor, original_size: tuple[int, int] | None) -> Tensor:
    """A picture (3, H, W) in [0, 1] that was resized as a whole, in the shape (height, width) that it had before.

    Its longer side keeps the pixels that it has, so nothing is enlarged. None leaves it as it is.
    """
    height, width = picture.shape[-2:]
    if original_size is None or min(original_size) < 1:
        return picture
    factor = min(height / original_size[0], width / original_size[1])
    size = [max(1, round(side * factor)) for side in original_size]
    if size == [height, width]:
        return picture
    shaped = F.interpolate(picture[None], size, mode="bilinear", align_corners=False, antialias=True)
    return shaped[0].clamp(0, 1)
