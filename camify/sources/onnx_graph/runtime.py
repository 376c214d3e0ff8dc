"""A foreign ONNX file run by onnxruntime: to compare with, and where its steps cannot become layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...checkpoint.bounds import allowed_bytes
from ...errors import CheckpointError, ConversionError
from .following import needed_nodes
from .reading import ForeignOnnx

__all__ = ["RuntimePart", "runtime_network", "session_of"]

_SMALL = 1024  # bytes of weights that may be sizes
_PLAIN_LIBRARIES = ("", "ai.onnx")


def session_of(foreign: ForeignOnnx, output: str) -> Any:
    """An onnxruntime session that gives one value of a file; steps that it does not need are not run.

    Raises:
        CheckpointError: onnxruntime cannot read it.
    """
    graph = foreign.model.graph
    if [one.name for one in graph.output] == [output] and len(needed_nodes(graph, [output], ())) == len(graph.node):
        return _session(foreign.content, foreign.path)
    return _session(_part(foreign, {}, output).SerializeToString(), foreign.path)


def _session(content: bytes, path: object, *, optimized: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it logs as errors, it raises
    options.intra_op_num_threads = torch.get_num_threads()
    if not optimized:  # a few images
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: onnxruntime cannot read it ({type(error).__name__}: {reason}).") from error


def _part(foreign: ForeignOnnx, given: Mapping[str, int], output: str) -> Any:
    """The steps of a file from some values, each with its type, or from its image, to another value."""
    from onnx import ModelProto, helper

    whole = foreign.model.graph
    nodes = needed_nodes(whole, [output], list(given))
    used = {name for node in nodes for name in node.input} | _inner_names(nodes)
    constants = {tensor.name for tensor in whole.initializer}
    inputs = [value for value in whole.input if value.name in used and value.name not in constants]
    inputs += [helper.make_tensor_value_info(name, kind, None) for name, kind in given.items()]
    part = ModelProto()
    part.ir_version = foreign.model.ir_version
    part.opset_import.extend(foreign.model.opset_import)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in whole.initializer if tensor.name in used)
    part.graph.sparse_initializer.extend(whole.sparse_initializer)
    part.graph.input.extend(inputs)
    part.graph.output.append(helper.make_empty_tensor_value_info(output))
    return part


def _inner_names(nodes: Sequence[Any]) -> set[str]:
    """Names that graphs within the steps read from around them."""
    names: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= {name for inner in attribute.g.node for name in inner.input} | _inner_names(attribute.g.node)
    return names


class RuntimePart(nn.Module):
    """Steps of an ONNX file, run by onnxruntime on the CPU; no gradient passes through."""

    def __init__(self, session: Any, given: Callable[[Tensor], Any], path: object, batch: int | None) -> None:
        super().__init__()
        self.session, self.given, self.path, self.batch = session, given, path, batch
        self.input, self.output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # says where the network is

    def forward(self, x: Any) -> Tensor:
        """The value that the steps give, float32."""
        if isinstance(x, fx.Proxy):
            raise TypeError("its steps are run by onnxruntime")
        images = x.detach().cpu().float()
        batches = torch.split(images, self.batch) if self.batch else (images,)
        try:
            results = [self.session.run([self.output], {self.input: self.given(batch)})[0] for batch in batches]
        except Exception as error:  # onnxruntime's own kinds
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.path}: onnxruntime does not run it ({reason}).") from error
        values: Tensor = torch.cat([torch.from_numpy(result.astype("float32")) for result in results]).to(x)
        return values

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimePart:
        return self  # a session cannot be copied, and holds nothing that changes


def runtime_network(
    foreign: ForeignOnnx, image: str, given: Callable[[Tensor], Any], logits: str, shape: tuple[int, int, int],
    batch: int | None, reason: str,
) -> dict[str, nn.Module]:  # fmt: skip
    """The features and the head of a file, cut at the last map through which everything passes.

    Raises:
        ConversionError: there is no such map, or the file does not run; ``reason`` says why it is not in layers.
    """
    inferred, kinds = _inferred(foreign, image, shape, batch)
    candidates = [
        name for node in reversed(needed_nodes(foreign.model.graph, [logits], ())) for name in node.output
        if len(inferred.get(name, ())) == 4 and math.prod(inferred[name][2:]) > 1
    ]  # fmt: skip
    for name in candidates:
        nodes = needed_nodes(foreign.model.graph, [logits], [name])
        if any(image in node.input for node in nodes) or not nodes:
            continue
        features = _session(_part(foreign, {}, name).SerializeToString(), foreign.path, optimized=True)
        head = _session(_part(foreign, {name: kinds[name]}, logits).SerializeToString(), foreign.path, optimized=True)
        return {
            "features": RuntimePart(features, given, foreign.path, batch),
            "head": RuntimePart(head, partial(_as_array, kind=kinds[name]), foreign.path, batch),
        }
    raise ConversionError(
        f"{foreign.path}: {reason}, and no map of cells is known through which everything passes, so that it cannot be"
        " explained either. Export it again with the newest version of your exporter, or write the network in PyTorch."
    )


def _as_array(values: Tensor, kind: int) -> Any:
    from onnx import helper

    return values.numpy().astype(helper.tensor_dtype_to_np_dtype(kind), copy=False)


def _refuse_odd_steps(foreign: ForeignOnnx) -> None:
    for node in foreign.model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ConversionError(
                f"{foreign.path}: the step {node.op_type} runs a graph of its own, of which nobody knows the size. It"
                " is not run."
            )
        if node.domain not in _PLAIN_LIBRARIES:
            raise ConversionError(
                f"{foreign.path}: the step {node.op_type} is of the library {node.domain[:40]}, and not known. Export"
                " the network without it."
            )


def _inferred(
    foreign: ForeignOnnx, image: str, shape: tuple[int, int, int], batch: int | None
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:  # fmt: skip
    """Sizes and types of the values, as far as ONNX knows them.

    Raises:
        CheckpointError: one is far larger than such images need; names it.
    """
    import onnx

    _refuse_odd_steps(foreign)
    model = onnx.ModelProto()
    model.CopyFrom(foreign.model)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL:
            tensor.ClearField("raw_data")
    for value in model.graph.input:
        if value.name == image:
            dims = value.type.tensor_type.shape.dim
            last = dims[-1].dim_value == shape[0] and dims[1].dim_value != shape[0]
            sides = (batch or 1, *shape[1:], shape[0]) if last else (batch or 1, *shape)
            for dim, side in zip(dims, sides, strict=False):
                dim.dim_value = side
    del model.graph.value_info[:]
    allowed = allowed_bytes(4 * math.prod(shape) * (batch or 1))
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of the steps' own checks
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{foreign.path}: its steps do not fit each other ({reason}).") from error
    sizes, kinds = {}, {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        if 4 * math.prod(dims) > allowed:
            raise CheckpointError(
                f"{foreign.path}: the value {value.name[:80]} is {' x '.join(map(str, dims))[:80]}; for such images"
                f" camify allows {allowed / 2**30:.3g} GiB. It is not run."
            )
        sizes[value.name], kinds[value.name] = dims, value.type.tensor_type.elem_type
    return sizes, kinds
