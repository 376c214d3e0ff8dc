"""ONNX files in int8 and half precision, by onnxruntime's tools, and what that costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ConversionError
from ..maps import select
from ..metrics.functional import correlation
from .onnx_file import OnnxFile, require, write_with_record
from .torch_export import quietly

__all__ = ["EXPORT_PRECISIONS", "Loss", "reduce_precision"]

EXPORT_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Loss:
    """What a reduced file loses against the float32 file, on images that were not used to calibrate it.

    Attributes:
        images: how many it was measured on.
        agreement: share whose top-1 class stays.
        map_correlation: mean of Pearson's correlation of the maps of the float32 file's top-1 class.
        accuracy: of the float32 and of the reduced file, where labels were given.
    """

    images: int
    agreement: float
    map_correlation: float
    accuracy: tuple[float, float] | None = None

    def __str__(self) -> str:
        text = (
            f"on {self.images} images: top-1 kept for {self.agreement:.3f}, map correlation {self.map_correlation:.4f}"
        )
        return text if self.accuracy is None else f"{text}, accuracy {self.accuracy[0]:.3f} -> {self.accuracy[1]:.3f}"


def reduce_precision(full: Path, path: Path, precision: str, images: Tensor, labels: Tensor | None = None) -> Loss:
    """Write an ONNX file of camify again in ``"fp16"`` or ``"int8"``; returns what that loses.

    int8 is static (QDQ, per channel, convolutions and matrix products): calibrated on every other image, measured on
    the rest. fp16 keeps inputs and outputs in float32.

    Args:
        full: the float32 file.
        path: file to write.
        precision: ``"fp16"`` or ``"int8"``.
        images: a batch as the file takes it, of the kind it will see.
        labels: (N,) true classes.

    Raises:
        ConfigError: there are fewer than four images, or an extra is missing.
        ConversionError: onnxruntime's tools fail on the network.
    """
    require("onnx", "onnxruntime")
    if len(images) < 4 or (labels is not None and len(labels) != len(images)):
        raise ConfigError(f"precision={precision!r} needs images, at least four, and as many labels, if any.")
    try:
        with quietly():
            model = _half(full) if precision == "fp16" else _quantized(full, images[::2])
    except Exception as error:  # the tools raise their own kinds, and those of onnx
        reason = " ".join(str(error).split())[:300]
        raise ConversionError(f"{precision}: onnxruntime's tools fail ({type(error).__name__}: {reason}).") from error
    full_file = OnnxFile(full)
    record = {**full_file.record, "precision": precision}
    held_out = slice(1, None, 2)
    write_with_record(model, path, record)
    loss = _loss(full_file, OnnxFile(path), images[held_out], None if labels is None else labels[held_out])
    record["loss"] = {"images": loss.images, "agreement": loss.agreement, "map_correlation": loss.map_correlation}
    write_with_record(model, path, record)
    return loss


def _half(full: Path) -> Any:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(onnx.load(full), keep_io_types=True, op_block_list=["Resize"])


def _quantized(full: Path, images: Tensor) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(torch.split(images, 1 if len(images) < 8 else 4))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch.numpy()}

    with tempfile.TemporaryDirectory() as place:
        ready, done = Path(place, "ready.onnx"), Path(place, "done.onnx")
        quant_pre_process(full, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, done, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8, op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )  # fmt: skip
        return onnx.load(done)


def _loss(full: OnnxFile, reduced: OnnxFile, images: Tensor, labels: Tensor | None) -> Loss:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    size = 8 if "batch" in full.record["dynamic"] else 2
    for batch in torch.split(images, size):
        if len(batch) < 2 and size == 2:
            break  # files of fixed batches take pairs
        full_outputs, reduced_outputs = full(batch), reduced(batch)
        top = full_outputs["logits"].argmax(1)
        map_correlations = correlation(
            *(select(outputs["maps"], top) for outputs in (full_outputs, reduced_outputs))
        ).nan_to_num()  # 0 of a constant map
        parts.append((top, reduced_outputs["logits"].argmax(1), map_correlations))
    top_before, top_after, correlations = (torch.cat(part) for part in zip(*parts, strict=True))
    accuracy = None
    if labels is not None:
        labels = labels[: len(top_before)]
        accuracy = (float((top_before == labels).double().mean()), float((top_after == labels).double().mean()))
    return Loss(len(top_before), float((top_before == top_after).double().mean()), float(correlations.mean()), accuracy)
