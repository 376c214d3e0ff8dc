"""LayerCAM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import upsample
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["LayerCAM"]


@register("layercam")
class LayerCAM(Method):
    """LayerCAM, sum_k ReLU(dy_c / dA_k(x, y)) A_k(x, y); heat is its ReLU.

    Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", eq. 5 to 7. Weighs
    every position by itself, so it also serves layers far from the head. Of several layers, such as the ends of a
    network's stages, the maps are fused into one of the finest layer's size (section III, eq. 9): the largest value of
    ``tanh(gamma M / max M)`` of each, upsampled; one forward and one backward pass serve all.

    Args:
        model: any network that classifies images.
        layer: exact name of the module whose map is looked at, or names of several; None is the last spatial map.
        gamma: how soon a map of several is saturated; the paper's is 2.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> LayerCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # gradient 1 / 4
        tensor([[[0.2500, 0.5000],
                 [0.7500, 1.0000]]])
    """

    uses_gradients = True
    fuses_layers = True

    def __init__(self, model: nn.Module, layer: str | Sequence[str] | None = None, *, gamma: float = 2.0) -> None:
        super().__init__(model, layer)
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma < math.inf:
            raise ConfigError(f"gamma={gamma!r} must be a positive number.")
        self.gamma = gamma

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w)."""
        maps = [
            (gradients.relu() * activations).sum(1)
            for activations, gradients in forward.maps_and_gradients(targets_N)
        ]  # fmt: skip
        return maps[0] if len(maps) == 1 else _fused(maps, self.gamma)


def _fused(maps: Sequence[Tensor], gamma: float) -> Tensor:
    """Maps (N, h_i, w_i) as one of the finest size, in [0, 1]; one that is nowhere positive counts as zeros."""
    size = max((maps_Nhw.shape[-2:] for maps_Nhw in maps), key=math.prod)
    scaled = []
    for maps_Nhw in maps:
        positive = maps_Nhw.relu()
        peak = positive.amax((1, 2), keepdim=True)
        scaled.append(upsample(torch.tanh(gamma * positive / torch.where(peak > 0, peak, 1)), (size[0], size[1])))
    return torch.stack(scaled).amax(0)
