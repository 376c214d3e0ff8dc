"""Class activation maps as tensors: from features to maps, heat and boxes. Pure functions.

The order of steps is fixed in one place: raw signed map -> (ReLU) -> upsampled -> normalised once.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["class_maps", "component_boxes", "identity_error", "normalize", "select", "upsample"]


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
    """Each map (..., H, W) scaled to [0, 1] by its own minimum and maximum; a constant map gives zeros.

    A map that differs by no more than the rounding of ``upsample`` counts as constant.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    varies = span > 4 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    return torch.where(varies, (maps - low) / torch.where(varies, span, 1), torch.zeros_like(maps))


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
