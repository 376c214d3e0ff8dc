"""FullGrad."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError, ConversionError
from ..maps import normalize, upsample
from .base import Method, Targets, check_targets, register
from .forward_pass import ForwardPass, observe
from .given_images import network_input

__all__ = ["FullGrad", "FullGradients"]

_VARIANTS = ("paper", "authors")
_CONVOLUTIONS = (
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip
_BATCH_NORM = inspect.signature(F.batch_norm)


class FullGradients(NamedTuple):
    """A logit as a sum of parts: ``total`` equals it where the network is piecewise linear.

    Attributes:
        image: (N, C, H, W), gradient times image.
        biases: (N, C, ...) of every convolution, batch norm and linear layer, in the order in which they run: the
            gradient by the layer's output times its bias.
    """

    image: Tensor
    biases: list[Tensor]

    @property
    def total(self) -> Tensor:
        """The sum (N,) of all parts."""
        return torch.stack([part.flatten(1).sum(1) for part in (self.image, *self.biases)]).sum(0)


@register("fullgrad")
class FullGrad(Method):
    """FullGrad, psi(dy_c/dx . x) + sum over layers and channels of psi(dy_c/db . b), at the size of the image.

    Srinivas & Fleuret 2019, "Full-Gradient Representation for Neural Network Visualization", eq. 3 and 8 to 10. psi
    takes the absolute value, scales it to [0, 1] and upsamples it. The bias of a batch norm is its implicit one,
    beta - gamma mu / sigma. Linear layers behind the last map have no place in the image and are left out of the map.

    Before psi the parts add up to the logit, exactly, where the network is piecewise linear (convolutions, linear
    layers, batch norm, ReLU, pooling); ``parts`` gives them. With smooth activations, products of activations or layer
    norm they add up to something else: the map is computed, and is not complete. One forward and one backward pass of
    the whole network.

    Args:
        model: any network of convolutions that classifies images.
        layer: None; all layers take part.
        variant: ``"paper"``: each channel is scaled by itself, as eq. 8 says and pytorch-grad-cam (1.5) does.
            ``"authors"``: their code, all channels of a layer are scaled together, upsampled with align_corners.

    Raises:
        ConfigError: the variant is unknown, or a layer is given.
        ConversionError: biases of the network have no map (N, C, h, w), as in transformers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> FullGrad(network)(image, targets=0)  # gradient 1 / 4; the parts of the biases are the same everywhere
        tensor([[[0.0000, 0.3333],
                 [0.6667, 1.0000]]])
        >>> parts = FullGrad(network).parts(image, targets=0)
        >>> parts.image.sum(), [part.sum() for part in parts.biases], network(image)[0, 0].detach()
        (tensor(1.5000), [tensor(1.), tensor(1.)], tensor(3.5000))
    """

    uses_gradients = True
    relu = False

    def __init__(self, model: nn.Module, layer: str | None = None, *, variant: str = "paper") -> None:
        if variant not in _VARIANTS:
            raise ConfigError(f"FullGrad: variant={variant!r} is unknown. Choose one of {', '.join(_VARIANTS)}.")
        if layer is not None:
            raise ConfigError(f"layer={layer!r}: FullGrad takes all layers. Leave it None.")
        super().__init__(model, layer)
        self.variant = variant

    def further_forwards(self, channels: int) -> int:  # noqa: ARG002 - however many there are
        """One, through which the gradients go back to the image."""
        return 1

    def parts(self, images: Any, targets: Targets = None) -> FullGradients:
        """The parts whose sum is the logit of one class per image.

        Args:
            images: as of a method's call.
            targets: top-1 (None), one class, or one class per image (N,).

        Raises:
            ConfigError: the targets do not match the images.
            ConversionError: a batch norm keeps no running statistics, or a layer does not give a part of each image.
        """
        with observe(self.model, network_input(self.model, images)) as forward:
            targets_N = check_targets(targets, forward.logits, forward.classes)
            if targets_N.dim() > 1:
                raise ConfigError("FullGrad.parts: targets: give one class per image.")
            return _full_gradients(forward, targets_N)

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, H, W), not negative."""
        image, biases = _full_gradients(forward, targets_N)
        total = self._psi(image, image.shape[-2:])
        for part in biases:
            if part.dim() not in (2, 4):
                raise _no_map(part)
            if part.dim() == 4:
                total += self._psi(part, image.shape[-2:])
        return total

    def _psi(self, part_NCHW: Tensor, size: tuple[int, ...]) -> Tensor:
        """Saliency (N, H, W) of a part, summed over its channels; upsampling is linear, so it comes last."""
        values = part_NCHW.abs()
        if self.variant == "paper":
            return upsample(normalize(values).sum(1), (size[0], size[1]))
        values = values - values.amin((1, 2, 3), keepdim=True)
        scaled = values / (values.amax((1, 2, 3), keepdim=True) + 1e-6)
        return F.interpolate(scaled.sum(1, keepdim=True), size=size, mode="bilinear", align_corners=True)[:, 0]


def _full_gradients(forward: ForwardPass, targets_N: Tensor) -> FullGradients:
    with torch.enable_grad():
        images = forward.images.clone().requires_grad_()
        with _LayersWithBias() as layers:
            logits = forward.with_graph(images)
        score = logits.gather(1, targets_N[:, None]).sum()
    outputs, biases = [output for output, _ in layers.seen], [bias for _, bias in layers.seen]
    if not score.requires_grad:
        raise ConversionError("FullGrad: no gradient reaches the image from the logits.")
    by_image, *by_output = torch.autograd.grad(score, [images, *outputs], allow_unused=True)
    if by_image is None:
        raise ConversionError("FullGrad: no gradient reaches the image from the logits.")
    wide = score.dtype
    parts = [
        gradient.to(wide) * bias.to(wide)
        for gradient, bias in zip(by_output, biases, strict=True)
        if gradient is not None  # else the logit does not depend on it
    ]
    for part in parts:
        if len(part) != len(images):
            raise _no_map(part)
    return FullGradients(by_image.to(wide) * forward.images.to(wide), parts)


def _no_map(part: Tensor) -> ConversionError:
    return ConversionError(
        f"FullGrad: a layer with biases gives {tuple(part.shape)} (channels second), no map (N, C, h, w) of each image."
        " The method is for networks of convolutions. Use gradcam."
    )


class _LayersWithBias(TorchFunctionMode):
    """Keeps what convolutions, linear layers and batch norms give, with their biases, whoever calls them.

    Attributes:
        seen: each one's output (N, C, ...) and its bias, which can be multiplied; of a layer that runs twice both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        bias = _bias_of(func, args, kwargs)
        if bias is None:
            return output
        if not output.requires_grad:  # of a frozen network, where it does not depend on the image
            output.requires_grad_()
        first = output.movedim(-1, 1) if func is F.linear else output  # (N, C, ...)
        self.seen.append((first, bias.detach().reshape(-1, *[1] * (first.dim() - 2))))
        return (first.movedim(1, -1) if func is F.linear else first).clone()  # the next step may work in place


def _bias_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The bias (C,) that a function adds; None where it adds none."""
    if func is F.linear or func in _CONVOLUTIONS:
        explicit: Tensor | None = args[2] if len(args) > 2 else kwargs.get("bias")
        return explicit
    if func is not F.batch_norm:
        return None
    given: dict[str, Any] = _BATCH_NORM.bind(*args, **kwargs).arguments
    mean, variance = given["running_mean"], given["running_var"]
    if mean is None or given.get("training"):
        raise ConversionError(
            "FullGrad: a batch norm keeps no running statistics: its bias depends on the batch. Use gradcam."
        )
    weight, bias = given.get("weight"), given.get("bias")
    scale = (variance + given.get("eps", 1e-5)).rsqrt()
    shift: Tensor = -mean * (scale if weight is None else scale * weight)
    return shift if bias is None else shift + bias
