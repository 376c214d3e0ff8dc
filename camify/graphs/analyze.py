"""Examining a classifier: what cannot be examined is refused, the rest is run and cut at its last spatial map."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from ..eval_mode import eval_mode, full_precision, without_hooks
from ..logits import BATCH_NOTE, MixedImagesError, chance_note, require_image_input, spread
from ..preprocessing import LARGEST_SIDE, sides_of
from .analysis import NetworkAnalysis
from .traced import analyze_traced
from .tracer import TracingError
from .untraceable import analyze_untraced

__all__ = ["analyze", "checked_parameter"]


@full_precision()
def analyze(model: nn.Module, input_size: int | tuple[int, int], example: Tensor | None) -> NetworkAnalysis:
    """The analysis of a network, which is left as it was: its modes, its hooks (none runs) and its values.

    Networks in half precision are examined as a float32 copy. The network is traced by torch.fx; where its forward
    cannot be, or differs in training, its modules are watched instead, and its own code is kept.

    Whether it gives the same logits each time is looked at as well (``NetworkAnalysis.spread``).

    Raises:
        ConversionError: the network is wrapped, cannot be run, or has no map; says why and what to do.
    """
    _refuse_wrapped(model)
    require_image_input(model)
    with without_hooks(model):
        dtype = checked_parameter(model).dtype
        if dtype != torch.promote_types(dtype, torch.float32):
            model = copy.deepcopy(model).to(torch.promote_types(dtype, torch.float32))
        with eval_mode(model):
            choices = list(_probe_images(model, input_size, example))
            analysis = _analyze(model, choices)
            known = None if analysis.activation else analysis.logits
            analysis.spread = spread(analysis.model, analysis.images, known)
    if analysis.spread.by_batch:
        analysis.notes.append(BATCH_NOTE)
    if analysis.activation is not None:
        analysis.notes.append(
            f"The network ends in a {analysis.activation}: it was taken off; logits and maps come before it."
        )
    return analysis


def _analyze(model: nn.Module, choices: Sequence[Tensor]) -> NetworkAnalysis:
    """The analysis; where there is none because the network gives other logits each time, that is what is said."""
    try:
        try:
            return analyze_traced(model, choices)
        except TracingError as error:
            return analyze_untraced(model, choices, error)
    except ConversionError as error:
        for images in choices:
            try:
                difference = spread(model, images).chance
            except MixedImagesError:
                raise
            except ConversionError:  # it cannot be run at all, which was said
                continue
            if difference:
                raise ConversionError(f"{error} {chance_note(difference)}") from error
        raise


def _refuse_wrapped(model: nn.Module) -> None:
    kind = type(model).__name__
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if parallel or "FullyShardedDataParallel" in kind:
        raise ConversionError(f"The network is wrapped in {kind}. Pass `model.module`.")
    if hasattr(model, "_orig_mod"):
        raise ConversionError("The network went through torch.compile. Pass `model._orig_mod`; compile the result.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("The network is a ScriptModule, which has no layers to convert. Pass the nn.Module.")
    for name, layer in model.named_modules():
        computed = [key for key, value in vars(layer).items() if isinstance(value, Tensor)]
        if computed and type(layer).__module__.startswith("torch.nn"):
            raise ConversionError(
                f"layer {name}: a hook computes its {computed[0]} (weight_norm, spectral_norm or pruning)."
                " Make the result permanent first, with torch.nn.utils.remove_weight_norm,"
                " remove_spectral_norm or prune.remove."
            )


def checked_parameter(model: nn.Module) -> nn.Parameter:
    """The first parameter of a network all of whose parameters have values.

    Raises:
        ConversionError: it has none, or some have no values.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ConversionError("The network has no parameters; there is nothing to convert.")
    if any(p.is_meta or isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ConversionError("The network has parameters without values. Load or initialize them first.")
    return parameter


def _probe_images(model: nn.Module, input_size: int | tuple[int, int], example: Tensor | None) -> Iterator[Tensor]:
    """Two images to run the network with: the example's first, or noise of the channel counts that it may take."""
    parameter = next(model.parameters())
    if example is not None:
        if not isinstance(example, Tensor) or example.dim() != 4 or not example.is_floating_point():
            kind = type(example).__name__
            if isinstance(example, Tensor):
                kind = f"{example.dtype} {tuple(example.shape)}"
            raise ConversionError(f"example: expected float images (N, C, H, W), got {kind}.")
        if not len(example) or not bool(example.isfinite().all()):
            wrong = "holds NaN or infinity" if len(example) else "holds no image"
            raise ConversionError(f"example: {wrong}. Give images as the network takes them.")
        images = example[:2] if len(example) > 1 else torch.cat([example, example.flip(-1)])
        yield images.detach().to(parameter.device, parameter.dtype)
        return
    sides = sides_of(input_size)
    if sides is None:
        raise ConversionError(
            f"input_size={input_size!r}: must be positive and whole, one number or (height, width), and at most"
            f" {LARGEST_SIDE} pixels."
        )
    height, width = sides
    # The first convolution takes the image, unless it was not made in the order in which it runs.
    convolutions = (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    for channels in dict.fromkeys([*islice(convolutions, 1), 3]):
        noise = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        yield noise.to(parameter.device, parameter.dtype)
