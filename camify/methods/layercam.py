"""LayerCAM."""

from __future__ import annotations

from torch import Tensor

from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["LayerCAM"]


@register("layercam")
class LayerCAM(Method):
    """LayerCAM, sum_k ReLU(dy_c / dA_k(x, y)) A_k(x, y); heat is its ReLU.

    Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", eq. 5 to 7. Weighs
    every position by itself, so it also serves layers far from the head.

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

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w)."""
        return (forward.gradients(targets_N).relu() * forward.activations).sum(1)
