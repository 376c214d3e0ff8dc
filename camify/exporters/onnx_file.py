"""ONNX: written by torch's exporter, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, ConversionError
from .metadata import RECORD, SEALED, UNSEALED, as_properties, read_record, require_seal, sealed
from .onnx_checks import check_onnx_needs, parse_onnx
from .torch_export import quietly

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["OnnxFile", "require", "session_of", "write_onnx", "write_with_record"]

_LARGEST = 2**31 - 1  # of a protobuf message; weights beyond it would need a second file


def require(*modules: str) -> None:
    """Raises ConfigError, with the command that installs it, where a module of the extra is missing."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {', '.join(missing)}. Install it: pip install 'camify[onnx]'")


def write_onnx(program: ExportedProgram, path: Path, record: Mapping[str, Any], opset: int | None = None) -> None:
    """Write a traced network as one ONNX file with the record in its metadata.

    Raises:
        ConfigError: the extra ``onnx`` is not installed.
        ConversionError: a step has no counterpart in ONNX, or the file would exceed 2 GiB.
    """
    require("onnx", "onnxscript", "onnxruntime")
    try:
        with quietly():
            exported = torch.onnx.export(
                program, dynamo=True, input_names=["image"], output_names=list(record["outputs"]),
                opset_version=opset, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever its translations raise
        reason = " ".join(str(error).split())[:300]
        raise ConversionError(
            f"ONNX: the network cannot be translated by torch {torch.__version__} ({type(error).__name__}: {reason})."
            " Where torch is older than 2.10, update it."
        ) from error
    if exported is None:
        raise ConversionError("ONNX: torch's exporter gave nothing.")
    model = exported.model_proto
    _name_axes(model, record["dynamic"])
    model.producer_name, model.producer_version = "camify", record["camify_version"]
    for node in model.graph.node:  # paths and stack traces of this machine
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    if model.ByteSize() > _LARGEST:
        raise ConversionError("ONNX: the weights exceed 2 GiB, which one file cannot hold.")
    write_with_record(model, path, record)


def write_with_record(model: Any, path: Path, record: Mapping[str, Any]) -> None:
    """Write an ONNX model with camify's record, which holds the SHA-256 of the file."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**as_properties({**record, "sha256": UNSEALED}), SEALED: "sha256"})
    path.write_bytes(sealed(model.SerializeToString()))


def _name_axes(model: Any, dynamic: list[str]) -> None:
    """Call torch's symbols what they are: batch, height, width."""
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    channels_last = dims[-1].dim_value == 3 and not dims[-1].dim_param
    order = ("batch", "height", "width", "") if channels_last else ("batch", "", "height", "width")
    symbols = {dim.dim_param: name for dim, name in zip(dims, order, strict=True) if dim.dim_param and name in dynamic}
    for value in (image, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            for symbol, name in symbols.items():
                if dim.dim_param:
                    dim.dim_param = dim.dim_param.replace(symbol, name)


def session_of(content: bytes, threads: int | None = None, *, spinning: bool = True) -> Any:
    """A session of onnxruntime for a file's bytes, on the CPU.

    Args:
        content: of the file.
        threads: None takes torch's number.
        spinning: whether threads wait for work by turning, which takes the time of others that work beside.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it logs as errors, it raises
    options.intra_op_num_threads = threads or torch.get_num_threads()
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class OnnxFile:
    """An ONNX file of camify: its record, and what it gives for images.

    Args:
        path: the file.
        threads: of onnxruntime; None takes torch's number.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: the file is missing, damaged or not written by camify.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        require("onnx", "onnxruntime")
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path}: no such file.")
        content = self.path.read_bytes()
        model = parse_onnx(content, path)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        self.record = read_record(properties.get(RECORD), path)
        require_seal(content, self.record, path, sealed=SEALED in properties)
        check_onnx_needs(model, self.record, path)
        try:
            self.session = session_of(content, threads)
        except Exception as error:  # onnxruntime's own kinds
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: onnxruntime cannot read it ({type(error).__name__}: {reason}).") from error
        outputs = tuple(output.name for output in self.session.get_outputs())
        if outputs != tuple(self.record["outputs"]):
            raise CheckpointError(f"{path}: has the outputs {', '.join(outputs)}, its {RECORD} says others.")

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs by name, float32.

        Raises:
            CheckpointError: the file does not run on such images.
        """
        try:
            outputs = self.session.run(None, {"image": image.numpy()})
        except Exception as error:  # onnxruntime's own kinds
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.path}: does not run on {tuple(image.shape)} ({reason}).") from error
        return {name: torch.from_numpy(value) for name, value in zip(self.record["outputs"], outputs, strict=True)}
