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
    """

    uses_gradients = True

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w)."""
        return (forward.gradients(targets_N).relu() * forward.activations).sum(1)
