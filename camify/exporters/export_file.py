"""export: a CAM-ready network as one file that needs no camify, verified before it has its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention

from ..errors import CamifyError, CheckpointError, ConfigError, ConversionError
from ..eval_mode import full_precision
from ..files import put_in_place, temporary_folder
from ..model import CAMNet
from ..preprocessing import LARGEST_SIDE, sides_of
from .metadata import file_metadata
from .network import ExportedNetwork, prepared
from .onnx_file import OnnxFile, write_onnx
from .pt2_file import Pt2File, write_pt2
from .quantization import EXPORT_PRECISIONS, Loss, reduce_precision
from .torch_export import AXES, example_of, export_graph

__all__ = ["FORMATS", "Exported", "export", "open_exported"]

LARGEST_ERROR = 1e-4
_PT2_SINCE = "2.9"  # the version of torch whose archives have the form that camify reads
_FILES: dict[str, tuple[Callable[..., None], Callable[[str | Path], Any]]] = {
    ".onnx": (write_onnx, OnnxFile),
    ".pt2": (write_pt2, Pt2File),
}
FORMATS = tuple(_FILES)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        outputs: names of what it gives, in order.
        dynamic: axes of the input that may vary: of ``batch``, ``height``, ``width``.
        error: largest difference to the network over the images of the verification, relative to the largest value.
        shapes: of the images it was verified on.
        notes: what has to be said, such as why an axis is fixed.
        loss: of int8 and fp16, against the float32 file.
    """

    path: Path
    outputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    error: float
    shapes: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()
    loss: Loss | None = None

    def __str__(self) -> str:
        axes = ", ".join(self.dynamic) or "none"
        size = self.path.stat().st_size / 2**20
        lines = [
            f"{self.path} ({size:.1f} MiB): {', '.join(self.outputs)}; dynamic axes: {axes}",
            f"verified on {', '.join('x'.join(map(str, shape)) for shape in self.shapes)}: error {self.error:.1e}",
        ]
        if self.loss is not None:
            lines[-1] = f"{lines[-1]} in float32; as written, {self.loss}"
        return "\n".join([*lines, *self.notes])


@full_precision()
def export(
    model: CAMNet,
    path: str | Path,
    *,
    input_size: int | tuple[int, int] | None = None,
    dynamic: bool = True,
    preprocess: bool = False,
    boxes: bool = False,
    opset: int | None = None,
    precision: str = "fp32",
    images: Tensor | None = None,
    labels: Tensor | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a CAM-ready network as ``.onnx`` or ``.pt2`` with the outputs ``logits`` and ``maps``.

    The file is run (by onnxruntime, or as a graph of torch) on images of several sizes and batches and compared with
    the network before it gets its name; else nothing is left. Class names, preprocessing, threshold and the rest
    travel inside (ONNX: metadata properties; pt2: the extra file ``camify.json``).

    Args:
        model: the network; left as it is. The file holds it in float32, in eval mode.
        path: file to write, named ``*.onnx`` (extra ``onnx``) or ``*.pt2`` (torch alone).
        input_size: height and width of the images that are traced, pixels; None: what the model says.
        dynamic: batch, height and width may vary as far as the network allows; what stays fixed, the result says.
        preprocess: the input is uint8 RGB (N, H, W, 3) of any size, resized and normalized inside.
        boxes: a third output ``boxes`` (N, 4): the top-1 class's box, xyxy pixels of the given images,
            by the model's rule or, where it has none, ``camify.boxes.DEFAULT_RULE``.
        opset: of ONNX; None takes torch's.
        precision: of ONNX: ``"fp32"``, ``"fp16"`` or ``"int8"`` (see ``camify.exporters.quantization``).
        images: with fp16 and int8, a batch as the file takes it: one half calibrates, the other measures the loss.
        labels: (N,) their classes, so that the loss in accuracy is known.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: the suffix is unknown, the file exists, an extra is missing, or the model lacks what is wanted.
        ConversionError: the network cannot be exported; says at which step.
        CheckpointError: the file does not give what the network gives, or cannot be written.
    """
    path = Path(path)
    if not isinstance(model, CAMNet):
        raise ConfigError(f"export takes a CAMNet, not a {type(model).__name__}. Use camify.convert(model) first.")
    if path.suffix not in _FILES:
        raise ConfigError(f"{path}: unknown suffix {path.suffix!r}. Choose {' or '.join(FORMATS)}.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists. Choose another name, or say overwrite=True.")
    _check_torch(path)
    if opset is not None and path.suffix != ".onnx":
        raise ConfigError(f"opset={opset}: only .onnx has one.")
    if precision not in EXPORT_PRECISIONS or (precision != "fp32" and (path.suffix != ".onnx" or images is None)):
        known = ", ".join(EXPORT_PRECISIONS)
        raise ConfigError(f"precision={precision!r}: choose one of {known}; all but fp32 for .onnx, and with images=.")
    if precision == "fp16" and boxes:
        raise ConfigError("precision='fp16': boxes count pixels, which half precision cannot. Leave boxes out.")
    size, channels = _input_of(model, input_size)
    network = prepared(model, preprocess=preprocess, boxes=boxes)
    record = file_metadata(model, preprocess=preprocess, outputs=network.outputs, size=size, channels=channels)
    options = {} if opset is None else {"opset": opset}
    reduce: Callable[[Path, Path], Loss] | None = None
    if precision != "fp32" and images is not None:
        reduce = partial(reduce_precision, precision=precision, images=images, labels=labels)
    refusals: list[str] = []
    fixed = _fixed_sides(network, size, channels) if dynamic else None
    refusals += [fixed] if fixed else []
    for axes in AXES[1 if fixed else 0 :] if dynamic else AXES[-1:]:
        try:
            return _attempt(network, path, record, axes, options, (*network.notes, *refusals), reduce)
        except (ConversionError, CheckpointError) as error:  # noqa: PERF203 - three at most
            refusals.append(_refusal(axes, error))
            kind = type(error)
    raise kind(f"{path}: {'; '.join(refusals)}")


def _refusal(axes: tuple[str, ...], error: CamifyError) -> str:
    """Why an attempt failed, where another one may not: with other axes there is no more room on a disk."""
    if isinstance(error.__cause__, OSError):
        raise error
    return f"not with {', '.join(axes)} dynamic: {error}" if axes else f"not with fixed sizes: {error}"


def _check_torch(path: Path) -> None:
    if path.suffix == ".pt2" and torch.__version__ < _PT2_SINCE:  # compares versions, not text
        raise ConfigError(
            f"{path}: needs torch {_PT2_SINCE} or newer, whose archives camify reads; installed: {torch.__version__}."
            " Update torch, or export to .onnx."
        )


def _attempt(
    network: ExportedNetwork, path: Path, record: dict[str, Any], axes: tuple[str, ...], options: dict[str, Any],
    notes: tuple[str, ...], reduce: Callable[[Path, Path], Loss] | None,
) -> Exported:  # fmt: skip
    """Trace with these axes dynamic, write aside, verify, rename."""
    write, read = _FILES[path.suffix]
    size, channels = tuple(record["input"]["size"]), record["input"]["channels"]
    program, dynamic = export_graph(network, example_of(network, size, channels), axes)
    record = {**record, "dynamic": list(dynamic)}
    try:
        with temporary_folder(path) as folder:
            aside = folder / f"model{path.suffix}"
            write(program, aside, record, **options)
            worst, shapes = _verify(network, read(aside), size, channels, dynamic)
            loss = None if reduce is None else reduce(aside, aside)
            put_in_place(aside, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}). Is there space?") from error
    return Exported(path, network.outputs, dynamic, worst, shapes, notes, loss)


def _fixed_sides(network: ExportedNetwork, size: tuple[int, int], channels: int) -> str | None:
    """Why height and width cannot vary, where that shows without tracing; else None."""
    if network.size is not None:
        return None  # resized inside
    if any(isinstance(layer, ShiftedWindowAttention) for layer in network.modules()):
        return "height and width fixed: torch.export takes very long for windows of variable images"
    other = _shapes(size, ("batch", "height", "width"))[-1]
    try:
        with torch.no_grad():
            network(example_of(network, other[1], channels, other[0]))
    except Exception:  # noqa: BLE001 - the network's own way to say that it has one size
        return f"height and width fixed: the network does not run at {other[1][0]} x {other[1][1]} px"
    return None


def _input_of(model: CAMNet, input_size: int | tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """Height and width to trace at, and the number of channels."""
    certificate, preprocessing = model.certificate, model.preprocessing
    channels = 3 if preprocessing is None else preprocessing.channels
    if certificate is not None:
        channels = certificate.input_shape[0]
    if input_size is not None:
        size = sides_of(input_size)
        if size is None:
            raise ConfigError(
                f"input_size={input_size!r}: must be positive and whole, one number or (height, width), and at most"
                f" {LARGEST_SIDE} pixels."
            )
        return size, channels
    if preprocessing is not None:
        return (preprocessing.height, preprocessing.width), channels
    return (certificate.input_shape[1:] if certificate is not None else (224, 224)), channels


def _shapes(size: tuple[int, int], dynamic: tuple[str, ...]) -> list[tuple[int, tuple[int, int]]]:
    """Batches and sizes for the verification: the traced one, and others where they may vary."""
    height, width = size
    tall = height + height // 2 if "height" in dynamic else height
    wide = width + width // 4 if "width" in dynamic else width
    first = [(2, size)] if "batch" not in dynamic else [(1, size), (3, size)]
    batch = 2 if "batch" not in dynamic else 1
    return first + ([(batch, (tall, wide))] if (tall, wide) != size else [])


@torch.no_grad()
@full_precision()
def _verify(
    network: ExportedNetwork, file: Callable[[Tensor], dict[str, Tensor]], size: tuple[int, int], channels: int,
    dynamic: tuple[str, ...],
) -> tuple[float, tuple[tuple[int, ...], ...]]:  # fmt: skip
    """Largest relative difference between file and network, and the shapes of the images compared."""
    worst, shapes = 0.0, []
    for seed, (batch, sides) in enumerate(_shapes(size, dynamic)):
        image = example_of(network, sides, channels, batch, seed)
        expected = network(image)
        try:
            outputs = file(image)
        except Exception as error:  # the runtime's own kinds
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"the file does not run on {tuple(image.shape)} ({reason}).") from error
        for name, expected_output in zip(network.outputs, expected, strict=True):
            worst = max(worst, _difference(name, outputs[name], expected_output, tuple(image.shape)))
        shapes.append(tuple(image.shape))
    return worst, tuple(shapes)


def _difference(name: str, actual: Tensor, expected: Tensor, shape: tuple[int, ...]) -> float:
    if actual.shape != expected.shape:
        raise CheckpointError(f"{name} of {shape} is {tuple(actual.shape)}, expected {tuple(expected.shape)}.")
    if name == "boxes":  # a pixel at the threshold may fall to either side
        error = float((actual - expected).abs().max())
        if not error <= 1.01 * max(1, max(shape[1:]) / 64):
            raise CheckpointError(f"boxes of {shape} differ by {error:.1f} px.")
        return 0.0
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = float((actual - expected).abs().max() / scale)
    if not error <= LARGEST_ERROR:
        raise CheckpointError(f"{name} of {shape} differ by {error:.1e} (allowed {LARGEST_ERROR:.0e}).")
    return error


def open_exported(path: str | Path) -> OnnxFile | Pt2File:
    """An exported file, ready to run; nothing in it is run as code.

    Raises:
        CheckpointError: the file is missing, damaged or not camify's.
    """
    if Path(path).suffix not in _FILES:
        raise ConfigError(f"{path}: unknown suffix. Choose {' or '.join(FORMATS)}.")
    return _FILES[Path(path).suffix][1](path)  # type: ignore[no-any-return]
