"""ShapleyCAM."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["ShapleyCAM"]

_VARIANTS = ("rest", "logit")


@register("shapleycam")
class ShapleyCAM(Method):
    """ShapleyCAM, sum_k w_k A_k(x, y) with w_k = mean_xy (g - H A / 2), g and H of a utility u; heat is its ReLU.

    Cai 2025, "CAMs as Shapley Value-based Explainers": Shapley values of the map, by a Taylor series to the second
    order. g is du / dA and H A the product of the Hessian of u with A, for which no Hessian is made.
    Class-discriminative; one forward, a backward pass of the head, and a backward pass of that.

    Where the head is piecewise linear, H of a logit is zero: variant ``"logit"`` is Grad-CAM then.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"rest"``: u = y_c + log p_c, the paper's utility; p is a sigmoid where the task has one.
            ``"logit"``: u = y_c, which pytorch-grad-cam (1.5) takes unless told otherwise.

    Raises:
        ConversionError: a step behind the layer cannot be derived twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> ShapleyCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # both classes alike: weight 1/4
        tensor([[[0.2500, 0.5000],
                 [0.7500, 1.0000]]])
    """

    uses_gradients = True

    def __init__(self, model: nn.Module, layer: str | None = None, *, variant: str = "rest") -> None:
        super().__init__(model, layer)
        if variant not in _VARIANTS:
            raise ConfigError(f"ShapleyCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.variant = variant

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""

        def utility(logits_NK: Tensor) -> Tensor:
            scores_NK = logits_NK
            if self.variant == "rest":
                scores_NK = logits_NK + forward.classes.task.log_probabilities(logits_NK)
            return scores_NK.gather(1, targets_N[:, None])[:, 0]

        gradients, products = forward.gradient_and_curvature(utility)
        weights_NC = (gradients - products / 2).mean((2, 3))
        return weighted_maps(forward.activations, weights_NC)
