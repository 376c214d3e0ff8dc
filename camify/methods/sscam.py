"""SS-CAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import register
from .forward_pass import PRECISIONS, ForwardPass
from .noise import check_noise, noise
from .scorecam import ScoreCAM

__all__ = ["SSCAM"]

_VARIANTS = ("mask", "input")


@register("sscam")
class SSCAM(ScoreCAM):
    """SS-CAM: Score-CAM with scores averaged over noise, w the softmax over k of mean_i y_c(x . (H_k + e_i)) - y_c(0).

    Wang et al. 2020, "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization". The mask H_k and
    the baseline are Score-CAM's. The noise e_i of sample i is the same for all channels, which are so compared alike,
    and for all images. A constant channel has no mask: its score is that of the baseline. Class-discriminative, no
    gradients; ``samples`` forwards for every channel: hours for one image of a large network on a CPU.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"mask"``: noise on the mask, as above, SS-CAM (1). ``"input"``: on the masked image, x . H_k + e_i,
            SS-CAM (2). The authors' code has probabilities in the place of y_c, and noise by each map's range.
        samples: of the noise for each channel.
        sigma: its deviation.
        seed: of the noise.
        chunk: masked images in one forward, memory grows with it; None: 8 on a CPU, 32 on a GPU, 64 in half precision.
        precision: ``"fp32"`` (as the network is), or ``"bf16"``, ``"fp16"``: the masked forwards under autocast.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> SSCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # one channel: weight 1
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        variant: str = "mask",
        samples: int = 35,
        sigma: float = 2.0,
        seed: int = 0,
        chunk: int | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, layer, chunk=chunk, precision=precision)
        check_noise("SSCAM", samples, sigma)
        if variant not in _VARIANTS:
            raise ConfigError(f"SSCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.noise_on, self.samples, self.sigma, self.seed = variant, samples, sigma, seed

    def further_forwards(self, channels: int) -> int:
        """``samples`` for every channel, and one of the baseline."""
        return self.samples * channels + 1

    def _scores(self, forward: ForwardPass, image: Tensor, masks_MHW: Tensor, target: int, baseline: Tensor) -> Tensor:
        masks, total = masks_MHW[:, None], torch.zeros(len(masks_MHW), dtype=baseline.dtype, device=baseline.device)
        on_mask = self.noise_on == "mask"
        for copy in noise(self.samples, masks.shape[2:] if on_mask else image.shape, self.sigma, self.seed):
            moved = copy.to(image)
            masked = image * (masks + moved) if on_mask else image * masks + moved
            total += (forward.network(masked, autocast=PRECISIONS[self.precision]) - baseline)[:, target]
        return total / self.samples
