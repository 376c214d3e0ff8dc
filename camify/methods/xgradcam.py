"""XGrad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["XGradCAM"]


@register("xgradcam")
class XGradCAM(Method):
    """XGrad-CAM, sum_k w_k A_k(x, y) with w_k = sum_xy A_k dy_c / dA_k over sum_xy A_k; heat is its ReLU.

    Fu et al. 2020, "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", eq. 8. The gradients
    of a channel are weighed by its activations, not averaged. Class-discriminative; one forward, and one backward pass
    of the head.

    The map's sum is that of HiResCAM, also where the places differ. With global average pooling and a linear head it is
    CAM / (h w). A channel whose activations add up to zero has no weight.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> XGradCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # weight 1 / 4
        tensor([[[0.2500, 0.5000],
                 [0.7500, 1.0000]]])
    """

    uses_gradients = True

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        activations = forward.activations
        sums = activations.sum((2, 3))
        shares = (activations * forward.gradients(targets_N)).sum((2, 3))
        weights = torch.where(sums == 0, 0, shares / torch.where(sums == 0, 1, sums))
        return weighted_maps(activations, weights)
