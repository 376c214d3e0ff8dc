"""Smooth Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..maps import weighted_maps
from .base import Method, register
from .forward_pass import ForwardPass
from .noise import check_noise, noise

__all__ = ["SmoothGradCAMPlusPlus"]


@register("smoothgradcam++")
class SmoothGradCAMPlusPlus(Method):
    """Smooth Grad-CAM++: Grad-CAM++ with powers of the gradients averaged over noisy copies of the image; heat: ReLU.

    Omeiza et al. 2019, "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional
    Neural Network Models". With D_p the mean of (dy_c / dA_k)^p over the copies and S_k the sum of A_k,
    w_k = sum_xy ReLU(D_1) D_2 / (2 D_2 + S_k D_3); the map is sum_k w_k A_k, A of the image itself. The paper prints
    D_1 in the numerator, where Grad-CAM++, which it extends, has D_2. torch-cam (0.5) has the gradient of the last copy
    in the place of D_1. Class-discriminative; ``samples`` forwards, and as many backward passes of the head.

    With global average pooling and a linear head gradients do not depend on the image: it is Grad-CAM++, from the one
    forward.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        samples: noisy copies.
        sigma: deviation of the noise, in the values of prepared images, which themselves have one near 1.
        seed: of the noise, which is the same for every image.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> SmoothGradCAMPlusPlus(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # as Grad-CAM++
        tensor([[[0.2222, 0.4444],
                 [0.6667, 0.8889]]])
    """

    uses_gradients = True

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        samples: int = 4,
        sigma: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(model, layer)
        check_noise(type(self).__name__, samples, sigma)
        self.samples, self.sigma, self.seed = samples, sigma, seed

    def further_forwards(self, channels: int) -> int:  # noqa: ARG002 - however many channels
        """One for every noisy copy."""
        return self.samples

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        activations = forward.activations
        if forward.weight is not None:
            gradients = [forward.gradients(targets_N)]
        else:
            noises = noise(self.samples, forward.images.shape[1:], self.sigma, self.seed)
            gradients = [
                forward.of_images(forward.images + copy.to(forward.images)).gradients(targets_N) for copy in noises
            ]
        copies = torch.stack(gradients)
        largest = copies.abs().amax((0, 2, 3, 4))[:, None, None, None]  # powers of gradients over it do not underflow
        copies = copies / torch.where(largest == 0, 1, largest)
        first, second, third = (copies.pow(power).mean(0) for power in (1, 2, 3))
        denominator = 2 * second + activations.sum((2, 3), keepdim=True) * largest * third
        alphas = torch.where(denominator == 0, 0, second / torch.where(denominator == 0, 1, denominator))
        weights_NC = (alphas * largest * first.relu()).sum((2, 3))
        return weighted_maps(activations, weights_NC)
