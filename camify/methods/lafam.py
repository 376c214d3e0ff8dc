"""LaFAM."""

from __future__ import annotations

from torch import Tensor

from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["LaFAM"]


@register("lafam")
class LaFAM(Method):
    """Label-free activation map, the mean of A_k(x, y) over the channels; no ReLU.

    Karjauv & Albayrak 2024, "LaFAM: Unsupervised Feature Attribution with Label-free Activation Maps". It knows no
    class: the map is the same for every target. One forward, no gradients. Heat is upsampled before it is
    scaled, as that of every method here; the paper scales first.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1
        >>> LaFAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    relu = False
    class_discriminative = False

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:  # noqa: ARG002 - the same for every class
        """(N, h, w)."""
        return forward.activations.mean(1)
