"""Test-time augmentation: an image seen again mirrored, moved and in other sizes, and the mean of the maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..console import shown
from ..errors import ConfigError
from ..maps import upsample

__all__ = ["AUGMENTATIONS", "View", "check_augmentations", "mean_map", "views_of"]

AUGMENTATIONS = {"flip": 1, "shifts": 4, "sizes": 2}
"""Views of an image beside itself, by the name of what they are made by: see ``views_of``."""
_SIZES = (7 / 8, 9 / 8)  # of the image's sides
_ROUNDING = 1e-9  # cells


@dataclass(frozen=True)
class View:
    """An image in another form, and the way back to the cells of its plain map.

    Attributes:
        flip: mirrored from left to right.
        shift: (down, right), pixels by which the content moves; the border is filled by the pixels next to it.
        size: (height, width), pixels; None: the image's own.

    Example:
        >>> View(shift=(0, 1)).of(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[[1., 1., 2.]]]])
    """

    flip: bool = False
    shift: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    def of(self, images_NCHW: Tensor) -> Tensor:
        """Images (N, C, H, W) as this view has them."""
        images = images_NCHW.flip(-1) if self.flip else images_NCHW
        for dim, shift in zip((-2, -1), self.shift, strict=True):
            if shift:
                places = torch.arange(images.shape[dim], device=images.device) - shift
                images = images.index_select(dim, places.clamp(0, images.shape[dim] - 1))
        if self.size is None:
            return images
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        resized = F.interpolate(wide, self.size, mode="bilinear", align_corners=False, antialias=True)
        return resized.to(images.dtype)

    def restored(self, maps: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The view's maps (..., h, w) at the cells of the plain image's map, and which of these it saw.

        Args:
            maps: of the view.
            grid: (h, w) of the plain image's map.
            image_size: (H, W) of the plain image.

        Returns:
            Maps (..., h, w) of the grid; 1 and 0 (h, w): a cell whose place lies beyond the centers of the outermost
            cells is none that the view saw.
        """
        if maps.shape[-2:] != grid:
            maps = upsample(maps, grid)
        seen = torch.ones(grid, dtype=maps.dtype, device=maps.device)
        for dim, shift in zip((-2, -1), self.shift, strict=True):
            if shift:
                maps, inside = _moved_back(maps, dim, shift * grid[dim] / image_size[dim])
                seen = seen * inside.reshape((-1, 1) if dim == -2 else (1, -1))
        return (maps.flip(-1), seen.flip(-1)) if self.flip else (maps, seen)


def check_augmentations(names: Any) -> tuple[str, ...]:
    """Names of augmentations, one or several, each once, in the order of ``AUGMENTATIONS``; None is none.

    Raises:
        ConfigError: one is unknown.

    Example:
        >>> check_augmentations(["sizes", "flip"]), check_augmentations("shifts"), check_augmentations(None)
        (('flip', 'sizes'), ('shifts',), ())
    """
    given = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(given, Iterable) or not all(isinstance(name, str) and name in AUGMENTATIONS for name in given):
        raise ConfigError(
            f"augmentations={shown(repr(names))[:80]} is unknown. Choose one or several of {', '.join(AUGMENTATIONS)}."
        )
    return tuple(name for name in AUGMENTATIONS if name in given)


def views_of(augmentations: Sequence[str], image_size: tuple[int, int], grid: tuple[int, int]) -> list[View]:
    """The views of images beside themselves.

    - ``"flip"``: mirrored from left to right.
    - ``"shifts"``: moved along both diagonals, by a quarter of a map's cell down or up and left or right: together with
      the plain image the map is sampled between its cells. By half a cell the opposite shifts would sample the same
      places.
    - ``"sizes"``: about 7/8 and 9/8 of the image's sides, so that the map has whole cells: at least one fewer and one
      more along each side.

    Args:
        augmentations: of ``AUGMENTATIONS``.
        image_size: (H, W).
        grid: (h, w) of the layer's map.

    Example:
        >>> views_of(["sizes"], (224, 224), (7, 7))
        [View(flip=False, shift=(0, 0), size=(192, 192)), View(flip=False, shift=(0, 0), size=(256, 256))]
    """
    views = list[View]()
    if "flip" in augmentations:
        views.append(View(flip=True))
    if "shifts" in augmentations:
        down, right = (max(1, round(side / cells / 4)) for side, cells in zip(image_size, grid, strict=True))
        views += [View(shift=(down * y, right * x)) for y, x in product((-1, 1), (-1, 1))]
    if "sizes" in augmentations:
        for factor in _SIZES:
            height, width = (_resized(side, cells, factor) for side, cells in zip(image_size, grid, strict=True))
            views.append(View(size=(height, width)))
    return views


def mean_map(plain: Tensor, seen: Iterable[tuple[View, Tensor]], image_size: tuple[int, int]) -> Tensor:
    """The mean (..., h, w), cell by cell, of the plain image's maps and those of views, brought back.

    Args:
        plain: (..., h, w).
        seen: views and their maps (..., h', w').
        image_size: (H, W) of the plain image.

    Example:
        >>> mean_map(torch.tensor([[1.0, 3.0]]), [(View(flip=True), torch.tensor([[5.0, 1.0]]))], (1, 2))
        tensor([[1., 4.]])
    """
    grid = (plain.shape[-2], plain.shape[-1])
    total, count = plain, torch.ones(grid, dtype=plain.dtype, device=plain.device)
    for view, maps in seen:
        restored, inside = view.restored(maps, grid, image_size)
        total, count = total + restored * inside, count + inside
    return total / count


def _resized(side: int, cells: int, factor: float) -> int:
    """Pixels of a side whose cells, of the same size, are so many times as many."""
    fewer_or_more = cells - 1 if factor < 1 else cells + 1
    nearest = (min if factor < 1 else max)(round(cells * factor), fewer_or_more)
    return round(max(nearest, 1) * side / cells)


def _moved_back(maps: Tensor, dim: int, cells: float) -> tuple[Tensor, Tensor]:
    """Maps sampled so many cells further along an axis, linearly, and which places (h or w) lie between cells."""
    count = maps.shape[dim]
    places = torch.arange(count, dtype=torch.float64) + cells
    inside = (places >= -_ROUNDING) & (places <= count - 1 + _ROUNDING)
    places = places.clamp(0, count - 1)
    low = (places + _ROUNDING).floor()
    share = (places - low).clamp(min=0).to(maps)
    share = share.reshape((-1, 1) if dim == -2 else (1, -1))
    first = low.long().to(maps.device)
    following = maps.index_select(dim, (first + 1).clamp(max=count - 1))
    return torch.lerp(maps.index_select(dim, first), following, share), inside.to(maps)
