"""Does a map lie where its evidence is? Patches of the image are changed; the cells above them must change most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .layouts import Layout

__all__ = ["PLACE_SHOWN", "not_placed", "place_figures", "place_notes", "placed_layout"]

PLACE_SHOWN = 1.05
"""Least figure at which a map is said to follow the image."""
_GUESSED = 1.3  # least lower bound of the figure, three standard errors below it, of what has the shape of a map only
_DRAWS = 8  # of noise, for such a tensor: by chance a small grid of anything has 2.5 in one
_CONTRADICTED = 0.8  # three standard errors above the figure: other cells change, the axes are wrong or mirrored
_CLEAR = 2.0  # below it a followed map gets a second noise
_HOPELESS = 1.2  # after two noises
_LARGEST = 1000.0
_SMALLEST_CHANGE = 1e-5  # of the map's values: what is less is rounding
_BANDS = ((0, 1 / 3), (2 / 3, 1))
_Band = tuple[float, float]


def placed_layout(
    run: Callable[[Tensor], Tensor], images_NCHW: Tensor, value: Tensor, layouts: Sequence[Layout], *, followed: bool
) -> tuple[Layout | None, float | None]:
    """The layout in which a tensor is a map of the image, with its figure; None where it is none.

    A layout that was followed from the image needs no more than not to be contradicted; of those that a shape allows,
    the one with the largest figure must be well above 1.

    Args:
        run: images (2, C, H, W) -> the tensor.
        images_NCHW: two images.
        value: what ``run`` gives for them.
        layouts: that the tensor may have.
        followed: whether the one layout was followed, step by step (see ``Origin``).
    """
    measured = _measured(run, images_NCHW, value, layouts, draws=2 if followed else _DRAWS)
    logs, layout = max(zip(measured, layouts, strict=True), key=lambda pair: _bound(pair[0], -3))
    figure = _figure(logs)
    placed = _bound(logs, 3) >= _CONTRADICTED if followed else _bound(logs, -3) >= _GUESSED
    return (layout if placed else None), figure


def place_notes(figure: float | None) -> list[str]:
    """What must be said of a followed map whose place the probe does not show."""
    if figure is None:
        return ["The map does not change with the image on the probe: that it follows the image was not shown."]
    if figure < PLACE_SHOWN:
        note = (
            f"Cells above a changed patch of the image change {figure:.2f} times as much as others: with these weights"
            " the map hardly follows the image. Its axes were followed through the network's steps."
        )
        return [note]
    return []


def not_placed(shape: Sequence[int], figure: float | None) -> str:
    """Why a tensor that looks like a map is none; follows upon its name."""
    shown = (
        "none of it changes" if figure is None else f"the cells above it change {figure:.2f} times as much as others"
    )
    return f"gives {tuple(shape)}, which looks like a map, but when a patch of the image is changed, {shown}."


def place_figures(
    run: Callable[[Tensor], Tensor], images_NCHW: Tensor, value: Tensor, layouts: Sequence[Layout], draws: int = 2
) -> list[float | None]:
    """How much more the cells above a changed patch change than the cells above other patches, for each layout.

    The patches are the corners of the image, a third of its sides, to which noise of the image's own spread is added.
    What a cell answers to one patch is taken relative to its mean answer to all; the figure is the geometric mean
    ratio of the cells above the patch to those above its neighbor along a side, for the side where it is smaller. It
    is 1 where the cells do not follow the image, as in a pooled vector; for CNNs it is 2 to 1,000, where it is cut.

    Args:
        run: images (2, C, H, W) -> the tensor that may hold the map.
        images_NCHW: two images; the first is changed, and in further draws the images shifted around.
        value: what ``run`` gives for them.
        layouts: that the tensor may have.
        draws: of noise, at most; where one or two are asked for, a clear first one is enough.

    Returns:
        One figure for each layout; None where the map does not change with the image, or is one cell.
    """
    return [_figure(logs) for logs in _measured(run, images_NCHW, value, layouts, draws)]


@torch.no_grad()
def _measured(
    run: Callable[[Tensor], Tensor], images_NCHW: Tensor, value: Tensor, layouts: Sequence[Layout], draws: int
) -> list[list[Tensor]]:
    """The logarithms of the ratios of all draws, each (sides, pairs), for each layout."""
    height, width = images_NCHW.shape[2:]
    patches = [(rows, columns) for rows in _bands(height) for columns in _bands(width)]
    logs: list[list[Tensor]] = [[] for _ in layouts]
    figures: list[float | None] = []
    for draw in range(draws):
        if draw > 0:  # a maximum over all cells would answer to the same patch of the same image each time
            shifts = [1 + draw * side // draws for side in (height, width)]
            images_NCHW = images_NCHW.flip(0).roll(shifts, (2, 3))
            value = run(images_NCHW)
        after = [run(batch) for batch in torch.split(_changed(images_NCHW[:1], patches, draw), 2)]
        for layout, draws_of_layout in zip(layouts, logs, strict=True):
            maps_NCHW = torch.cat([layout.to_map(tensor) for tensor in after]).double()
            ratios = _log_ratios(layout.to_map(value)[:1].double(), maps_NCHW, patches)
            if ratios is not None:
                draws_of_layout.append(ratios)
        figures = [_figure(draws_of_layout) for draws_of_layout in logs]
        clear = any(figure is not None and figure >= _CLEAR for figure in figures)
        hopeless = draw > 0 and all(figure is None or figure < _HOPELESS for figure in figures)
        if hopeless or (draws <= 2 and clear):
            break
    return logs


def _bands(side: int) -> tuple[_Band, ...]:
    return _BANDS if side >= 3 else ((0, 1),)


def _changed(image_1CHW: Tensor, patches: Sequence[tuple[_Band, _Band]], draw: int) -> Tensor:
    """The image with noise on each of the patches, an even number of images (the last one again)."""
    height, width = image_1CHW.shape[2:]
    generator = torch.Generator().manual_seed(draw)
    noise = torch.randn(image_1CHW.shape, generator=generator).to(image_1CHW)
    noise *= image_1CHW.std() if float(image_1CHW.std()) > 0 else 1
    images = []
    for (top, bottom), (left, right) in patches:
        image = image_1CHW.clone()
        patch = (
            ...,
            slice(round(top * height), round(bottom * height)),
            slice(round(left * width), round(right * width)),
        )
        image[patch] += noise[patch]
        images.append(image)
    return torch.cat([*images, *images[-1:]] if len(images) % 2 else images)


def _log_ratios(before_1CHW: Tensor, after_NCHW: Tensor, patches: Sequence[tuple[_Band, _Band]]) -> Tensor | None:
    """Logarithms of the ratios to the neighbors, (sides, patches); None where there is nothing to compare."""
    change_NHW = (after_NCHW - before_1CHW).abs().mean(1)[: len(patches)]
    height, width = change_NHW.shape[1:]
    if not float(change_NHW.max()) > _SMALLEST_CHANGE * float(before_1CHW.abs().mean()):  # NaN too
        return None
    relative_NHW = change_NHW / change_NHW.mean(0).clamp_min(float(change_NHW.max()) * 1e-9)
    rows, columns = ([_above(count, patch[side]) for patch in patches] for side, count in enumerate((height, width)))
    sides: dict[int, list[Tensor]] = {}
    for answer, patch, row, column in zip(relative_NHW, patches, rows, columns, strict=True):
        own = answer[row][:, column].mean()
        for other_patch, other_row, other_column in zip(patches, rows, columns, strict=True):
            differs = [index for index in (0, 1) if patch[index] != other_patch[index]]
            if len(differs) == 1 and (height, width)[differs[0]] > 1:
                other = answer[other_row][:, other_column].mean()
                sides.setdefault(differs[0], []).append(((own + 1e-6) / (other + 1e-6)).log())
    return torch.stack([torch.stack(values) for values in sides.values()]) if sides else None


def _above(count: int, band: _Band) -> Tensor:
    """Which of so many cells along a side have their middle in a band; all, where there is one."""
    middles = (torch.arange(count) + 0.5) / count
    return (middles >= band[0]) & (middles <= band[1]) if count > 1 else torch.ones(1, dtype=torch.bool)


def _figure(logs: Sequence[Tensor]) -> float | None:
    if not logs:
        return None
    return min(_LARGEST, float(torch.stack(list(logs)).mean((0, 2)).min().exp()))


def _bound(logs: Sequence[Tensor], errors: float) -> float:
    """The figure and so many standard errors, on the logarithmic scale, of the side where that is smaller.

    Where nothing was measured, 0 as the lower bound and infinity as the upper one.
    """
    if not logs:
        return math.inf if errors > 0 else 0.0
    sides = torch.cat(list(logs), dim=1)
    bounds = sides.mean(1) + errors * sides.std(1) / sides.shape[1] ** 0.5
    return float(bounds.min().exp())
