"""IS-CAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import register
from .forward_pass import PRECISIONS, ForwardPass
from .noise import check_noise
from .scorecam import ScoreCAM

__all__ = ["ISCAM"]

_VARIANTS = ("sums", "line")


@register("iscam")
class ISCAM(ScoreCAM):
    """IS-CAM: Score-CAM integrated over masks, w the softmax over k of mean_i y_c(s_i x . H_k) - y_c(0), i = 1 ... n.

    Naidu et al. 2020, "IS-CAM: Integrated Score-CAM for axiomatic-based explanations". The mask H_k and the
    baseline are Score-CAM's; no noise is drawn. Class-discriminative, no gradients; ``samples`` forwards for every
    channel that is not constant: hours for one image of a large network on a CPU.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"sums"``: s_i = sum_(j <= i) j / n, masked images added up, as torch-cam (0.5) reads the paper.
            ``"line"``: s_i = i / n, the integral from the baseline to the masked image.
        samples: n, steps of the integral.
        chunk: masked images in one forward, memory grows with it; None: 8 on a CPU, 32 on a GPU, 64 in half precision.
        precision: ``"fp32"`` (as the network is), or ``"bf16"``, ``"fp16"``: the masked forwards under autocast.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> ISCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # one channel: weight 1
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        variant: str = "sums",
        samples: int = 10,
        chunk: int | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, layer, chunk=chunk, precision=precision)
        check_noise("ISCAM", samples, 0.0)
        if variant not in _VARIANTS:
            raise ConfigError(f"ISCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        self.steps, self.samples = variant, samples

    def further_forwards(self, channels: int) -> int:
        """``samples`` for every channel, and one of the baseline."""
        return self.samples * channels + 1

    def _scores(self, forward: ForwardPass, image: Tensor, masks_MHW: Tensor, target: int, baseline: Tensor) -> Tensor:
        shares = torch.arange(1, self.samples + 1, dtype=torch.float64) / self.samples
        masked = image * masks_MHW[:, None]
        logits = [
            forward.network(share * masked, autocast=PRECISIONS[self.precision]) - baseline
            for share in (shares.cumsum(0) if self.steps == "sums" else shares).tolist()
        ]
        return torch.stack(logits).mean(0)[:, target]
