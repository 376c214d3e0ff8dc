"""The features of a network, image -> last map, by onnxruntime: on a CPU often in two thirds of torch's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError, ConversionError
from ..eval_mode import without_hooks
from ..exporters.onnx_file import require, session_of
from ..exporters.torch_export import quietly
from ..methods.feature_split import Split, TracedSplit
from ..methods.forward_pass import left_as_it_was, unwrapped
from ..methods.several_layers import split_at
from ..model import CAMNet
from .network import ExplainedNetwork

__all__ = [
    "AUTO",
    "ENGINES",
    "ONNXRUNTIME",
    "TORCH",
    "OnnxFeatures",
    "require_engine",
    "use_torch_features",
    "with_onnx_features",
]

AUTO, TORCH, ONNXRUNTIME = "auto", "torch", "onnxruntime"
ENGINES = (AUTO, TORCH, ONNXRUNTIME)
_SAME = 1e-4  # relative to the largest value: more is not rounding
_WORTH_IT = 0.95  # of torch's time: less gain is noise
_AT_ONCE = 4  # images: what more leave behind does not stay in the cache, in which decoding and drawing work too
_LEAST_SECONDS = 15.0  # of torch's forwards: of less, the seconds of the export are too large a part


class OnnxFeatures:
    """Features as onnxruntime runs them: a function of images (N, C, H, W), float32 on the CPU, for any N.

    Under autocast, for images of another kind or size, and where gradients are to reach the images, torch runs them.

    Args:
        module: in eval mode; image -> tensor, or tuple of tensors.
        images: (N, C, H, W), two of which are the example of the export.

    Raises:
        ConversionError: the module cannot be exported, or gives something that is no tensor.
    """

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self.module, self._shape = module, images.shape[1:]
        outputs = _as_tuple(module(images[:2]))
        if not all(isinstance(value, Tensor) for value in outputs):
            raise ConversionError("numbers flow past the last map, which a file would keep as they were")
        names = [f"value_{index}" for index in range(len(outputs))]
        axes = {name: {0: "batch"} for name in ("image", *names)}
        try:
            with quietly(), TemporaryDirectory() as folder:
                file = Path(folder, "features.onnx")
                # By tracing: in a fifth of the time that torch.export takes. What it gives is compared with torch.
                torch.onnx.export(
                    module, (images[:2],), file, dynamo=False, input_names=["image"], output_names=names,
                    dynamic_axes=axes,
                )  # fmt: skip
                self._session = session_of(file.read_bytes(), spinning=False)  # decoding and drawing go on beside
        except Exception as error:  # whatever the exporter's translations, or onnxruntime, raise
            reason = " ".join(str(error).split())[:200]
            raise ConversionError(f"the network cannot be exported ({type(error).__name__}: {reason})") from error

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the module.

        Raises:
            ConversionError: what was exported does not run on so many images.
        """
        is_plain = images.dtype is torch.float32 and images.device.type == "cpu" and images.shape[1:] == self._shape
        if not is_plain or torch.is_autocast_enabled("cpu") or (images.requires_grad and torch.is_grad_enabled()):
            return _as_tuple(self.module(images))
        try:
            parts = [self._session.run(None, {"image": part}) for part in _parts(images.contiguous().numpy())]
        except Exception as error:  # onnxruntime's own kinds
            reason = " ".join(str(error).split())[:200]
            raise ConversionError(
                f"what was exported of the network does not run on {tuple(images.shape)} ({reason}); use --engine torch"
            ) from error
        values = parts[0] if len(parts) == 1 else [np.concatenate(value) for value in zip(*parts, strict=True)]
        return tuple(map(torch.from_numpy, values))


def _parts(images_NCHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [images_NCHW[first : first + _AT_ONCE] for first in range(0, max(len(images_NCHW), 1), _AT_ONCE)]


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def require_engine(engine: str, network: ExplainedNetwork, precision: str) -> None:
    """Refuse an engine that is unknown, or cannot run a network.

    Raises:
        ConfigError: there is no such engine; or onnxruntime on a GPU, or in another precision than float32, or it is
            not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}.")
    if engine == ONNXRUNTIME:
        reason = _unusable(network, precision)
        if reason:
            raise ConfigError(f"engine={engine!r}: {reason}. Choose torch or auto.")
        require("onnxruntime")


def _unusable(network: ExplainedNetwork, precision: str) -> str:
    weight = next(network.model.parameters())
    if weight.device.type != "cpu":
        return f"the network lies on {weight.device.type}, and onnxruntime runs here on the CPU"
    if weight.dtype is not torch.float32:
        return f"the network's weights are {str(weight.dtype).removeprefix('torch.')}, which torch runs"
    return "" if precision == "fp32" else f"precision is {precision}, which torch runs"


def with_onnx_features(
    network: ExplainedNetwork, images: Tensor, engine: str, count: int, precision: str
) -> tuple[ExplainedNetwork | None, str]:
    """The network with its features run by onnxruntime, or None where torch is to run them; and why.

    Of ``auto`` onnxruntime runs them where its maps and logits are torch's up to 1e-4 of the largest value, it is
    faster on these images, and the forwards of all images take long enough for the export to pay.

    Args:
        network: with its methods.
        images: the first ones, (N, C, H, W).
        engine: one of ``ENGINES``.
        count: how many images are to be explained.
        precision: see ``ExplainOptions``.

    Raises:
        ConversionError: the engine is ``onnxruntime``, and the network cannot be exported or gives other values there.
    """
    reason = "as given" if engine == TORCH else _unusable(network, precision)
    if reason:
        return None, reason
    try:
        require("onnxruntime")
    except ConfigError as error:
        if engine == ONNXRUNTIME:
            raise
        return None, str(error)
    least = _AT_ONCE + 1  # others than the export's two, and in two parts
    images = images.repeat(-(-least // len(images)), 1, 1, 1)[:least]
    with left_as_it_was(network.model), without_hooks(network.model):
        try:
            return _compared(network, images.float(), engine, count)
        except ConversionError as error:
            if engine == ONNXRUNTIME:
                raise ConversionError(f"engine={engine!r}: {error}. Choose torch or auto.") from error
            return None, str(error)


def _compared(
    network: ExplainedNetwork, images: Tensor, engine: str, count: int
) -> tuple[ExplainedNetwork | None, str]:
    parts = split_at(unwrapped(network.model), images, network.layer)
    module = _features_module(network, parts)
    seconds, expected = _timed(module, images)
    if engine == AUTO and seconds / len(images) * count < _LEAST_SECONDS:
        return None, "an export would hardly pay for so few images"
    features = OnnxFeatures(module, images)
    features(images)  # the first run is slower
    taken, values = _timed(features, images)
    pairs = [
        *zip(values, expected, strict=True),
        (_logits(parts, images, values), _logits(parts, images, expected)),
    ]
    if not all(_same(value, wanted) for value, wanted in pairs):
        raise ConversionError("onnxruntime gives other maps or logits than torch")
    ratio = taken / min(seconds, _timed(module, images)[0])
    if engine == AUTO and ratio > _WORTH_IT:
        return None, f"onnxruntime took {ratio:.2f} of torch's time on the first images"
    return _with_features(network, parts, features), f"in {ratio:.2f} of torch's time on the first images"


def _features_module(network: ExplainedNetwork, parts: Split) -> nn.Module:
    """Image -> the last map, and what flows past it."""
    model = unwrapped(network.model)
    if isinstance(parts, TracedSplit):
        return parts.features_module
    if isinstance(model, CAMNet) and model.known_features is None and network.layer is None:
        return model.features
    raise ConversionError("torch.fx cannot follow the network's code, so it cannot be exported")


def _with_features(
    network: ExplainedNetwork, parts: Split, run: Callable[[Tensor], tuple[Tensor, ...]]
) -> ExplainedNetwork:
    """The network with something else in the place of its features; a CAMNet itself, which others run for boxes too."""
    if isinstance(parts, TracedSplit):
        return replace(network, parts=parts.with_features(run))
    model = unwrapped(network.model)
    model.known_features = lambda _, images: run(images)[0]  # type: ignore[assignment]
    return network


def use_torch_features(network: ExplainedNetwork) -> None:
    """Torch runs a CAMNet's features again; of other networks ``with_onnx_features`` changed nothing."""
    model = unwrapped(network.model)
    if isinstance(model, CAMNet):
        model.known_features = None


def _logits(parts: Split, images: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """That follow from the outputs of the features."""
    if isinstance(parts, TracedSplit):
        parts = parts.with_features(lambda _: values)
        return parts.head(*parts.features(images))
    return parts.head(values[0], ())


def _same(value: Tensor, expected: Tensor) -> bool:
    if value.shape != expected.shape or value.dtype != expected.dtype or not value.numel():
        return False
    difference = (value.double() - expected.double()).abs().max()
    return bool(difference <= _SAME * expected.double().abs().max())  # not of NaN


def _timed(run: Callable[[Tensor], Any], images: Tensor) -> tuple[float, tuple[Tensor, ...]]:
    """Seconds, and the outputs."""
    start = time.perf_counter()
    outputs = run(images)
    return time.perf_counter() - start, _as_tuple(outputs)
