"""Eigen-CAM and Eigen-Grad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["EigenCAM", "EigenGradCAM"]

_VARIANTS = ("paper", "pytorch-grad-cam")


@register("eigencam")
class EigenCAM(Method):
    """Eigen-CAM, sum_k v_k A_k(x, y), v the first right singular vector of A as (h w, C); heat is its ReLU.

    Muhammad & Yeasin 2020, "Eigen-CAM: Class Activation Map using Principal Components". It knows no class: the map
    is the same for every target. One forward, no gradients.

    The sign of a singular vector is arbitrary, and the paper chooses none. Here the map agrees with the sum of the
    channels: their product over the positions is not negative. Where no activation is negative (behind a ReLU) the map
    has no negative value then.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"paper"``: of A as it is. ``"pytorch-grad-cam"`` (1.5): of A less each channel's mean, the first
            principal component proper; their sign is the one that comes out of the decomposition.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1
        >>> EigenCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # of one channel: v = 1
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    class_discriminative = False

    def __init__(self, model: nn.Module, layer: str | None = None, *, variant: str = "paper") -> None:
        super().__init__(model, layer)
        if variant not in _VARIANTS:
            raise ConfigError(f"EigenCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.variant = variant

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:  # noqa: ARG002 - the same for every class
        """(N, h, w), before the ReLU."""
        return _first_component(forward.activations, centered=self.variant != "paper")


@register("eigengradcam")
class EigenGradCAM(Method):
    """Eigen-Grad-CAM, the first principal component of A_k(x, y) dy_c / dA_k(x, y) over the channels; heat is its ReLU.

    Of pytorch-grad-cam (1.5), which takes Eigen-CAM's step with the gradients; there is no paper. Each channel's mean
    is taken off first, so that values say more or less evidence than on average. Class-discriminative; one forward,
    and one backward pass of the head.

    The sign, there arbitrary, is the one that agrees with the sum of the channels, which is HiResCAM: their product
    over the positions is not negative.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> EigenGradCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # (map - 2.5) / 4
        tensor([[[-0.3750, -0.1250],
                 [ 0.1250,  0.3750]]])
    """

    uses_gradients = True

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        return _first_component(forward.activations * forward.gradients(targets_N), centered=True)


def _first_component(values_NCHW: Tensor, *, centered: bool) -> Tensor:
    """The projection (N, h, w) of the cells' vectors on the direction in which they are longest, or differ most.

    Its sign agrees with the sum of the channels; it is zero where the vectors do not differ by more than rounding.
    """
    cells_NPC = values_NCHW.flatten(2).transpose(1, 2)
    size = torch.linalg.matrix_norm(cells_NPC)
    if centered:
        cells_NPC = cells_NPC - cells_NPC.mean(1, keepdim=True)
    _, lengths, directions = torch.linalg.svd(cells_NPC, full_matrices=False)
    maps_NP = torch.einsum("npc,nc->np", cells_NPC, directions[:, 0])
    rounding = torch.finfo(maps_NP.dtype).eps * max(cells_NPC.shape[1:]) * size
    sign = torch.where((maps_NP * cells_NPC.sum(2)).sum(1) < 0, -1.0, 1.0)
    sign = torch.where(lengths[:, 0] > rounding, sign, 0.0).to(maps_NP.dtype)
    return (sign[:, None] * maps_NP).reshape(-1, *values_NCHW.shape[2:])
