"""The graph of a pt2 file as a list of tensor operations, each of them known; run one by one, never as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.bounds import MOST_STEPS, allowed_bytes
from ..errors import CheckpointError

__all__ = ["DTYPES", "Steps"]

DTYPES = {  # torch/_export/serde/schema.py, ScalarType
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_STRINGS = frozenset({"none", "tanh", "floor", "trunc", "amax", "sum", "constant", "reflect", "replicate", "circular"})
_EQUATION = re.compile(r"[A-Za-z ,.]{1,100}->[A-Za-z .]{0,30}", re.ASCII)  # of einsum
# What the layers and functions of camify.graphs.allowed_layers become, and what the outputs and the preprocessing need.
_ATEN_NAMES = """
conv1d conv2d conv_transpose2d linear matmul bmm mm addmm einsum scaled_dot_product_attention
batch_norm layer_norm group_norm instance_norm linalg_vector_norm
relu relu_ relu6 relu6_ hardtanh hardtanh_ leaky_relu leaky_relu_ prelu elu elu_ celu celu_ selu selu_ gelu silu silu_
mish mish_ sigmoid sigmoid_ tanh tanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ softplus softmax _softmax
max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d adaptive_avg_pool1d logsumexp
dropout dropout_ feature_dropout alpha_dropout feature_alpha_dropout
pad constant_pad_nd reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
_upsample_bilinear2d_aa channel_shuffle pixel_shuffle pixel_unshuffle native_channel_shuffle
add add_ sub sub_ rsub mul mul_ div div_ neg abs pow erf exp log log10 sqrt rsqrt clamp clamp_ clamp_min clamp_max floor
round sign maximum minimum eq ne lt le gt ge logical_and logical_or logical_not bitwise_and __and__
mean sum amax amin var std max min any all argmax sort topk gather scatter_reduce scatter_add cumsum
cat concat stack flatten unflatten reshape view permute transpose swapaxes t squeeze unsqueeze split split_with_sizes
chunk unbind slice select narrow flip roll where masked_fill expand expand_as repeat index
contiguous clone to _to_copy type_as half float detach detach_ alias lift_fresh_copy
arange zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full fill fill_ scalar_tensor
sym_size sym_numel _assert_scalar _assert_tensor_metadata
"""
_OPERATOR_NAMES = "add sub mul floordiv mod neg getitem eq ne lt le gt ge and_ or_"
_SYMBOLIC_NAMES = "sym_max sym_min sym_float sym_int sym_not sym_sum"
_GIVEN = {"Tensor", "List[Tensor]", "int", "float", "bool", "number"}  # what an operation may return
_TAKEN = _GIVEN | {"List[int]", "List[float]", "List[bool]", "List[Optional[Tensor]]", "str", "Device"}
_TAKEN |= {"AnyEnumType"}  # a dtype, a layout, a memory format
_OPTIONAL = re.compile(r"^Optional\[(.*)\]$")
_LARGEST_NUMBER = 2**63
_DEVICE = "/device"  # no name of a value; where a run takes place


def _aten_operations() -> dict[str, Callable[..., Any]]:
    """The overloads of the operations above by full name, as objects; no name of a file is ever looked up in torch."""
    operations: dict[str, Callable[..., Any]] = {}
    for name in _ATEN_NAMES.split():
        packet = getattr(torch.ops.aten, name, None)  # a name of this file; older versions of torch lack some
        for overload_name in () if packet is None else packet.overloads():
            overload = getattr(packet, overload_name)
            schema = overload._schema
            taken = {_OPTIONAL.sub(r"\1", str(argument.type)) for argument in schema.arguments}
            given = {str(result.type) for result in schema.returns}
            if given <= _GIVEN and taken <= _TAKEN and not any(argument.is_out for argument in schema.arguments):
                operations[f"torch.ops.aten.{name}.{overload_name}"] = overload
    return operations


def _on_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Python's ``operator`` on numbers and tensors: of lists and text it would make huge ones."""

    def apply(*args: Any) -> Any:
        if not all(isinstance(arg, Tensor | int | float) for arg in args):
            raise CheckpointError(f"the graph applies {function.__name__} to something else than numbers and tensors.")
        return function(*args)

    return apply


_OPERATIONS: Mapping[str, Callable[..., Any]] = (
    _aten_operations()
    | {f"_operator.{name}": _on_plain(getattr(operator, name)) for name in _OPERATOR_NAMES.split()}
    | {"_operator.getitem": operator.getitem}
    | {f"torch.{name}": vars(torch)[name] for name in _SYMBOLIC_NAMES.split() if name in vars(torch)}
)
"""Every step that is run, by the name that a file gives it."""


class Steps:
    """The steps of a graph over its tensors.

    Args:
        graph_module: of the file's ``model.json``.
        tensors: by name: parameters, buffers and constants.
        image_bytes: of an image as the network takes it, float32: pictures are resized inside.

    Raises:
        CheckpointError: a step is no known tensor operation; names it.
    """

    def __init__(self, graph_module: Mapping[str, Any], tensors: Mapping[str, Tensor], image_bytes: int = 0) -> None:
        self._image_bytes = image_bytes
        self._known: dict[str, Tensor] = {}
        images = []
        for spec in graph_module["signature"]["input_specs"]:
            ((kind, value),) = spec.items()
            if kind == "user_input":
                images.append(str(value["arg"]["as_tensor"]["name"]))
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self._known[value["arg"]["name"]] = tensors[value[f"{kind}_name"]]
            else:
                raise CheckpointError(f"the graph takes a {kind!r}; known are tensors.")
        if len(images) != 1:
            raise CheckpointError(f"the graph takes {len(images)} inputs instead of an image.")
        self._image = images[0]
        self._outputs = []
        for spec in graph_module["signature"]["output_specs"]:
            ((kind, value),) = spec.items()
            if kind != "user_output":
                raise CheckpointError(f"the graph gives a {kind!r}; known are tensors.")
            self._outputs.append(str(value["arg"]["as_tensor"]["name"]))
        nodes = graph_module["graph"]["nodes"]
        if len(nodes) > MOST_STEPS:
            raise CheckpointError(f"the graph has {len(nodes)} steps; camify reads {MOST_STEPS} at most.")
        self._steps = [_Step(node) for node in nodes]
        self._dead = self._last_uses()
        self._bounded_shapes: set[tuple[int, ...]] = set()

    @property
    def count(self) -> int:
        """How many tensors come out."""
        return len(self._outputs)

    def _last_uses(self) -> list[list[str]]:
        """Which values no later step needs, step by step: their memory is given back."""
        alive = set(self._outputs) | self._known.keys()
        dead: list[list[str]] = []
        for step in reversed(self._steps):
            names = {*step.inputs, *(name for name in step.names if name)}
            dead.append([name for name in names if name not in alive])
            alive |= names
        return dead[::-1]

    def __call__(self, image: Tensor) -> list[Tensor]:
        """The tensors that come out for an image batch.

        Raises:
            CheckpointError: a step gives something else than tensors and numbers, or far more than images need.
        """
        if tuple(image.shape) not in self._bounded_shapes:
            weights = sum(tensor.untyped_storage().nbytes() for tensor in self._known.values())
            images = max(4 * image.numel(), len(image) * self._image_bytes)
            allowed = allowed_bytes(images) + 4 * weights
            known = {name: tensor.to("meta") for name, tensor in self._known.items()}
            self._run({**known, self._image: image.to("meta"), _DEVICE: torch.device("meta")}, allowed)
            self._bounded_shapes.add(tuple(image.shape))
        return self._run({**self._known, self._image: image, _DEVICE: torch.device("cpu")}, None)

    def _run(self, values: dict[str, Any], allowed: int | None) -> list[Tensor]:
        """The outputs; of a run without memory, on the meta device, all values of a moment are at most so large."""
        sizes: dict[str, int] = {}
        for step, dead in zip(self._steps, self._dead, strict=True):
            step(values)
            for name in step.names if allowed is not None else ():
                sizes[name] = _bytes_of(values.get(name))
            if allowed is not None and sum(sizes.values()) > allowed:
                raise CheckpointError(
                    f"the step {step.name} of the graph needs {sum(sizes.values()) / 2**30:.3g} GiB; for such images"
                    f" camify allows {allowed / 2**30:.3g} GiB."
                )
            for name in dead:
                values.pop(name, None)
                sizes.pop(name, None)
        return [values[name] for name in self._outputs]


class _Step:
    def __init__(self, node: Mapping[str, Any]) -> None:
        self.name = str(node["target"])
        self._function = _function(self.name)
        self.inputs: list[str] = []
        self._args: list[Callable[[dict[str, Any]], Any]] = []
        self._kwargs: dict[str, Callable[[dict[str, Any]], Any]] = {}
        for entry in node["inputs"]:
            value = self._argument(entry["arg"])
            if entry.get("kind", 1) == 1:
                self._args.append(value)
            else:
                self._kwargs[str(entry["name"])] = value
        outputs = node["outputs"]
        self.several = len(outputs) > 1 or any("as_tensors" in output for output in outputs)
        self.names = [name for output in outputs for name in _names(output)]
        if _DEVICE in self.names:
            raise CheckpointError(f"the graph has a value named {_DEVICE!r}.")
        if _makes_tensors_of_numbers(self._function):
            self._kwargs["device"] = lambda values: values[_DEVICE]

    def __call__(self, values: dict[str, Any]) -> None:
        """Run the step on the values so far and add what it gives."""
        args = [argument(values) for argument in self._args]
        kwargs = {name: argument(values) for name, argument in self._kwargs.items()}
        output = self._function(*args, **kwargs)
        if not _is_plain(output):
            raise CheckpointError(f"the step {self.name} of the graph gives something else than tensors and numbers.")
        if self.names:
            named_outputs = zip(self.names, output if self.several else [output], strict=True)
            values.update((name, value) for name, value in named_outputs if name)

    def _argument(self, data: Any) -> Callable[[dict[str, Any]], Any]:  # noqa: C901 - one line per kind
        """How an argument follows from the values so far."""
        ((kind, content),) = data.items()
        if kind == "as_tensor":
            return self._value(content["name"])
        if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            ((how, inner),) = content.items()
            return self._value(inner) if how == "as_name" else _constant(inner)
        if kind in ("as_tensors", "as_sym_ints", "as_optional_tensors", "as_sym_floats", "as_sym_bools"):
            single = {"as_tensors": "as_tensor", "as_sym_ints": "as_sym_int", "as_sym_floats": "as_sym_float"}
            wrapped = ({single[kind]: item} if kind in single else item for item in content)
            parts = [self._argument(item) for item in wrapped]
            return lambda values: [part(values) for part in parts]
        if kind == "as_none":
            return _constant(None)
        if kind in ("as_int", "as_float", "as_bool", "as_ints", "as_floats", "as_bools"):
            return _constant(_numbers(content))
        if kind == "as_string" and (content in _STRINGS or _EQUATION.fullmatch(content)):
            return _constant(content)
        if kind == "as_scalar_type":
            return _constant(DTYPES[content])
        if kind == "as_memory_format":
            return _constant(_MEMORY[content])
        if kind == "as_layout" and content == 7:
            return _constant(torch.strided)
        if kind == "as_device" and content["type"] == "cpu":
            return lambda values: values[_DEVICE]
        raise CheckpointError(
            f"the graph has an argument {kind} = {content!r:.80}, which is not one that camify reads."
        )

    def _value(self, name: str) -> Callable[[dict[str, Any]], Any]:
        self.inputs.append(name)
        return lambda values: values[name]


def _numbers(content: Any) -> Any:
    items = content if isinstance(content, list) else [content]
    if not all(isinstance(item, bool | int | float) for item in items):
        raise CheckpointError(f"the graph has {content!r:.80} where numbers stand.")
    return content


def _constant(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda _: value


def _names(output: Mapping[str, Any]) -> Iterator[str]:
    ((kind, content),) = output.items()
    if kind == "as_tensor":
        yield content["name"]
    elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        yield content["as_name"]
    elif kind == "as_tensors":
        yield from (item["name"] for item in content)
    elif kind == "as_none":
        yield ""
    else:
        raise CheckpointError(f"a step of the graph gives {kind}, which is not one that camify reads.")


def _function(target: str) -> Callable[..., Any]:
    """The operation of a name in the table above."""
    if target not in _OPERATIONS:
        raise CheckpointError(f"the graph has a step {target[:100]!r}, which is no tensor operation that camify runs.")
    return _OPERATIONS[target]


def _makes_tensors_of_numbers(operation: Any) -> bool:
    """Whether an operation makes a tensor where its argument ``device`` says, of no other tensor."""
    schema = getattr(operation, "_schema", None)
    arguments = {} if schema is None else {argument.name: str(argument.type) for argument in schema.arguments}
    return "device" in arguments and not any("Tensor" in kind for kind in arguments.values())


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor, a number of usual size, None, or a list of such."""
    if isinstance(value, list | tuple):
        return all(not isinstance(item, list | tuple) and _is_plain(item) for item in value)
    if type(value) is int:
        return abs(value) < _LARGEST_NUMBER
    return value is None or type(value) in (bool, float, Tensor, torch.nn.Parameter)


def _bytes_of(value: Any) -> int:
    items = value if isinstance(value, list | tuple) else [value]
    return sum(item.nbytes for item in items if isinstance(item, Tensor))
