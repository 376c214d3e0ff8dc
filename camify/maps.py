"""Class activation maps as tensors: from features to maps and heat. Pure functions.

The order of steps is fixed in one place: raw signed map -> (ReLU) -> upsampled -> normalized once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ConfigError

__all__ = [
    "MAP_KINDS",
    "MapKind",
    "class_maps",
    "contrast_maps",
    "extremes",
    "identity_error",
    "interpolated",
    "map_weight",
    "normalize",
    "normalized_between",
    "select",
    "upsample",
    "weighted_maps",
]

MapKind = Literal["plain", "contrast", "object"]
MAP_KINDS: tuple[str, ...] = get_args(MapKind)
"""See ``map_weight``."""


def map_weight(weight_KC: Tensor, kind: str, object_C: Tensor | None = None, *, exclusive: bool = True) -> Tensor:
    """The weights (K, C) whose maps are of a kind.

    A softmax is unchanged where one vector is added to the weights of all classes: the logits all move by the same
    amount. So what all maps share is free, and the kinds differ in nothing but that.

    - ``"plain"``: the classifier's weights as they are; ``mean(map) + bias`` is the logit.
    - ``"contrast"``: minus their mean over the classes: the maps add up to zero and say why this class and no other.
    - ``"object"``: the contrast weights plus ``object_C``: the maps say where the object is (``fit_object_map``).

    Args:
        weight_KC: of the linear classifier.
        kind: one of ``MAP_KINDS``.
        object_C: the vector that all classes share, of ``"object"``.
        exclusive: the classes exclude each other (softmax). Where they do not, nothing is free: the contrast weights
            are then the plain ones, and the object maps explain no logit.

    Raises:
        ConfigError: the kind is unknown, or there is no object vector.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
        >>> map_weight(weight, "contrast")
        tensor([[-1., -1.],
                [ 1.,  1.]])
        >>> map_weight(weight, "object", torch.tensor([0.5, 0.0]))
        tensor([[-0.5000, -1.0000],
                [ 1.5000,  1.0000]])
    """
    if kind not in MAP_KINDS:
        raise ConfigError(f"kind={kind!r} is unknown. Choose {', '.join(MAP_KINDS)}.")
    if kind == "object" and object_C is None:
        raise ConfigError("kind='object': the network has no object map. Call camify.fit_object_map(model, images).")
    if kind == "plain":
        return weight_KC
    centered = weight_KC - weight_KC.mean(0) if exclusive and len(weight_KC) > 1 else weight_KC
    return centered if object_C is None or kind == "contrast" else centered + object_C.to(centered)


def class_maps(features_NCHW: Tensor, weight_KC: Tensor) -> Tensor:
    """Class activation maps of all classes, M_k(x, y) = sum_c w_kc f_c(x, y), shape (N, K, h, w).

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", eq. 2. No ReLU and no
    bias: with global average pooling ``mean(M_k) + b_k`` is the logit of class k.

    Args:
        features_NCHW: last spatial map, (N, C, h, w).
        weight_KC: weights of the linear classifier, (K, C).
    """
    if features_NCHW.is_cuda:  # convolutions run in TF32 there by default, linear layers do not
        return _class_maps_by_products(features_NCHW, weight_KC)
    return F.conv2d(features_NCHW, weight_KC[:, :, None, None])


def _class_maps_by_products(features_NCHW: Tensor, weight_KC: Tensor) -> Tensor:
    count, _, height, width = features_NCHW.shape
    maps = torch.bmm(weight_KC.expand(count, -1, -1), features_NCHW.flatten(2))
    return maps.reshape(count, len(weight_KC), height, width)


def weighted_maps(activations_NCHW: Tensor, weights_NC: Tensor) -> Tensor:
    """The sum of each image's channels times its own weights, M_n(x, y) = sum_c w_nc A_nc(x, y), shape (N, h, w).

    What most methods end in. A product of matrices takes a fifth of the time of ``einsum``, which turns them around.

    Example:
        >>> weighted_maps(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[1.0, 10.0]]))
        tensor([[[31., 42.]]])
    """
    count, _, height, width = activations_NCHW.shape
    return torch.bmm(weights_NC[:, None], activations_NCHW.flatten(2)).reshape(count, height, width)


def contrast_maps(maps_NKHW: Tensor, *, exclusive: bool = True) -> Tensor:
    """The contrast maps of plain ones, (N, K, h, w): see ``map_weight``."""
    return maps_NKHW - maps_NKHW.mean(1, keepdim=True) if exclusive and maps_NKHW.shape[1] > 1 else maps_NKHW


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
    """Maps (..., h, w) at image size (..., H, W): bilinear with half-pixel centers.

    Maps of few cells are multiplied by the weights of rows and columns on a CPU: the same sums but for rounding, two to
    five times as fast as ``interpolate``.
    """
    is_plain = maps.device.type == "cpu" and maps.dtype == torch.float32 and not torch.compiler.is_compiling()
    return _weighted(maps, size) if is_plain and max(maps.shape[-2:]) <= _FEW_CELLS else interpolated(maps, size)


def interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``upsample`` as one step, of maps of any size: that of exported graphs."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    big = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return big.reshape(*maps.shape[:-2], *size)


_FEW_CELLS = 32


def _weighted(maps: Tensor, size: tuple[int, int]) -> Tensor:
    down, across = (_linear_weights(*sides) for sides in zip(maps.shape[-2:], size, strict=True))
    with torch.autocast("cpu", enabled=False):
        return down @ (maps @ across.T)


@lru_cache(maxsize=16)
def _linear_weights(cells: int, pixels: int) -> Tensor:
    """By how much each cell counts in each pixel of a row, (pixels, cells)."""
    with torch.inference_mode(False), torch.no_grad():
        cell_rows = torch.eye(cells, dtype=torch.float32, device="cpu")[None]
        return F.interpolate(cell_rows, size=pixels, mode="linear", align_corners=False)[0].T.contiguous()


def normalize(maps: Tensor) -> Tensor:
    """Each map (..., H, W) scaled to [0, 1] by its own minimum and maximum; a constant map gives zeros.

    A map that differs by no more than the rounding of ``upsample`` counts as constant.
    """
    return normalized_between(maps, *extremes(maps))


def extremes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value (..., 1, 1) of each map (..., H, W)."""
    return maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)


def normalized_between(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``normalize`` where the ``extremes`` are known."""
    span = high - low
    varies = span > 4 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    # Memory for one more tensor of this size would take longer than all the arithmetic. Constant maps: by 1 / 0.
    return (maps - low).div_(torch.where(varies, span, 1) / varies)
