"""Where a map points and where its evidence lies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import DataError

__all__ = [
    "POINTING_TOLERANCE", "box_masks", "cell_masks", "energy_share", "masks_of_objects", "mosaic_plan", "mosaics",
    "peak", "pointing_distance", "pointing_hits", "tiled",
]  # fmt: skip

POINTING_TOLERANCE = 15.0
"""Pixels of the pointing game, as in Zhang et al. 2018."""


def peak(map_HW: Tensor) -> tuple[int, int] | None:
    """(y, x) of the highest pixel, the first in reading order of equals; None for a constant map, which has none.

    Example:
        >>> peak(torch.tensor([[0.0, 1.0], [3.0, 2.0]]))
        (1, 0)
    """
    if bool((map_HW == map_HW.flatten()[0]).all()):
        return None
    y, x = divmod(int(map_HW.argmax()), map_HW.shape[-1])
    return y, x


def pointing_distance(point: tuple[int, int], mask_HW: Tensor) -> float:
    """Pixels from a point (y, x) to the nearest pixel of a mask: 0.0 within it, infinity if it is empty.

    Example:
        >>> pointing_distance((0, 0), torch.tensor([[False, False, False, True]]))
        3.0
    """
    y, x = torch.nonzero(mask_HW, as_tuple=True)
    if len(y) == 0:
        return float("inf")
    return float(((y - point[0]) ** 2 + (x - point[1]) ** 2).min().double().sqrt())


def pointing_hits(
    points: Sequence[tuple[int, int] | None], masks_NHW: Tensor, tolerance: float = POINTING_TOLERANCE
) -> Tensor:
    """The pointing game, image by image, (N,) float64: 1 a hit, 0 a miss, NaN where there is no object.

    A hit is a point on the object, or nearer to it than the tolerance. Zhang et al. 2018, "Top-down Neural Attention by
    Excitation Backprop", section 5.1.

    Args:
        points: (y, x) of each image, as `peak` gives it; None, a map without a peak, is a miss.
        masks_NHW: (N, H, W) bool of the objects.
        tolerance: pixels.

    Example:
        >>> masks = torch.tensor([[[False, False, False, True]]]).repeat(3, 1, 1)
        >>> pointing_hits([(0, 0), (0, 2), None], masks, tolerance=2)  # 3 pixels away, 1 pixel away, nowhere
        tensor([0., 1., 0.], dtype=torch.float64)
    """
    hits = []
    for point, mask in zip(points, masks_NHW, strict=True):
        distance = math.inf if point is None else pointing_distance(point, mask)
        hits.append(float(distance == 0 or distance < tolerance) if bool(mask.any()) else math.nan)
    return torch.tensor(hits, dtype=torch.float64)


def box_masks(boxes: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Pixels (N, height, width), bool, whose center lies in one of an image's boxes (n, 4), xyxy, exclusive.

    A box too thin to hold a center has the pixels under its middle line instead.

    Example:
        >>> box_masks([torch.tensor([[0.0, 0.0, 2.0, 1.0]])], 2, 3).int()
        tensor([[[1, 1, 0],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, image_boxes in zip(masks, boxes, strict=True):
        for x0, y0, x1, y1 in image_boxes.tolist():
            mask[_pixels(y0, y1, height), _pixels(x0, x1, width)] = True
    return masks


def masks_of_objects(objects: Sequence[Tensor] | Tensor, height: int, width: int) -> Tensor:
    """Masks (N, height, width), bool, on the CPU: as they are given, or of boxes as ``box_masks`` makes them.

    Example:
        >>> masks_of_objects([torch.tensor([[0, 0, 1, 1]])], 1, 2)
        tensor([[[ True, False]]])
    """
    return objects.cpu() if isinstance(objects, Tensor) else box_masks(objects, height, width)


def _pixels(low: float, high: float, size: int) -> slice:
    first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if first == last:
        first = min(max(math.floor((low + high) / 2), 0), size - 1)
        last = first + 1
    return slice(max(first, 0), max(last, 0))


def energy_share(maps: Tensor, masks: Tensor) -> Tensor:
    """Share (N,) float64 of a map's positive evidence that lies in its mask; 0 where no pixel is positive.

    Wang et al. 2020, "Score-CAM", section 4.3.

    Args:
        maps: (N, H, W), any sign; what is negative counts as 0.
        masks: (N, H, W) bool.

    Example:
        >>> import torch
        >>> energy_share(torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[True, False, True]]]))
        tensor([0.7500], dtype=torch.float64)
    """
    energy = maps.detach().double().clamp(min=0)
    whole = energy.sum((-2, -1))
    inside = (energy * masks.to(energy)).sum((-2, -1))
    return torch.where(whole > 0, inside / whole, 0.0).clamp(max=1)  # a sum of parts may exceed the whole by rounding


def cell_masks(cells: Tensor, grid: int, height: int, width: int) -> Tensor:
    """Pixels (N, height, width), bool, of one cell each of a grid x grid mosaic; cells count in reading order.

    Raises:
        DataError: the size is no multiple of the grid, or there is no such cell.

    Example:
        >>> cell_masks(torch.tensor([1]), grid=2, height=2, width=2).int()
        tensor([[[0, 1],
                 [0, 0]]], dtype=torch.int32)
    """
    if height % grid or width % grid:
        raise DataError(f"Maps of {height} x {width} cannot be cut into {grid} x {grid} cells. Upsample them first.")
    if not bool(((cells >= 0) & (cells < grid * grid)).all()):
        raise DataError(f"Cells must lie in 0 ... {grid * grid - 1}, not {cells.tolist()}.")
    rows = torch.arange(height, device=cells.device) // (height // grid)
    columns = torch.arange(width, device=cells.device) // (width // grid)
    return (rows[:, None] * grid + columns)[None] == cells[:, None, None]


def mosaics(images: Tensor, labels: Tensor, grid: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mosaics of images of different classes: (M, C, grid * H, grid * W), and the cells' classes (M, grid * grid).

    Boehle et al. 2021, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", section 5.3.
    The paper takes only images that the network is sure of: choose them before. `mosaic_plan` says which come together.

    Args:
        images: (N, C, H, W).
        labels: (N,) classes.
        grid: cells in a row and in a column.
        seed: of the draw.

    Raises:
        DataError: numbers do not match, or there are fewer than grid * grid classes.

    Example:
        >>> pictures, classes = mosaics(torch.zeros(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 3]))
        >>> pictures.shape, classes.sort().values
        (torch.Size([1, 3, 16, 16]), tensor([[0, 1, 2, 3]]))
    """
    if images.dim() != 4 or labels.shape != (len(images),):
        raise DataError(f"images {tuple(images.shape)} must be (N, C, H, W), labels {tuple(labels.shape)} (N,).")
    picked = mosaic_plan(labels, grid, seed).to(images.device)
    return tiled(images[picked.flatten()], grid), labels.to(picked.device)[picked]


def mosaic_plan(labels: Tensor, grid: int = 2, seed: int = 0) -> Tensor:
    """Which images (M, grid * grid) stand in which cell of which mosaic, in reading order.

    Every image is used at most once, no class twice in one mosaic. The classes with the most images left are taken
    first, so that as many mosaics as possible come out; which images, and where in the mosaic, is drawn.

    Raises:
        DataError: there are fewer than grid * grid classes.

    Example:
        >>> mosaic_plan(torch.tensor([7, 5, 8, 6])).sort().values  # images, not labels
        tensor([[0, 1, 2, 3]])
    """
    generator, cells = torch.Generator().manual_seed(seed), grid * grid
    drawn = torch.randperm(len(labels), generator=generator)
    left: dict[int, list[int]] = {}
    for index, label in zip(drawn.tolist(), labels.cpu()[drawn].tolist(), strict=True):
        left.setdefault(label, []).append(index)
    if len(left) < cells:
        raise DataError(f"A {grid} x {grid} mosaic needs {cells} classes, these images have {len(left)}.")
    chosen = []
    while True:
        fullest = sorted(left, key=lambda label: -len(left[label]))[:cells]
        if not left[fullest[-1]]:
            break
        order = torch.randperm(cells, generator=generator).tolist()
        chosen.append([left[fullest[place]].pop() for place in order])
    return torch.tensor(chosen)


def tiled(images: Tensor, grid: int = 2) -> Tensor:
    """Images (M * grid * grid, C, H, W) as mosaics (M, C, grid * H, grid * W), in reading order.

    Example:
        >>> tiled(torch.arange(4.0).reshape(4, 1, 1, 1))
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    channels, height, width = images.shape[1:]
    tiles = images.view(-1, grid, grid, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(-1, channels, grid * height, grid * width)
