"""Networks as data: a graph of known layers and tensor functions, to and from plain JSON values.

A stored architecture holds names only, and every name must stand in the lists below: reading one can build
torch layers, nothing else. (``torch.export.load`` would use pickle.)
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CheckpointError, ConversionError
from ..graphs.allowed_layers import FUNCTIONS, LAYER_NAMES, LAYERS, METHODS
from ..graphs.fx_modules import LayerTracer, assemble
from .bounds import LARGEST_NUMBER, MOST_STEPS, check_power

__all__ = ["build", "describe"]

_FUNCTION_NAMES = {function: name for name, function in FUNCTIONS.items()}
_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_NOT_STORED = ("device", "dtype", "process_group")
_READ: dict[str, Callable[[Any], Any]] = {  # options that a layer keeps under another name
    "bias": lambda layer: (layer.in_proj_bias if isinstance(layer, nn.MultiheadAttention) else layer.bias) is not None,
    "add_bias_kv": lambda layer: layer.bias_k is not None,
    "dim": lambda layer: layer.qkv.in_features if hasattr(layer, "qkv") else layer.dim,
    "qkv_bias": lambda layer: layer.qkv.bias is not None,
    "proj_bias": lambda layer: layer.proj.bias is not None,
}
_LATER = {"bias": True}
"""Options that layers got in newer versions of torch, with the value that says what older ones do without them."""
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_LONGEST_TEXT = 500  # of a layer's option, such as a mode
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


# ---------------------------------------------------------------- to data


def describe(module: nn.Module) -> dict[str, Any]:
    """A network as JSON values: its layers with their options and the order in which they are called.

    Raises:
        ConversionError: a layer or function is not one that can be stored by name.
    """
    graph = module.graph if isinstance(module, fx.GraphModule) else _trace(module)
    layers: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    nodes = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op in ("call_module", "get_attr") and not _PATH.fullmatch(target):
            raise ConversionError(_cannot_store(f"layer {target!r}, of which the name has odd characters,"))
        if node.op == "call_module":
            layers[target] = _describe_layer(target, module.get_submodule(target))
        elif node.op == "get_attr":
            tensors[target] = _describe_tensor(module, target)
        elif node.op == "call_function":
            target = _function_name(node)
        elif node.op == "placeholder":
            target = node.name
        elif node.op == "call_method" and target not in METHODS:
            raise ConversionError(_cannot_store(f"the tensor method {target}()"))
        entry = {"name": node.name, "op": node.op, "target": target, "args": _to_data(node.args)}
        if node.kwargs:
            entry["kwargs"] = {key: _to_data(value) for key, value in node.kwargs.items()}
        nodes.append(entry)
    return {"layers": layers, "tensors": tensors, "nodes": nodes}


def _trace(module: nn.Module) -> fx.Graph:
    try:
        return LayerTracer().trace(module)
    except Exception as error:  # the module is the user's: it fails as it likes
        raise ConversionError(_cannot_store(f"the network, which torch.fx cannot trace ({error}),")) from error


def _cannot_store(what: str) -> str:
    return f"{what} cannot be stored without code. Use a layer of torch.nn instead, or keep the model in Python."


def _describe_layer(path: str, layer: nn.Module) -> dict[str, Any]:
    kind = type(layer)
    name = LAYER_NAMES.get(kind)
    if name is None:
        raise ConversionError(_cannot_store(f"layer {path}: {kind.__module__}.{kind.__qualname__}"))
    options = {}
    for option, default in _options(name).items():
        value = _READ[option](layer) if option in _READ else getattr(layer, option, default)
        options[option] = _to_data(value)
    return {"type": name, "options": options}


@cache
def _options(name: str) -> dict[str, Any]:
    """The options of a layer that are stored, with their defaults."""
    parameters = inspect.signature(LAYERS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _NOT_STORED and p.kind not in _VARIADIC}


def _describe_tensor(module: nn.Module, path: str) -> dict[str, Any]:
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    buffers = owner._buffers.keys() - owner._non_persistent_buffers_set
    if name not in owner._parameters and name not in buffers:
        what = f"the tensor {path}, which is neither parameter nor saved buffer,"
        raise ConversionError(_cannot_store(what))
    return {"shape": list(getattr(owner, name).shape), "parameter": name in owner._parameters}


def _function_name(node: fx.Node) -> str:
    name = _FUNCTION_NAMES.get(node.target)  # type: ignore[arg-type]
    if name is None or (name == "getattr" and node.args[1:] != ("shape",)):
        raise ConversionError(_cannot_store(f"the function {getattr(node.target, '__name__', node.target)}"))
    return name


def _to_data(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_to_data(item) for item in value]}
    if isinstance(value, list):
        return [_to_data(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_to_data(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if value is Ellipsis:
        return {"ellipsis": True}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConversionError(_cannot_store(f"the value {value!r}"))


# ---------------------------------------------------------------- from data


def build(data: Any) -> nn.Module:
    """The network that ``describe`` described, on the ``meta`` device: load tensors with ``assign=True``.

    Raises:
        CheckpointError: the description names anything but known layers and functions, or is malformed.
    """
    try:
        return _build(data)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises whatever the values of a damaged or hostile file make it raise
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"architecture: malformed description ({what})") from error


def _build(data: Any) -> nn.Module:
    if max(len(data["nodes"]), len(data["layers"]), len(data["tensors"])) > MOST_STEPS:
        raise CheckpointError(f"architecture: more than {MOST_STEPS} steps, layers or tensors are not read")
    root = nn.Module()
    with torch.device("meta"):
        for path, entry in data["layers"].items():
            layer = _known(LAYERS, entry["type"], "layer")
            known = _options(entry["type"])
            changes_nothing = {name for name, value in _LATER.items() if entry["options"].get(name) is value}
            unknown_here = changes_nothing - known.keys()
            stored = {name: value for name, value in entry["options"].items() if name not in unknown_here}
            for option in stored:
                _known(known, option, f"option of layer {path}")
            options = {name: _from_data(value, {}) for name, value in stored.items()}
            _place(root, path, layer(**options))
        for path, entry in data["tensors"].items():
            tensor = torch.empty(entry["shape"])
            _place(root, path, nn.Parameter(tensor) if entry["parameter"] else tensor)
    if not data["nodes"] or data["nodes"][-1]["op"] != "output":
        raise CheckpointError("architecture: the steps do not end in an output")
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        name = entry["name"]
        if not _is_name(name) or name in nodes:
            raise CheckpointError(f"architecture: bad node name {name!r}")
        args = _from_data(entry["args"], nodes)
        kwargs = {key: _from_data(value, nodes) for key, value in entry.get("kwargs", {}).items()}
        if not all(map(_is_name, kwargs)):
            raise CheckpointError(f"architecture: bad argument name at node {name!r}")
        target = _target(entry["op"], entry["target"], data, args)
        if entry["op"] == "call_function" and entry["target"].startswith("operator."):
            _check_operands(entry["target"], args, name)
        nodes[name] = graph.create_node(entry["op"], target, args, kwargs, name=name)
    graph.lint()
    return assemble(root, graph)


def _is_name(name: str) -> bool:
    """Whether a name may stand in the code that torch.fx makes of a graph."""
    reserved = keyword.iskeyword(name) or name in ("self", "torch")
    return _NAME.fullmatch(name) is not None and not reserved


def _known(table: dict[str, Any], name: str, kind: str) -> Any:
    if name not in table:
        raise CheckpointError(f"architecture: {kind} {name!r} is not one that camify stores")
    return table[name]


def _target(op: str, target: str, data: Any, args: tuple[Any, ...]) -> Any:
    if op == "call_function":
        function = _known(FUNCTIONS, target, "function")
        if function is getattr and args[1:] != ("shape",):
            raise CheckpointError("architecture: getattr reads something else than a tensor's shape")
        return function
    if op == "placeholder":
        if not _is_name(target):
            raise CheckpointError(f"architecture: bad input name {target!r}")
        return target
    allowed = {
        "call_module": data["layers"],
        "get_attr": data["tensors"],
        "call_method": METHODS,
        "output": ("output",),
    }
    if op not in allowed:
        raise CheckpointError(f"architecture: unknown step {op!r}")
    if target not in allowed[op]:
        raise CheckpointError(f"architecture: step {op} names the unknown {target!r}")
    return target


def _place(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    if not _PATH.fullmatch(path) or len(path) > 500:
        raise CheckpointError(f"architecture: bad layer name {path!r}")
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        if parent not in owner._modules:
            owner.add_module(parent, nn.Module())
        owner = owner.get_submodule(parent)
    if isinstance(value, nn.Module):
        owner.add_module(name, value)  # refuses names that would hide an attribute of nn.Module
    elif isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    else:
        owner.register_buffer(name, value)


def _plain(value: Any) -> Any:
    """A value of JSON that is no container, of a usual size."""
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise CheckpointError(f"architecture: a text of {len(value)} characters is no option of a layer")
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise CheckpointError(f"architecture: the number {str(value)[:40]} is too large")
    return value


def _check_operands(target: str, args: tuple[Any, ...], name: str) -> None:
    """Of Python's operators: text could be repeated or formatted, powers of numbers have any number of digits."""
    if any(isinstance(arg, str) for arg in args):
        raise CheckpointError(f"architecture: step {name!r} applies {target} to text")
    if target == "operator.pow" and (len(args) != 2 or not isinstance(args[1], fx.Node | int | float)):
        raise CheckpointError(f"architecture: step {name!r} is no power")
    if target == "operator.pow" and not any(isinstance(arg, fx.Node) for arg in args):
        raise CheckpointError(f"architecture: step {name!r} is a power of two constants")
    if target == "operator.pow" and not isinstance(args[1], fx.Node):
        check_power(1, args[1])


def _from_data(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_from_data(item, nodes) for item in value]
    if not isinstance(value, dict):
        return _plain(value)
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind in ("tuple", "slice"):
        items: Iterator[Any] = (_from_data(item, nodes) for item in content)
        return tuple(items) if kind == "tuple" else slice(*items)
    if kind == "dtype":
        return _known(_DTYPES, content, "number type")
    if kind == "float":
        return float(content)
    if kind == "ellipsis":
        return Ellipsis
    raise CheckpointError(f"architecture: unknown value kind {kind!r}")
