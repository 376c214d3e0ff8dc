"""What an ONNX file holds, looked at before any of it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..checkpoint.bounds import allowed_bytes
from ..errors import CheckpointError

__all__ = ["check_onnx_needs", "parse_onnx"]

_SMALL = 1024  # bytes of weights that may be sizes
_BATCH = 2


def parse_onnx(content: bytes, path: object) -> Any:
    """An ONNX model whose graph is one list of steps of ONNX's own.

    Raises:
        CheckpointError: it is no ONNX file, or has what camify never writes: loops and other graphs within the graph,
            functions, weights in other files, steps of other libraries.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: is no whole ONNX file ({type(error).__name__}: {reason}).") from error
    weights = (*model.graph.initializer, *(sparse.values for sparse in model.graph.sparse_initializer))
    foreign = [f"the function {function.name}" for function in model.functions]
    foreign += [f"the training graph {part.algorithm.name}" for part in model.training_info]
    foreign += [f"weights of another file ({tensor.name})" for tensor in weights if _is_external(tensor)]
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            foreign.append(f"the step {node.op_type} of the library {node.domain}")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            foreign.append(f"the step {node.op_type}, which runs a graph of its own")
        if any(_is_external(tensor) for attribute in node.attribute for tensor in (attribute.t, *attribute.tensors)):
            foreign.append(f"weights of another file (of the step {node.op_type})")
    if foreign:
        raise CheckpointError(f"{path}: holds {foreign[0][:200]}, which camify never writes. It is not run.")
    return model


def _is_external(tensor: Any) -> bool:
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


def check_onnx_needs(model: Any, record: Mapping[str, Any], path: object) -> None:
    """Check how large the values are that ONNX's shape inference knows for images as the record says.

    Weights are taken out of ``model`` for it: it is of no other use afterwards.

    Raises:
        CheckpointError: one is far larger than such images need; names it.
    """
    import onnx

    height, width = record["input"]["size"]
    channels = record["input"]["channels"]
    pictures = record["input"]["kind"].startswith("uint8")
    sides = (_BATCH, height, width, channels) if pictures else (_BATCH, channels, height, width)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL:
            tensor.ClearField("raw_data")
    for image in model.graph.input:
        dims = image.type.tensor_type.shape.dim
        for dim, side in zip(dims, sides, strict=False):
            dim.dim_value = side
    del model.graph.value_info[:]  # what the file says of its own values
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    allowed = allowed_bytes(4 * math.prod(sides))  # pictures are made floats inside
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of the steps' own checks
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: its steps do not fit each other ({reason}).") from error
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if 4 * math.prod(dims) > allowed:  # 0 where a side is not known
            raise CheckpointError(
                f"{path}: the value {value.name[:80]} is {' x '.join(map(str, dims))[:80]}; for such images camify"
                f" allows {allowed / 2**30:.3g} GiB. It is not run."
            )
