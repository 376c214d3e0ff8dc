"""HiResCAM."""

from __future__ import annotations

from torch import Tensor

from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["HiResCAM"]


@register("hirescam")
class HiResCAM(Method):
    """HiResCAM, sum_k A_k(x, y) dy_c / dA_k(x, y): Grad-CAM without the mean of the gradients; heat is its ReLU.

    Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks".
    Class-discriminative; one forward, and one backward pass of the head.

    Where the head is piecewise linear (flatten, linear layers, ReLU: VGG, AlexNet) the map's sum is exactly the logit
    without what the biases add: ``sum(map) = y_c - bias part``, the bias part being the logit that the same ReLUs,
    open or closed as they are for this image, give to a map of zeros. With global average pooling and a linear head it
    is CAM / (h w).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its sum + 1
        >>> HiResCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # its sum is the logit without 1
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    uses_gradients = True

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        return (forward.activations * forward.gradients(targets_N)).sum(1)
