"""Does the network use what the map shows? Scores of masked images, of images filled in or emptied by the map."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError
from ...eval_mode import eval_mode
from ...logits import require_logits
from ...task import Classes, Task
from .stability import correlation

__all__ = [
    "adcc", "area_under_curve", "average_drop", "black", "blurred", "coherency", "complexity", "deletion_curves",
    "insertion_curves", "masked_images",
]  # fmt: skip


def average_drop(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """How much of its probability a class loses when only what the map shows is left, (N,) float64 in 0..1.

    max(0, p - p') / p; 0 where p is 0. Chattopadhay et al. 2018, "Grad-CAM++", section 4.1 (there in percent).

    Args:
        scores: (N,) probabilities of one class per image.
        masked_scores: (N,) of the same classes for the masked images.

    Example:
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))  # half is lost; nothing is
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    before, after = scores.detach().double(), masked_scores.detach().double()
    return torch.where(before > 0, (before - after).clamp(min=0) / before, 0.0)


def coherency(maps: Tensor, maps_of_masked: Tensor) -> Tensor:
    """Does the masked image's map look the same? (1 + correlation) / 2, (N,) float64 in 0..1; 0 for a constant map.

    Poppi et al. 2021, "Revisiting The Evaluation of Class Activation Mapping for Explainability", section 3.

    Args:
        maps: (N, H, W) in [0, 1].
        maps_of_masked: (N, H, W), of the same classes.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
        >>> coherency(maps, torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 1.0]]])).round()  # one is constant
        tensor([1., 0., 0.], dtype=torch.float64)
    """
    return ((1 + correlation(maps, maps_of_masked)) / 2).nan_to_num()


def complexity(maps: Tensor) -> Tensor:
    """Mean of a map (N, H, W) in [0, 1], (N,) float64: how much of the image it takes. Poppi et al. 2021, section 3.

    Example:
        >>> complexity(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        tensor([0.2500], dtype=torch.float64)
    """
    return maps.detach().double().abs().mean((-2, -1))


def adcc(drop: Tensor, coherency: Tensor, complexity: Tensor) -> Tensor:
    """Harmonic mean of coherency, 1 - complexity and 1 - drop, in 0..1; 0 where one of them is 0.

    Poppi et al. 2021, section 3. All arguments in 0..1 and of one shape.

    Example:
        >>> import torch
        >>> adcc(*torch.tensor([0.0, 1.0, 0.5]))
        tensor(0.7500)
    """
    parts = torch.stack([coherency, 1 - complexity, 1 - drop])
    return torch.where((parts > 0).all(dim=0), 3 / (1 / parts).sum(dim=0), 0.0)


def masked_images(images: Tensor, maps: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
    """Images of which only what the map shows is left, (N, C, H, W): x * map + baseline * (1 - map).

    With the baseline 0 normalized images fade into the data set's mean color, as in the code of ADCC, torch-cam and
    pytorch-grad-cam; with `black` they fade as if raw pixels had been multiplied by the map; with `blurred` images
    they lose detail only. The choice changes Average Drop a lot: report it.

    Args:
        images: (N, C, H, W), as the network takes them.
        maps: (N, H, W) in [0, 1].
        baseline: what stands where the map is 0: a number, or a tensor that broadcasts to the images.

    Raises:
        DataError: the maps are of another size than the images.

    Example:
        >>> image, heat = torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[1.0, 0.5]]])
        >>> masked_images(image, heat), masked_images(image, heat, baseline=-2.0)
        (tensor([[[[2., 2.]]]]), tensor([[[[2., 1.]]]]))
    """
    _check_size(images, maps)
    weight = maps.to(images)[:, None]
    return images * weight + baseline * (1 - weight)


def black(mean: Tensor, std: Tensor) -> Tensor:
    """Raw black as the network sees it after normalization by a mean and a deviation (C,): (C, 1, 1).

    Example:
        >>> black(torch.tensor([0.5]), torch.tensor([0.25]))
        tensor([[[-2.]]])
    """
    return (-mean / std)[:, None, None]


def blurred(images: Tensor, size: int = 11, sigma: float = 5.0) -> Tensor:
    """Images (N, C, H, W) without detail: Petsiuk et al. 2018, "RISE", with the kernel of the authors' code.

    That kernel is a dot blurred within a square of ``size`` pixels, what leaves the square being reflected into it,
    so that its sum is 1; outside the image there is 0.

    Example:
        >>> image = blurred(torch.ones(1, 1, 21, 21))
        >>> bool(image[0, 0, 10, 10].isclose(torch.tensor(1.0))), bool(image[0, 0, 0, 0] < 0.5)  # 0 from outside
        (True, True)
    """
    center = size // 2
    offsets = torch.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    folded = (offsets + center).remainder(2 * size)
    folded = torch.minimum(folded, 2 * size - 1 - folded)
    line = torch.zeros(size, dtype=torch.float64).index_add(0, folded, weights / weights.sum())
    channels = images.shape[1]
    row = line.to(images).expand(channels, 1, 1, size)
    wide = F.conv2d(images, row, padding=(0, center), groups=channels)
    return F.conv2d(wide, row.transpose(2, 3), padding=(center, 0), groups=channels)


def insertion_curves(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor, *, steps: int = 224,
    baseline: float | Tensor | None = None, batch_size: int = 64, task: str | Task | None = None,
) -> Tensor:  # fmt: skip
    """Probability of a class while an image is filled in, the map's highest pixels first, (N, steps + 1) float32.

    Petsiuk et al. 2018, "RISE", section 4.1. After step i ``i * H * W // steps`` pixels are the image's. Of equal
    pixels the first in reading order comes first. The network runs in eval mode without gradients, N * (steps + 1)
    times an image in batches, and is left in the modes it had.

    Args:
        model: gives logits (N, K).
        images: (N, C, H, W), as the network takes them.
        maps: (N, H, W).
        targets: (N,) classes.
        steps: number of steps; 224 on 224 x 224 pixels is the paper's.
        baseline: what is there before: a number, a tensor that broadcasts to the images, or None for `blurred` images.
        batch_size: images in one forward.
        task: what the logits mean; None takes the model's own ``task``, else of one logit ``binary`` and of several
            ``multiclass``.

    Raises:
        DataError: sizes do not match, or a map holds NaN.
        ConfigError: steps are not between 1 and the number of pixels.

    Example:
        >>> image = torch.tensor([[[[3.0, 1.0]]]]).log()
        >>> model = nn.Flatten()  # the pixels are the logits
        >>> insertion_curves(model, image, torch.tensor([[[1.0, 0.0]]]), torch.tensor([0]), steps=2, baseline=0.0)
        tensor([[0.5000, 0.7500, 0.7500]])
    """
    start = blurred(images) if baseline is None else _like(images, baseline)
    return _curves(model, start, images, maps, targets, steps, batch_size, task)


def deletion_curves(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor, *, steps: int = 224,
    baseline: float | Tensor | None = 0.0, batch_size: int = 64, task: str | Task | None = None,
) -> Tensor:  # fmt: skip
    """Probability of a class while an image is emptied, the map's highest pixels first, (N, steps + 1) float32.

    ``baseline`` is what stands there afterwards, by default 0; all else as in `insertion_curves`.

    Example:
        >>> image = torch.tensor([[[[3.0, 1.0]]]]).log()
        >>> model = nn.Flatten()  # the pixels are the logits
        >>> deletion_curves(model, image, torch.tensor([[[1.0, 0.0]]]), torch.tensor([0]), steps=2)
        tensor([[0.7500, 0.5000, 0.5000]])
    """
    end = blurred(images) if baseline is None else _like(images, baseline)
    return _curves(model, images, end, maps, targets, steps, batch_size, task)


def _curves(
    model: nn.Module, start: Tensor, end: Tensor, maps: Tensor, targets: Tensor, steps: int, batch_size: int,
    task: str | Task | None,
) -> Tensor:  # fmt: skip
    _check_size(start, maps)
    count, height, width = maps.shape
    if not 1 <= steps <= height * width or batch_size < 1:
        raise ConfigError(f"steps={steps} must lie in 1 ... {height * width}, batch_size={batch_size} above 0.")
    if targets.shape != (count,):
        raise DataError(f"targets {tuple(targets.shape)} must be ({count},), one class per image.")
    if bool(maps.isnan().any()):
        raise DataError("maps hold NaN: they have no order of pixels. Find the image that causes it.")
    order = maps.detach().to(start.device).flatten(1).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(height * width, device=order.device).expand_as(order)
    )
    place = place.view(count, 1, height, width)
    scores = torch.empty(count * (steps + 1), dtype=torch.float32, device=start.device)
    targets = targets.to(start.device)
    with eval_mode(model), torch.no_grad():
        for first, rows, changed in _batches(count, steps, height * width, batch_size, start.device):
            images = torch.where(place[rows] < changed[:, None, None, None], end[rows], start[rows])
            logits = require_logits(model(images), images, finite=False)
            classes = Classes.carried_by(model, logits.shape[1], task)
            scores[first : first + len(rows)] = classes.scores(logits, targets[rows])
    return scores.view(count, steps + 1)


def _batches(
    count: int, steps: int, pixels: int, size: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Start of a batch, the image of each of its rows and the number of pixels changed in it."""
    for first in range(0, count * (steps + 1), size):
        numbers = torch.arange(first, min(first + size, count * (steps + 1)), device=device)
        yield first, numbers // (steps + 1), numbers % (steps + 1) * pixels // steps


def area_under_curve(curves: Tensor) -> Tensor:
    """Mean height (N,) float64 of curves (N, steps + 1) by the trapezoidal rule.

    Example:
        >>> area_under_curve(torch.tensor([[1.0, 0.5, 0.0]]))  # 0.75 / 2 + 0.25 / 2
        tensor([0.5000], dtype=torch.float64)
    """
    values = curves.detach().double()
    return (values[:, :-1] + values[:, 1:]).mean(dim=1) / 2


def _like(images: Tensor, baseline: float | Tensor) -> Tensor:
    return torch.as_tensor(baseline, dtype=images.dtype, device=images.device).expand_as(images)


def _check_size(images: Tensor, maps: Tensor) -> None:
    if images.dim() != 4 or maps.dim() != 3 or images.shape[:1] + images.shape[2:] != maps.shape:
        raise DataError(
            f"maps {tuple(maps.shape)} must be (N, H, W) of images {tuple(images.shape)}, (N, C, H, W). "
            "Use camify.maps.upsample."
        )
