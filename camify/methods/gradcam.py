"""Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["GradCAM"]


@register("gradcam")
class GradCAM(Method):
    """Grad-CAM, sum_k a_k A_k(x, y) with a_k = mean_xy dy_c / dA_k(x, y); heat is its ReLU.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", eq. 1
    and 2; y_c is the logit. With global average pooling and a linear head it is CAM / (h w).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> GradCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # weight 1 / 4
        tensor([[[0.2500, 0.5000],
                 [0.7500, 1.0000]]])
    """

    uses_gradients = True

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        weights = forward.gradients(targets_N).mean((2, 3))
        return weighted_maps(forward.activations, weights)
