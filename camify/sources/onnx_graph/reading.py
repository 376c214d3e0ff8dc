"""A foreign ONNX file, read as data: bounded, without other files than those beside it, and looked at before use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.bounds import MOST_STEPS
from ...console import shown
from ...errors import CheckpointError, ConversionError

__all__ = ["ForeignOnnx", "read_onnx", "require_onnx"]

_LARGEST_FILE = 2**31 - 1  # of protobuf
_SHORTEST = 8  # bytes
_HALF = (10, 16)  # of TensorProto: float16 and bfloat16
_DEEPEST = 50  # functions that call functions


@dataclass(frozen=True)
class ForeignOnnx:
    """An ONNX file of somebody.

    Attributes:
        path: of the file.
        model: parsed; its weights are in it, also those of files beside it, and its functions are inlined.
        content: bytes that give ``model``, for onnxruntime.
        opset: version of ONNX's own operators.
    """

    path: Path
    model: Any
    content: bytes
    opset: int

    @property
    def properties(self) -> dict[str, str]:
        """The metadata that the file holds."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def is_half(self) -> bool:
        """Whether weights are in half precision."""
        return any(tensor.data_type in _HALF for tensor in self.model.graph.initializer)

    @property
    def producer(self) -> str:
        """Which exporter wrote it, as it says."""
        return (
            f"{self.model.producer_name} {self.model.producer_version}".partition("\n")[0].removesuffix("None").strip()
        )


def require_onnx(path: object) -> None:
    """Refuse to go on without ONNX's libraries.

    Raises:
        ConversionError: one is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConversionError(
            f"{path}: reading ONNX files needs onnx and onnxruntime ({error}). Install them: pip install 'camify[onnx]'"
        ) from error


def read_onnx(path: Path) -> ForeignOnnx:
    """An ONNX file whose graph can be followed; nothing of it is run.

    Raises:
        CheckpointError: the file is missing, damaged, too large, or names files elsewhere.
    """
    import onnx

    content = _content(path)
    try:
        if len(content) < _SHORTEST:
            raise ValueError("it is too short")
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: is no whole ONNX file ({type(error).__name__}: {reason}).") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not model.graph.node or not opset:
        raise CheckpointError(f"{path}: holds no ONNX network: a graph or its version of operators is missing.")
    external = _take_in_external(model, path)
    changed = external > 0
    if model.functions:
        model, changed = _inlined(model, path), True
    if sum(1 for _ in _nodes(model.graph)) > MOST_STEPS:
        raise CheckpointError(f"{path}: has more than {MOST_STEPS} steps, which are not read.")
    held = len(content) + external
    for tensor in _tensors(model.graph):
        if any(side < 0 for side in tensor.dims) or math.prod(tensor.dims) > 2 * held:  # of at least four bits each
            raise CheckpointError(f"{path}: the tensor {shown(tensor.name)[:80]} says a size that no file has.")
    if changed:
        try:
            content = model.SerializeToString()
        except Exception as error:  # protobuf refuses more than 2 GiB
            raise CheckpointError(f"{path}: with its weights has more than 2 GiB, which are not read.") from error
    return ForeignOnnx(path, model, content, opset)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise CheckpointError(f"{path}: has {size / 2**30:.1f} GiB; ONNX files of up to 2 GiB are read.")
    return path.read_bytes()


# ---------------------------------------------------------------- weights


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for part in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(part)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for part in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(part)


def _take_in_external(model: Any, path: Path) -> int:
    """Read weights from files beside the file into the model; how many bytes.

    Raises:
        CheckpointError: such a file lies elsewhere, is missing or too short.
    """
    from onnx import TensorProto

    external = [tensor for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    total = 0
    for tensor in external:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        file = _beside(path, fields.get("location", ""), tensor.name)
        size = file.stat().st_size
        try:
            offset = int(fields.get("offset") or 0)
            length = int(fields.get("length") or size - offset)
        except ValueError as error:
            raise CheckpointError(f"{path}: the place of {shown(tensor.name)[:80]} is no number.") from error
        total += length
        if offset < 0 or length < 0 or offset + length > size or total > _LARGEST_FILE:
            raise CheckpointError(
                f"{file}: is too short for the tensor {shown(tensor.name)[:80]} of {path.name}, or the weights have"
                " more than 2 GiB. Copy both files again."
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return total


def _beside(path: Path, location: str, tensor: str) -> Path:
    """The file of external weights, where it lies in the folder of the ONNX file."""
    folder = path.parent.resolve()
    file = path.parent / location
    resolved = file.resolve()
    if not location or "\0" in location or Path(location).is_absolute() or resolved.parent != folder:
        raise CheckpointError(
            f"{path}: the weights {shown(tensor)[:80]} are in another file, {shown(location)[:120]!r}, which is not"
            " beside it. Only files in the same folder are read."
        )
    if not resolved.is_file():
        raise CheckpointError(
            f"{path}: its weights are in the file {shown(location)[:120]}, which is missing. Copy it beside it."
        )
    return resolved


# ---------------------------------------------------------------- functions


def _inlined(model: Any, path: Path) -> Any:
    """The model with its functions written out, where that makes no flood of steps."""
    import onnx.inliner

    lengths: dict[tuple[str, str], int] = {}
    functions = {(function.domain, function.name): function for function in model.functions}

    def length(nodes: Any, depth: int) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in lengths:
                lengths[key] = MOST_STEPS + 1 if depth > _DEEPEST else length(functions[key].node, depth + 1)
            total += lengths.get(key, 1)
        return min(total, MOST_STEPS + 1)

    if length(model.graph.node, 0) > MOST_STEPS:
        raise CheckpointError(f"{path}: with its functions has more than {MOST_STEPS} steps, which are not read.")
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # of onnx's C++
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: its functions cannot be written out ({reason}).") from error
