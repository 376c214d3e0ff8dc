"""Score-CAM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..maps import normalize, upsample, weighted_maps
from .base import Method, register
from .forward_pass import PRECISIONS, ForwardPass, many_forwards

__all__ = ["ScoreCAM"]


class _Variant(NamedTuple):
    probabilities: bool = False  # of the masked images are the weights; else logits, and a softmax over the channels
    align_corners: bool = False
    normalize_first: bool = False  # the mask before it is upsampled
    epsilon: float | None = None  # added to the span of a mask


_VARIANTS = {
    "paper": _Variant(),
    "authors": _Variant(probabilities=True),
    "pytorch-grad-cam": _Variant(align_corners=True, epsilon=1e-8),
    "torch-cam": _Variant(normalize_first=True, epsilon=1e-8),
}


@register("scorecam")
class ScoreCAM(Method):
    """Score-CAM, sum_k w_k A_k(x, y), w the softmax over k of y_c(x . H_k) - y_c(x_b); heat is its ReLU.

    Wang et al. 2020, "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", eq. 4 to 6 and
    algorithm 1. The mask H_k is A_k upsampled and scaled to [0, 1]; the baseline x_b is zero, the mean color of
    normalized images. One forward for every channel that is not constant: the mask of a constant one is zero, and so
    its score is that of the baseline.

    Args:
        model: any network that classifies images.
        layer: exact name of a module; None is the last spatial map.
        variant: ``"paper"``: algorithm 1, logits. ``"authors"``: their code, weights are the probabilities of the
            masked images, constant channels left out. ``"pytorch-grad-cam"`` (1.5): masks upsampled with
            align_corners. ``"torch-cam"`` (0.5): masks scaled before they are upsampled.
        chunk: masked images in one forward, memory grows with it; None: 8 on a CPU, 32 on a GPU, 64 in half precision.
        precision: ``"fp32"`` (as the network is), or ``"bf16"``, ``"fp16"``: the masked forwards under autocast.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> ScoreCAM(network)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), targets=0)  # one channel: weight 1
        tensor([[[1., 2.],
                 [3., 4.]]])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        variant: str = "paper",
        chunk: int | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, layer)
        if variant not in _VARIANTS:
            raise ConfigError(f"ScoreCAM: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        if precision not in PRECISIONS:
            raise ConfigError(f"ScoreCAM: precision={precision!r} is unknown. Choose one of {', '.join(PRECISIONS)}.")
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ConfigError(f"ScoreCAM: chunk={chunk!r}: must be a whole number of at least 1.")
        self.variant, self.chunk, self.precision = variant, chunk, precision

    def further_forwards(self, channels: int) -> int:
        """One for every channel, and one of the baseline."""
        return channels + 1

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, h, w), before the ReLU."""
        with many_forwards(self.model, forward.images.device, self.precision, self.chunk) as at_once:
            baseline = forward.network(torch.zeros_like(forward.images[:1]))[0]
            weights = [
                self._weights(forward, image, maps, int(target), baseline[target], at_once)
                for image, maps, target in zip(forward.images, forward.activations, targets_N, strict=True)
            ]
        return weighted_maps(forward.activations, torch.stack(weights))

    def _weights(
        self, forward: ForwardPass, image: Tensor, maps_CHW: Tensor, target: int, baseline: Tensor, at_once: int
    ) -> Tensor:
        """Weights (C,) of the channels of one image."""
        variant = _VARIANTS[self.variant]
        varies = (maps_CHW.amax((1, 2)) > maps_CHW.amin((1, 2))).nonzero().flatten()
        scores = maps_CHW.new_zeros(len(maps_CHW))
        for channels in torch.split(varies, at_once):
            masks_MHW = self._masks(maps_CHW[channels], image).to(image.dtype)
            scores[channels] = self._scores(forward, image, masks_MHW, target, baseline)
        return scores if variant.probabilities else scores.softmax(0)

    def _scores(self, forward: ForwardPass, image: Tensor, masks_MHW: Tensor, target: int, baseline: Tensor) -> Tensor:
        """Scores (M,) of the class for so many masks of one image."""
        logits = forward.network(image * masks_MHW[:, None], autocast=PRECISIONS[self.precision])
        probabilities = _VARIANTS[self.variant].probabilities
        return (forward.classes.probabilities(logits) if probabilities else logits - baseline)[:, target]

    def _masks(self, maps: Tensor, image: Tensor) -> Tensor:
        """Masks (M, H, W) in [0, 1]."""
        variant, size = _VARIANTS[self.variant], (image.shape[-2], image.shape[-1])
        if variant.align_corners:
            big = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
        elif variant.normalize_first:
            return upsample(_scaled(maps, variant.epsilon), size)
        else:
            big = upsample(maps, size)
        return _scaled(big, variant.epsilon)


def _scaled(maps: Tensor, epsilon: float | None) -> Tensor:
    if epsilon is None:
        return normalize(maps)
    low = maps.amin((-2, -1), keepdim=True)
    return (maps - low) / (maps.amax((-2, -1), keepdim=True) - low + epsilon)
