"""Class activation maps as tensors: from features to maps, heat and boxes. Pure functions.

The order of steps is fixed in one place: raw signed map -> (ReLU) -> upsampled -> normalised once.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["class_maps", "identity_error", "largest_box", "normalize", "select", "upsample"]


def class_maps(features_NCHW: Tensor, weight_KC: Tensor) -> Tensor:
    """Class activation maps of all classes, M_k(x, y) = sum_c w_kc f_c(x, y), shape (N, K, h, w).

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", eq. 2. No ReLU and no
    bias: with global average pooling ``mean(M_k) + b_k`` is the logit of class k.

    Args:
        features_NCHW: last spatial map, (N, C, h, w).
        weight_KC: weights of the linear classifier, (K, C).
    """
    return F.conv2d(features_NCHW, weight_KC[:, :, None, None])


def identity_error(logits_NK: Tensor, maps_NKHW: Tensor, bias_K: Tensor) -> float:
    """Largest ``|mean(map) + bias - logit|`` relative to the largest logit; 0.0 is a perfect identity.

    Returns NaN where logits or maps hold NaN, so that a broken network can never pass a check.
    """
    logits, maps = logits_NK.detach().double(), maps_NKHW.detach().double()
    error = (maps.mean((-2, -1)) + bias_K.detach().double() - logits).abs().max()
    return float(error / logits.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def select(maps_NKHW: Tensor, classes_N: Tensor) -> Tensor:
    """The map of one class per image, (N, h, w)."""
    return maps_NKHW[torch.arange(len(maps_NKHW), device=maps_NKHW.device), classes_N]


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., h, w) at image size (..., H, W): bilinear with half-pixel centres."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    big = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return big.reshape(*maps.shape[:-2], *size)


def normalize(maps: Tensor) -> Tensor:
    """Each map (..., H, W) scaled to [0, 1] by its own minimum and maximum; a constant map gives zeros."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1), torch.zeros_like(maps))


def largest_box(heat_HW: Tensor | np.ndarray, threshold: float) -> tuple[int, int, int, int] | None:
    """Tightest box (x0, y0, x1, y1), pixels, exclusive, of the largest component of ``heat >= threshold``.

    Components are 8-connected and measured in pixels; the first in reading order wins a tie. None where
    no pixel reaches the threshold.
    """
    heat = heat_HW.detach().cpu().numpy() if isinstance(heat_HW, Tensor) else heat_HW
    _, _, stats, _ = cv2.connectedComponentsWithStats((heat >= threshold).astype(np.uint8), connectivity=8)
    if len(stats) < 2:  # row 0 is the background
        return None
    x, y, width, height, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())]
    return int(x), int(y), int(x + width), int(y + height)
