"""A network's steps written down while it runs: for code that torch.fx cannot follow because it asks for shapes.

torch.fx runs a forward on stand-ins, which know no shape and are no tensors: code that compares sizes or looks for
tensors stops it. Here the forward runs on images, twice, with two and with three of them, and every call of torch is
noted. A number that grows with the images becomes a step that reads their count; any other number that the code took
from a shape is kept as it was. So the steps hold for any number of images, and where the code reckons with sizes for
images of that one size.

What a forward decides by the values of the images, or does in training alone, is not seen. Use it for code that is
known not to, and compare the result with the network on other images.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import ConversionError
from .allowed_layers import LAYER_NAMES
from .fx_modules import as_module

__all__ = ["RecordingError", "record"]

_COUNTS = (2, 3)
_OPERATOR_NAMES = "add sub mul truediv floordiv mod neg pow matmul getitem iadd isub imul itruediv"
_OPERATORS: dict[str, Any] = {name: getattr(operator, name) for name in _OPERATOR_NAMES.split()}
_DROPOUT: dict[Any, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}


class RecordingError(ConversionError):
    """The steps of a forward cannot be written down by running it."""


class _Ref(NamedTuple):
    """What an earlier step gave."""

    step: int


class _Named(NamedTuple):
    """A tensor of the network, or one that its forward makes of nothing, by its path."""

    path: str


class _Count(NamedTuple):
    """A number that is so many times the number of images."""

    times: int


class _Step(NamedTuple):
    op: str
    target: Any
    args: Any
    kwargs: Any
    constant: Tensor | None = None
    """What it gave, where that depends neither on the images nor on a parameter."""


def record(
    network: nn.Module, image_shape: Sequence[int], output: Callable[[Any], Tensor] = lambda returned: returned
) -> fx.GraphModule:
    """The steps of a network in eval mode, for any number of images of one shape; its layers are not copied.

    Args:
        network: takes images (N, C, H, W).
        image_shape: (C, H, W).
        output: the tensor that is wanted, of what the network returns.

    Raises:
        RecordingError: it writes into tensors, or takes other steps for another number of images; says where.

    Example:
        >>> class Checked(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(12, 2)
        ...     def forward(self, x):
        ...         if x.shape[1] != 3:
        ...             raise ValueError("give three channels")
        ...         return self.fc(x.view(len(x), -1))
        >>> record(Checked().eval(), (3, 2, 2))(torch.zeros(5, 3, 2, 2)).shape
        torch.Size([5, 2])
    """
    with torch.no_grad():
        network(torch.randn(_COUNTS[0], *image_shape))  # what a forward keeps for its next call is there now
    few, more = (_Recorder(network).run(torch.randn(count, *image_shape), output) for count in _COUNTS)
    ends = few.origin(few.output), more.origin(more.output)
    if not isinstance(ends[0], _Ref) or ends[0] in few.constants:
        raise RecordingError("The network returns no tensor that was made of the images.")
    if ends[0] != ends[1] or len(few.steps) != len(more.steps):
        raise RecordingError("The network's forward takes other steps for another number of images.")
    return _Graph(few, more).network(ends[0])


# ---------------------------------------------------------------- running


class _Recorder(TorchFunctionMode):
    """Notes the calls of torch that take tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        self.steps: list[_Step] = []
        self.named: dict[str, Any] = dict(network.named_buffers())
        self.constants: set[_Ref | _Named] = {_Named(path) for path in self.named}
        self.named |= dict(network.named_parameters())
        self.output: Any = None
        self._origins: dict[int, tuple[weakref.ref[Tensor], _Ref | _Named]] = {}
        self._within = False
        for path, tensor in self.named.items():
            self._learn(tensor, _Named(path))

    @torch.no_grad()
    def run(self, images: Tensor, output: Callable[[Any], Tensor]) -> _Recorder:
        """Run the network once and keep what it did."""
        self._note(_Step("placeholder", "image", (), {}), images)
        with self._recorded_layers(), self:
            returned = self.model(images)
        self.output = output(returned)
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and note it, where it takes tensors and gives some."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [] if self._within else list(_tensors_in((args, kwargs)))
        if not inputs:
            return result
        name = getattr(func, "__name__", str(func))
        if name in ("__setitem__", "__set__") or isinstance(kwargs.get("out"), Tensor):
            if not all(self._is_constant(tensor) for tensor in inputs):
                raise RecordingError(f"The network's forward writes into a tensor ({name}).")
            return result
        in_place = name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))
        same = not in_place and any(result is tensor for tensor in inputs)  # a change of precision that was none
        if func in _DROPOUT:
            self._note_dropout(_DROPOUT[func], args, kwargs, result)
        elif not same and any(True for _ in _tensors_in(result)):
            op, target, ordered = _called(func, name, args)
            constant = all(self._is_constant(tensor) for tensor in inputs)
            self._note(_Step(op, target, self._plain(ordered), self._plain(kwargs)), result, constant=constant)
        return result

    @contextmanager
    def _recorded_layers(self) -> Iterator[None]:
        """Layers that can be stored are one step each."""
        layers = {path: module for path, module in self.model.named_modules() if type(module) in LAYER_NAMES}
        try:
            for path, layer in layers.items():
                layer.forward = partial(self._run_layer, path, layer)
            yield
        finally:
            for layer in layers.values():
                layer.__dict__.pop("forward", None)

    def _run_layer(self, path: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._within:
            return type(layer).forward(layer, *args, **kwargs)
        self._within = True
        try:
            result = type(layer).forward(layer, *args, **kwargs)
        finally:
            self._within = False
        self.named[path] = layer
        self._note(_Step("call_module", path, self._plain(args), self._plain(kwargs)), result)
        return result

    # ------------------------------------------------------------ noting

    def origin(self, tensor: Any) -> _Ref | _Named | None:
        """Where a tensor comes from, where that is known."""
        ref, origin = self._origins.get(id(tensor), (None, None))
        return origin if ref is not None and ref() is tensor else None

    def _is_constant(self, tensor: Tensor) -> bool:
        origin = self.origin(tensor)
        return origin is None or origin in self.constants

    def _learn(self, tensor: Tensor, origin: _Ref | _Named) -> None:
        self._origins[id(tensor)] = (weakref.ref(tensor), origin)

    def _note(self, step: _Step, result: Any, *, constant: bool = False) -> None:
        """Remember a step and which tensors it gave; of several every one is a step more."""
        ref = _Ref(len(self.steps))
        if constant:
            self.constants.add(ref)
        if isinstance(result, Tensor):
            self.steps.append(step._replace(constant=result if constant else None))
            self._learn(result, ref)
            return
        self.steps.append(step)
        for index, item in enumerate(result):
            if isinstance(item, Tensor):
                self._note(_Step("call_function", operator.getitem, (ref, index), {}), item, constant=constant)

    def _note_dropout(self, kind: type[nn.Module], args: Any, kwargs: Any, result: Tensor) -> None:
        """A dropout function as a layer, which knows by itself when it is at work."""
        share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        path = f"dropout_{len(self.steps)}"
        self.named[path] = kind(share) if share else nn.Identity()
        self._note(_Step("call_module", path, self._plain(args[:1] or (kwargs["input"],)), {}), result)

    def _plain(self, value: Any) -> Any:
        """Arguments with tensors named by where they come from."""
        return _mapped(value, lambda item: self._source(item) if isinstance(item, Tensor) else item)

    def _source(self, tensor: Tensor) -> _Ref | _Named:
        origin = self.origin(tensor)
        if origin is None:
            origin = _Named(f"constant_{len(self.named)}")
            self.named[origin.path] = tensor
            self.constants.add(origin)
            self._learn(tensor, origin)
        return origin


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors_in(item)


def _called(func: Any, name: str, args: Any) -> tuple[str, Any, Any]:
    """A function as a kind of step, what that calls, and its arguments in their order there."""
    plain = name.strip("_")
    if name == "__get__":
        raise RecordingError(f"The network's forward reads a tensor of a tensor ({getattr(func, '__self__', func)}).")
    if name.startswith("__") and plain in _OPERATORS:
        return "call_function", _OPERATORS[plain], args
    if name.startswith("__r") and plain[1:] in _OPERATORS:
        return "call_function", _OPERATORS[plain[1:]], tuple(reversed(args))
    if getattr(torch.Tensor, name, None) is func:
        return "call_method", name, args
    return "call_function", func, args


# ---------------------------------------------------------------- two runs as one graph


class _Graph:
    """What two runs did, with another number of images, as one graph."""

    def __init__(self, few: _Recorder, more: _Recorder) -> None:
        self.few, self.more, self.graph = few, more, fx.Graph()
        self.image = self.graph.placeholder("image")
        self.nodes: dict[_Ref | _Named, fx.Node] = {_Ref(0): self.image}
        self.root: dict[str, Any] = {}

    def network(self, output: _Ref) -> fx.GraphModule:
        """The module of the steps that the output needs."""
        for index in sorted(self._needed(output)):
            self._add(_Ref(index))
        self.graph.output(self.nodes[output])
        return as_module(self.root, self.graph).eval()

    def _needed(self, output: _Ref) -> set[int]:
        needed, pending = set[int](), [output]
        while pending:
            ref = pending.pop()
            if ref.step and ref.step not in needed:
                needed.add(ref.step)
                step = self.few.steps[ref.step]
                if not self._is_fixed(ref):
                    _mapped((step.args, step.kwargs), lambda v: pending.append(v) if isinstance(v, _Ref) else None)
        return needed

    def _is_fixed(self, ref: _Ref) -> bool:
        """Whether a step gave the same constant for both numbers of images."""
        one, other = self.few.steps[ref.step].constant, self.more.steps[ref.step].constant
        return one is not None and other is not None and torch.equal(one, other)

    def _add(self, ref: _Ref) -> None:
        one, other = self.few.steps[ref.step], self.more.steps[ref.step]
        if self._is_fixed(ref):
            self.nodes[ref] = self._tensor(f"constant_step_{ref.step}", one.constant)
            return
        target = getattr(one.target, "__name__", one.target)
        if (one.op, one.target) != (other.op, other.target):
            raise RecordingError(f"The network's forward takes other steps for another number of images (at {target}).")
        try:
            args, kwargs = _merged(one.args, other.args), _merged(one.kwargs, other.kwargs)
        except ValueError as error:
            raise RecordingError(
                f"The network's forward gives {target} other arguments for another number of images."
            ) from error
        if one.op == "call_method" and one.target in ("view", "reshape"):
            args = _with_free_count(args)
        if one.op == "call_module":
            self.root[one.target] = self.few.named[one.target]
        args, kwargs = _mapped(args, self._argument), _mapped(kwargs, self._argument)
        self.nodes[ref] = self.graph.create_node(one.op, one.target, args, kwargs)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, _Count):
            count = self.graph.call_method("size", (self.image, 0))
            return count if value.times == 1 else self.graph.call_function(operator.mul, (count, value.times))
        if isinstance(value, _Named) and value not in self.nodes:
            tensor, other = self.few.named[value.path], self.more.named[value.path]
            if value in self.few.constants and not torch.equal(tensor, other):
                raise RecordingError("The network's forward makes tensors of the size of the batch.")
            self.nodes[value] = self._tensor(value.path, tensor)
        return self.nodes[value] if isinstance(value, _Ref | _Named) else value

    def _tensor(self, path: str, tensor: Any) -> fx.Node:
        self.root[path] = tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
        return self.graph.get_attr(path)


def _merged(one: Any, other: Any) -> Any:
    """The arguments of both runs as one; ValueError where they differ otherwise than by the number of images."""
    if isinstance(one, tuple | list) and type(one) is type(other) and len(one) == len(other):
        if isinstance(one, _Ref | _Named):
            if one != other:
                raise ValueError(one)
            return one
        items = [_merged(mine, theirs) for mine, theirs in zip(one, other, strict=True)]
        return items if isinstance(one, list) else tuple(items)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _merged(value, other[key]) for key, value in one.items()}
    if isinstance(one, slice) and isinstance(other, slice):
        return slice(*(_merged(mine, theirs) for mine, theirs in zip(_parts(one), _parts(other), strict=True)))
    if type(one) is type(other) and (one == other or one != one):
        return one
    few, more = _COUNTS
    if type(one) is int and type(other) is int and one % few == 0 and one // few * more == other:
        return _Count(one // few)
    raise ValueError(one)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Arguments with every leaf mapped; ``_Ref`` and its like, which are tuples too, are leaves."""
    if isinstance(value, tuple | list) and not isinstance(value, _Ref | _Named | _Count):
        items = [_mapped(item, function) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(part, function) for part in _parts(value)))
    return function(value)


def _parts(value: slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def _with_free_count(args: Any) -> Any:
    """The arguments of a reshaping, with -1 in the place of a number that grows with the images, where it may stand."""
    tensor, *sizes = args
    sizes = sizes[0] if isinstance(sizes[0], tuple | list) and not isinstance(sizes[0], _Count) else sizes
    if sum(isinstance(size, _Count) for size in sizes) != 1 or any(type(size) is int and size == -1 for size in sizes):
        return args
    return (tensor, *(-1 if isinstance(size, _Count) else size for size in sizes))
