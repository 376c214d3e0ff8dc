"""Class activation mapping."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ConversionError
from ..maps import select
from ..model import CAMNet
from ..modes import evaluating

__all__ = ["CAM", "check_targets"]


class CAM:
    """Raw class activation maps, M_c(x, y) = sum_k w_kc f_k(x, y).

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", eq. 2. Signed, at map resolution,
    no ReLU, no bias: with global average pooling their mean plus the bias is the logit. One forward, no gradient,
    no hook; the model's modes are left as they were.

    Args:
        model: a CAMNet.
        layer: None; CAM exists at the last spatial map only.

    Raises:
        ConversionError: the model is not CAM-ready; says how to make it so.
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        if not isinstance(model, CAMNet):
            raise ConversionError(
                f"CAM needs a CAM-ready network; this is {type(model).__name__}. Use camify.convert(model, ...)."
            )
        if layer is not None:
            raise ConfigError(f"layer={layer!r}: CAM exists at the last spatial map only. Leave it None.")
        self.model = model

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: int | Tensor | None = None) -> Tensor:
        """Maps (N, h, w) of images (N, 3, H, W) for the targets: top-1 (None), one class, or one class per image."""
        with evaluating(self.model):
            logits, maps = self.model.forward_with_maps(images)
        return select(maps, check_targets(targets, logits))


def check_targets(targets: int | Tensor | None, logits_NK: Tensor) -> Tensor:
    """Targets as classes (N,) on the device of the logits.

    Raises:
        ConfigError: their number is not that of the images, or one is no class.
    """
    count, classes = logits_NK.shape
    if targets is None:
        return logits_NK.argmax(dim=1)
    found = torch.as_tensor(targets, device=logits_NK.device)
    if found.dim() == 0:
        found = found.expand(count)
    if found.shape != (count,) or found.is_floating_point():
        raise ConfigError(f"targets: {tuple(found.shape)} for {count} images. Give None, one class, or one per image.")
    if bool(((found < 0) | (found >= classes)).any()):
        raise ConfigError(f"targets: {found.tolist()} must lie in 0..{classes - 1}.")
    return found.long()
