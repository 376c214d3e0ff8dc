"""Input formats of old networks: BGR, Caffe's range, grayscale; folded into the first convolution where exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.certificate import TOLERANCE
from ..errors import ConversionError
from ..eval_mode import eval_mode, without_hooks
from ..preprocessing import Preprocessing

__all__ = ["INPUT_FORMATS", "adapt_input", "describe_input"]

INPUT_FORMATS = ("rgb", "bgr", "caffe", "grayscale")
CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)
"""Of values in 0..255, as the networks of Caffe's model zoo were trained (its VGG-16 and GoogLeNet among them)."""


def adapt_input(
    model: nn.Module,
    *,
    channel_order: str = "rgb",
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    example: Tensor | None = None,
) -> nn.Module:
    """A copy of a network that takes RGB or grayscale images, by its first convolution's weights alone.

    The first ``Conv2d`` (in the order of the modules) that takes three channels is taken to see the image; with
    ``example`` that is checked.

    - ``channel_order="bgr"``: the network was trained on BGR, the copy takes RGB. The kernel's input channels are
      flipped: exact.
    - ``channels=1``: the copy takes one channel. The kernel is summed over its input channels: exact for images that
      were gray in all three under one normalization. Where ``mean`` and ``std`` of the three differ, the copy expects
      their averages; the kernel takes up the different ``std``, exactly, and the bias the different ``mean``, exactly
      but for cells whose window reaches into zero padding (there the network pads after normalising).

    Args:
        model: a network that takes images (N, 3, H, W); left as it is.
        channel_order: ``"rgb"`` or ``"bgr"``: what the network was trained on.
        channels: 1, or None or 3 for color.
        mean: three, of values in [0, 1], as the network was trained with, in its own order; None: all the same.
        std: likewise.
        example: images (N, C, H, W) for the copy, to compare it with the network on.

    Raises:
        ConversionError: no convolution takes the image, the copy answers otherwise than the network, or an option
            is unknown.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ConversionError(f"channel_order={channel_order!r} is unknown. Choose rgb or bgr.")
    if channels not in (None, 1, 3):
        raise ConversionError(
            f"channels={channels}: a color network can become one of 1 channel. For others no values are given by its"
            " weights: replace the first convolution yourself."
        )
    with without_hooks(model):
        adapted = copy.deepcopy(model)
        name, conv = _first_convolution(adapted)
        shift, scale = _shift_and_scale(mean, std) if channels == 1 else (torch.zeros(3), torch.ones(3))
        with torch.no_grad():
            if channel_order == "bgr" and channels != 1:
                conv.weight.copy_(conv.weight.flip(1))
            if channels == 1:
                _sum_channels(conv, shift.to(conv.weight), scale.to(conv.weight))
            if example is not None and not (shift.any() and _is_padded(conv)):
                expected = _as_before(example, channel_order if channels != 1 else "rgb", shift, scale)
                _compare(model, adapted, example, expected, name)
    return adapted


def describe_input(
    input_format: str, size: tuple[int, int], known: Preprocessing | None
) -> tuple[dict[str, Any], Preprocessing | None, str]:
    """How to adapt a network to a format: the options of ``adapt_input``, the new preprocessing, what is to be said.

    ``"caffe"``: BGR in 0..255 minus (104, 117, 123). The flip goes into the first convolution; range and mean into
    the preprocessing, which is exact at zero-padded borders too, where a mean folded into the bias is not.

    Args:
        input_format: one of ``INPUT_FORMATS``.
        size: height and width of the input, pixels, where ``known`` does not say.
        known: the network's own preprocessing, in its own order of channels, or None.
    """
    sides = size if known is None else known.size
    if input_format == "caffe":
        mean = tuple(value / 255 for value in reversed(CAFFE_MEAN_BGR))
        note = "input as Caffe's (BGR, 0..255, minus 104, 117, 123): the first convolution is flipped and takes RGB"
        return {"channel_order": "bgr"}, Preprocessing(sides, mean, (1 / 255,) * 3), note
    if input_format == "bgr":
        turned = None if known is None else Preprocessing(sides, known.mean[::-1], known.std[::-1])
        return {"channel_order": "bgr"}, turned, "input was BGR: the first convolution is flipped and takes RGB"
    note = "input is grayscale: the first convolution is summed over its input channels"
    if known is None:
        return {"channels": 1}, None, f"{note} (exact for gray pictures under one normalization of all three)"
    if len(set(known.mean)) > 1:
        note += "; their different means are in its bias, exact but beside zero padding"
    mean, std = ((sum(values) / len(values),) for values in (known.mean, known.std))
    return {"channels": 1, "mean": known.mean, "std": known.std}, Preprocessing(sides, mean, std), note


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    if getattr(model, "transform_input", False):
        raise ConversionError(
            "input format: the network transforms its input channel by channel (transform_input=True), which a"
            " convolution cannot take over. Build it with transform_input=False."
        )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3 and layer.groups == 1:
            return name, layer
    raise ConversionError("input format: no convolution of the network takes three channels, so none can be adapted.")


def _shift_and_scale(mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """What turns a gray input, normalized by the averages, into each of the network's own channels."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != 3:
            raise ConversionError(f"{name}: {len(values)} values for a network of 3 channels.")
    means = torch.tensor([0.0] * 3 if mean is None else list(mean), dtype=torch.float64)
    stds = torch.tensor([1.0] * 3 if std is None else list(std), dtype=torch.float64)
    shift = torch.zeros(3) if len(set(means.tolist())) == 1 else (means.mean() - means) / stds
    return shift, stds.mean() / stds


def _sum_channels(conv: nn.Conv2d, shift: Tensor, scale: Tensor) -> None:
    weight = conv.weight
    if shift.any():
        constant = (weight * shift[:, None, None]).sum((1, 2, 3))
        bias = constant if conv.bias is None else conv.bias + constant
        conv.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    summed = (weight * scale[:, None, None]).sum(1, keepdim=True)
    conv.weight = nn.Parameter(summed, requires_grad=weight.requires_grad)
    conv.in_channels = 1


def _is_padded(conv: nn.Conv2d) -> bool:
    return conv.padding == "same" or (conv.padding != "valid" and any(conv.padding))


def _as_before(images: Tensor, channel_order: str, shift: Tensor, scale: Tensor) -> Tensor:
    """Images of the new format as the network itself takes them."""
    shape = (1, 3, 1, 1)
    gray = images.shape[1] == 1
    images = images * scale.reshape(shape).to(images) + shift.reshape(shape).to(images) if gray else images
    return images.flip(1) if channel_order == "bgr" else images


def _compare(model: nn.Module, adapted: nn.Module, example: Tensor, expected: Tensor, name: str) -> None:
    parameter = next(model.parameters())
    with eval_mode(model), eval_mode(adapted):
        try:
            old, new = (net(x.to(parameter)) for net, x in ((model, expected), (adapted, example)))
        except Exception as error:
            raise ConversionError(
                f"input format: the network does not run on images {tuple(expected.shape[1:])}"
                f" ({type(error).__name__}: {error}). Give input_size."
            ) from error
    tolerance = max(TOLERANCE, 8 * torch.finfo(parameter.dtype).eps)
    if isinstance(old, Tensor) and not float((old - new).abs().max()) <= tolerance * float(old.abs().max()):
        raise ConversionError(
            f"input format: with {name} adapted the network answers otherwise than before: it is not the only layer"
            " that sees the image. Adapt the network yourself."
        )
