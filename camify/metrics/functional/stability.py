"""Maps compared with themselves: under flips and shifts, since an epoch ago, and how concentrated they are.

None of these needs boxes or masks. A map may be stable, compact and wrong: they warn, they do not praise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import DataError

__all__ = [
    "area", "correlation", "correlations", "drift", "entropy", "flip_equivariance", "shift_equivariance", "shifted",
    "step_of",
]  # fmt: skip


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation (N,) float64 of two maps' pixels, in -1 ... 1; NaN where one of the two is constant.

    A map that differs by no more than the rounding of its upsampling counts as constant, as in
    ``camify.maps.normalize``.

    Args:
        maps: (N, H, W).
        others: (N, H, W).

    Raises:
        DataError: the shapes differ.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> correlation(maps, 2 * maps + 1).round(), correlation(maps, -maps).round()
        (tensor([1.], dtype=torch.float64), tensor([-1.], dtype=torch.float64))
    """
    if maps.shape != others.shape or maps.dim() != 3:
        raise DataError(f"Maps {tuple(maps.shape)} and {tuple(others.shape)} must both be (N, H, W).")
    return (_unit(maps) * _unit(others)).sum(dim=1).clamp(-1, 1)


def correlations(maps_MHW: Tensor) -> Tensor:
    """Pearson's correlation of every two maps, (M, M) float64; else as ``correlation``.

    Example:
        >>> correlations(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])).round()
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    unit = _unit(maps_MHW)
    return (unit @ unit.T).clamp(-1, 1)


def _unit(maps_NHW: Tensor) -> Tensor:
    """Pixels (N, H * W) float64 with mean 0 and length 1; NaN of a constant map."""
    flat = maps_NHW.detach().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    eps = torch.finfo(flat.dtype).eps if flat.is_floating_point() else 0
    varies = high - low > 4 * eps * torch.maximum(low.abs(), high.abs())
    centered = flat.double() - flat.double().mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centered, dim=1)
    return centered / torch.where(varies, length, torch.nan)[:, None]


def flip_equivariance(maps: Tensor, maps_of_flipped: Tensor) -> Tensor:
    """Correlation (N,) of maps with those of the images flipped left to right, flipped back; 1 is a perfect match.

    Args:
        maps: (N, H, W) of images x.
        maps_of_flipped: (N, H, W) of ``x.flip(-1)``.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> flip_equivariance(maps, maps.flip(-1)).round()
        tensor([1.], dtype=torch.float64)
    """
    return correlation(maps, maps_of_flipped.flip(-1))


def shift_equivariance(maps: Tensor, maps_of_shifted: Tensor, shift: tuple[int, int]) -> Tensor:
    """Correlation (N,) of maps with those of shifted images, shifted back, where both show the same.

    Args:
        maps: (N, H, W) of images x.
        maps_of_shifted: (N, H, W) of ``x.roll(shift, dims=(-2, -1))`` or any other way to move images.
        shift: (down, right) in pixels of the maps; negative is up and left.

    Raises:
        DataError: nothing is left in common.

    Example:
        >>> maps = torch.arange(9.0).reshape(1, 3, 3)
        >>> shift_equivariance(maps, maps.roll(1, dims=-1), shift=(0, 1)).round()
        tensor([1.], dtype=torch.float64)
    """
    height, width = maps.shape[-2:]
    down, right = shift
    if abs(down) >= height or abs(right) >= width:
        raise DataError(f"shift={shift} leaves nothing in common of maps of {height} x {width}.")
    here = maps[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    there = maps_of_shifted[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    return correlation(here, there)


def drift(maps: Tensor, earlier: Tensor) -> Tensor:
    """How far maps (N, H, W) have moved from earlier ones of the same images, (N,): 1 - correlation, 0 ... 2.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> drift(torch.cat([maps, maps]), torch.cat([maps, -maps])).round()  # the same map; its opposite
        tensor([0., 2.], dtype=torch.float64)
    """
    return 1 - correlation(maps, earlier)


def entropy(maps: Tensor) -> Tensor:
    """Entropy (N,) float64 of where the positive evidence lies, as a share of the highest: 0 one pixel, 1 everywhere.

    NaN for a map without positive evidence.

    Args:
        maps: (N, H, W), any sign; what is negative counts as 0.

    Example:
        >>> entropy(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])).abs()
        tensor([0., 1.], dtype=torch.float64)
    """
    energy = maps.detach().double().clamp(min=0).flatten(1)
    share = energy / energy.sum(dim=1, keepdim=True)
    nats: Tensor = torch.special.entr(share).sum(dim=1)
    return nats / torch.tensor(max(energy.shape[1], 2), dtype=torch.float64).log()


def area(maps: Tensor, threshold: float = 0.5) -> Tensor:
    """Share (N,) float64 of pixels of maps (N, H, W) in [0, 1] that reach the threshold.

    Example:
        >>> area(torch.tensor([[[1.0, 0.5], [0.4, 0.0]]]))
        tensor([0.5000], dtype=torch.float64)
    """
    reached = torch.ge(maps, threshold, out=torch.empty_like(maps))  # ones of the maps' kind add up faster than bools
    return reached.sum((-2, -1), dtype=torch.float32).double() / maps.shape[-2:].numel()


def step_of(height: int, width: int) -> tuple[int, int]:
    """How far a picture is shifted: an eighth of its height down and of its width to the right, pixels.

    Example:
        >>> step_of(224, 64)
        (28, 8)
    """
    return max(1, round(height / 8)), max(1, round(width / 8))


def shifted(images_NCHW: Tensor) -> Tensor:
    """Images moved right and down by ``step_of``; what is uncovered repeats the edge.

    Example:
        >>> shifted(torch.arange(9.0).reshape(1, 1, 3, 3))
        tensor([[[[0., 0., 1.],
                  [0., 0., 1.],
                  [3., 3., 4.]]]])
    """
    height, width = images_NCHW.shape[-2:]
    down, right = step_of(height, width)
    return F.pad(images_NCHW, (right, 0, down, 0), mode="replicate")[..., :height, :width]
