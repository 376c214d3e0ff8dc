"""Finer-CAM."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass

__all__ = ["FinerCAM"]

_VARIANTS = ("paper", "authors")


@register("finercam")
class FinerCAM(Method):
    """Finer-CAM, Grad-CAM of y_c - gamma mean_d y_d: why the class and not those most like it; heat is its ReLU.

    Zhang et al. 2025, "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation". The
    classes d are those whose logits are nearest to that of c. Class-discriminative; one forward, and one backward pass
    of the head. With global average pooling and a linear head it is the CAM of the weights w_c - gamma mean_d w_d,
    over (h w). A network of one logit has one other class.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        gamma: how much of the other classes is taken off; 0 is Grad-CAM. The authors' code has 1, torch-cam 0.6.
        classes: how many other classes; as many as there are, at most.
        variant: ``"paper"``: the mean over the other classes. ``"authors"``: their code, a mean weighted by the
            probabilities, which are derived too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> FinerCAM(network, gamma=0.5)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # (1 - 0.5) / 4
        tensor([[[0.1250, 0.2500],
                 [0.3750, 0.5000]]])
    """

    uses_gradients = True

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        gamma: float = 0.6,
        classes: int = 3,
        variant: str = "paper",
    ) -> None:
        super().__init__(model, layer)
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma < math.inf:
            raise ConfigError(f"FinerCAM: gamma={gamma!r} must be a number that is not negative.")
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise ConfigError(f"FinerCAM: classes={classes!r}: must be a whole number of at least 1.")
        if variant not in _VARIANTS:
            raise ConfigError(f"FinerCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.gamma, self.classes, self.variant = gamma, classes, variant

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        others_ND = _most_alike(forward.logits, targets_N, self.classes)

        def score(logits_NK: Tensor) -> Tensor:
            compared_ND = logits_NK.gather(1, others_ND)
            if self.variant == "authors":
                shares_ND = forward.classes.probabilities(logits_NK).gather(1, others_ND)
                other = (shares_ND * compared_ND).sum(1) / (shares_ND.sum(1) + 1e-9)
            else:
                other = compared_ND.mean(1)
            return logits_NK.gather(1, targets_N[:, None])[:, 0] - self.gamma * other

        weights_NC = forward.gradient_of(score).mean((2, 3))
        return weighted_maps(forward.activations, weights_NC)


def _most_alike(logits_NK: Tensor, targets_N: Tensor, count: int) -> Tensor:
    """The classes (N, D) whose logits are nearest to that of the target, which is not among them."""
    distances = (logits_NK - logits_NK.gather(1, targets_N[:, None])).abs()
    distances = distances.scatter(1, targets_N[:, None], math.inf)
    return distances.sort(dim=1, stable=True).indices[:, : min(count, logits_NK.shape[1] - 1)]
