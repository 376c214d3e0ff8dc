"""Published head configurations, each with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

__all__ = ["RECIPES", "Recipe", "default_convs"]


@dataclass(frozen=True)
class Recipe:
    """A CAM head as published: widths of its 3x3 convolutions (each with ReLU), dropout after pooling."""

    convs: tuple[int, ...]
    dropout: float
    source: str


RECIPES = {
    "zhou2016/vgg16-gap": Recipe(
        (1024,), 0.0, "Zhou et al. 2016, section 3.1: one convolution 3x3 of 1024 units before GAP"
    ),
    "zhou2016/alexnet-star-gap": Recipe(
        (512, 512), 0.0, "Zhou et al. 2016, AlexNet*-GAP: two convolutions before GAP (the released widths)"
    ),
}

_ALEXNET_KERNELS = (11, 5, 3, 3, 3)


def default_convs(layers: Sequence[nn.Module]) -> tuple[int, ...]:
    """Widths of the new convolutions: 1024 as in VGG-GAP; two of 512 for an AlexNet, known by its kernels."""
    kernels = tuple(layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv2d))
    name = "zhou2016/alexnet-star-gap" if kernels == _ALEXNET_KERNELS else "zhou2016/vgg16-gap"
    return RECIPES[name].convs
