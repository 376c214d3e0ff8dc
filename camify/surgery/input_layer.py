"""Networks made for another input than RGB: Caffe's BGR in 0..255, and grey images."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from ..errors import ConversionError
from ..modes import without_hooks
from .input_format import preprocessing_of
from .sources import Source

__all__ = ["INPUT_FORMATS", "adapt_input"]

INPUT_FORMATS = ("caffe", "grayscale")
_CAFFE_MEAN = (123.68, 116.779, 103.939)  # RGB, of ILSVRC's training images, as Caffe's VGG networks subtract it


@torch.no_grad()
def adapt_input(source: Source, input_format: str) -> Source:
    """A copy of a network for another input, with the preprocessing that goes with it; the network itself stays.

    ``"caffe"``: it was made for BGR in 0..255 without the mean (Caffe's VGG and AlexNet, Zhou's released networks).
    The channels of its first convolution are turned around, exactly; range and mean go into the preprocessing
    (mean 123.68, 116.779, 103.939 of 255, standard deviation 1 of 255), which is exact at zero-padded borders too,
    where a mean folded into the bias would not be.

    ``"grayscale"``: the kernels of its first convolution are summed over the input channels. That is exact for a grey
    image that was normalised in the same way in all channels (fastai does likewise), else close.

    Raises:
        ConversionError: the format is unknown, or no convolution takes the three channels of the image.
    """
    if input_format not in INPUT_FORMATS:
        raise ConversionError(f"input_format={input_format!r} is unknown. Choose one of {', '.join(INPUT_FORMATS)}.")
    with without_hooks(source.model):
        model = copy.deepcopy(source.model)
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        found = "none" if first is None else f"{first.in_channels} channels in {first.groups} group(s)"
        raise ConversionError(f"input_format={input_format!r}: the first convolution must take RGB; found {found}.")
    if input_format == "caffe":
        first.weight.copy_(first.weight.flip(1))
        note = "First convolution turned from BGR to RGB; 0..255 and the mean of Caffe went into the preprocessing."
        size = int((source.preprocessing or {}).get("size", 224))
        preprocessing = preprocessing_of(size, [mean / 255 for mean in _CAFFE_MEAN], [1 / 255] * 3)
        return replace(source, model=model, preprocessing=preprocessing, notes=(*source.notes, note))
    first.weight = nn.Parameter(first.weight.sum(1, keepdim=True), requires_grad=first.weight.requires_grad)
    first.in_channels = 1
    note = "First convolution summed over its input channels: takes one grey channel, normalised as all three were."
    return replace(source, model=model, preprocessing=None, notes=(*source.notes, note))
