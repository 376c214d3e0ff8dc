"""A classifier as the graph of its steps: traced, run once under observation, taken apart."""

from __future__ import annotations

import inspect
import operator
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..logits import cannot_run
from .final_activation import take_off
from .fx_modules import LayerTracer, as_module, parameter_free
from .origins import Origins

__all__ = ["Observer", "Trace", "TracingError", "ancestors", "between", "extract", "steps", "trace", "trace_up_to"]

_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_VIEWS = {
    "chunk", "contiguous", "detach", "expand", "expand_as", "flatten", "float", "getitem", "narrow", "permute",
    "reshape", "select", "split", "squeeze", "swapaxes", "to", "transpose", "type_as", "unbind", "unflatten",
    "unsqueeze", "view",
}  # fmt: skip
"""Steps whose result may be the same memory as their input."""
_KEPT_VALUES = 16


class TracingError(ConversionError):
    """The steps of a forward cannot be written down."""


class _Reached(BaseException):  # no error: it leaves the forward, which a user's own `except` must not stop
    def __init__(self, node: fx.Node) -> None:
        self.node = node


class _ModelTracer(LayerTracer):
    """Goes into every module that torch.fx can follow, and keeps the others whole.

    ``whole``: modules that read ``self.training`` in their own forward are kept whole too, as they take other steps
    in training: kept whole, they run their own code in both modes. ``last``: the module with which tracing ends.
    """

    def __init__(self, whole: bool, last: str | None = None) -> None:
        super().__init__(autowrap_functions=_opaque_functions())
        self.whole, self.kept_whole, self._opaque = whole, list[str](), _opaque_modules()
        self.last = last

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers, and what is to stay whole."""
        if super().is_leaf_module(m, module_qualified_name) or isinstance(m, self._opaque):
            return True
        return self.whole and _reads_training(m)

    def trace_call(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace one module; where that fails it becomes one step."""
        result = self._entered(m, forward, args, kwargs)
        if self.last is not None and isinstance(result, fx.Proxy) and self.path_of_module(m) == self.last:
            raise _Reached(result.node)
        return result

    def _entered(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        count_before, entered = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().trace_call(m, forward, args, kwargs)
        except Exception as error:  # noqa: BLE001 - the module is the user's: it fails as it likes
            while len(self.module_stack) > entered:  # torch.fx leaves there what it was in
                self.module_stack.popitem()
            for node in list(self.graph.nodes)[: count_before - 1 : -1]:
                if node.op != "get_attr":  # the tracer may hand these out again
                    self.graph.erase_node(node)
            name = self.path_of_module(m)
            self.kept_whole.append(f"{name} ({type(m).__name__}{_where(error)}: {str(error).split(chr(10))[0]})")
            result = self.create_proxy("call_module", name, args, kwargs)
            self.ended(name, result.node)
            return result


def _reads_training(module: nn.Module) -> bool:
    """Whether a module's own forward, or one that it builds on, asks for the mode."""
    forwards = [vars(kind).get("forward") for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
    codes = [getattr(forward, "__code__", None) for forward in forwards]
    return any(code is not None and "training" in code.co_names for code in codes)


def _opaque_modules() -> tuple[type[nn.Module], ...]:
    """Modules that timm says torch.fx cannot follow; none where timm is not in use."""
    layers = sys.modules.get("timm.layers")
    return tuple(layers.get_notrace_modules()) if layers is not None else ()


def _opaque_functions() -> tuple[Callable[..., Any], ...]:
    layers = sys.modules.get("timm.layers")
    return tuple(layers.get_notrace_functions()) if layers is not None else ()


@dataclass(frozen=True)
class Trace:
    """The steps of a network up to its logits.

    Attributes:
        network: runs them.
        outermost: the outermost module that ends in each step.
        ends: the step in which each module ends, in its last call.
        calls: how often each module is called.
        kept_whole: the modules that torch.fx cannot enter.
        activation: what the network has behind its logits, ``"softmax"`` for instance; taken off.
    """

    network: fx.GraphModule
    outermost: dict[fx.Node, str]
    ends: dict[str, fx.Node]
    calls: Mapping[str, int]
    kept_whole: list[str]
    activation: str | None


def trace(model: nn.Module, *, training: bool, whole: bool = False) -> Trace:
    """The steps that a network takes in one mode.

    Raises:
        TracingError: the steps of the outermost forward depend on values, or a layer's name cannot stand in their
            code.
    """
    modes = [(module, module.training) for module in model.modules()]
    attributes = set(vars(model))
    tracer = _ModelTracer(whole)
    model.train(training)
    try:
        graph = tracer.trace(model, concrete_args=_defaults(model))
        _erase_defaults(graph)
    except Exception as error:
        raise TracingError(
            f"The network's forward cannot be traced by torch.fx{_where(error)}"
            f" ({type(error).__name__}: {error}). {_usual_cause(error)}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    _settle_in_place_steps(model, graph)
    activation = take_off(model, graph)
    network = as_module(model, graph)
    for name in set(vars(model)) - attributes:  # the tracer leaves constant tensors in the network
        delattr(model, name)
    return Trace(network, tracer.outermost, tracer.ends, tracer.calls, tracer.kept_whole, activation)


def trace_up_to(model: nn.Module, last: str, *, training: bool) -> fx.GraphModule:
    """The steps that a network takes in one mode up to the end of a module; what comes behind it is not looked at.

    Raises:
        TracingError: torch.fx cannot follow it so far, or ends without having come there.
    """
    modes = [(module, module.training) for module in model.modules()]
    attributes = set(vars(model))
    tracer = _ModelTracer(whole=False, last=last)
    model.train(training)
    try:
        tracer.trace(model, concrete_args=_defaults(model))
    except _Reached as reached:
        tracer.graph.output(reached.node)
    except Exception as error:
        raise TracingError(f"torch.fx cannot follow the network up to {last}{_where(error)}.") from error
    else:
        raise TracingError(f"The network does not come to {last}.")
    finally:
        for module, mode in modes:
            module.training = mode
        for name in set(vars(model)) - attributes:
            delattr(model, name)
    _settle_in_place_steps(model, tracer.graph)
    (end,) = tracer.graph.output_node().all_input_nodes
    return as_module(model, extract(tracer.graph, None, end))


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The options of a forward beside the image, at their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _erase_defaults(graph: fx.Graph) -> None:
    """Remove the inputs behind the image, and the checks that they have their defaults."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        pending = [node]
        while pending:
            last = pending[-1]
            if last.users:
                pending.extend(last.users)
            else:
                graph.erase_node(last)
                pending = [other for other in pending if other is not last]


def _where(error: Exception) -> str:
    """The user's line at which tracing stopped."""
    library_folders = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(library_folders)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _usual_cause(error: Exception) -> str:
    if isinstance(error, NameError) and "not installed as a submodule" in str(error):
        return "Its layers stand in a plain list or dict: put them into nn.ModuleList or nn.ModuleDict."
    return "Control flow that depends on tensor values is the usual cause; move it out of forward."


def _settle_in_place_steps(model: nn.Module, graph: fx.Graph) -> None:
    """Let later steps read the result of an in-place step where they read its input; the image is not overwritten."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _in_place(model, node):
            continue
        source = node.all_input_nodes[0]
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)
    image = next(node for node in graph.nodes if node.op == "placeholder")
    seen = (image, *_views(image))
    if any(_in_place(model, user) and user.all_input_nodes[0] is node for node in seen for user in node.users):
        with graph.inserting_after(image):
            copy = graph.call_method("clone", (image,))
        image.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)


def _views(source: fx.Node) -> list[fx.Node]:
    """The steps that give a view of a step's tensor, and views of these."""
    views = [user for user in source.users if getattr(user.target, "__name__", user.target) in _VIEWS]
    return [view for direct in views for view in (direct, *_views(direct))]


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    if not node.all_input_nodes:
        return False
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        inplace = node.kwargs.get("inplace", False) or node.target in _IN_PLACE_OPERATORS
        return bool(inplace) or (name.endswith("_") and not name.startswith("_"))
    return False


class Observer(fx.Interpreter):
    """Runs a graph once and remembers shapes, origins, which steps change nothing, and the last spatial values."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.unchanged: set[fx.Node] = set()
        self.tensors: set[fx.Node] = set()
        self.values: dict[fx.Node, Tensor] = {}
        self.origins: Origins | None = None
        self._recent: deque[fx.Node] = deque()
        self._in_place = {node for node in network.graph.nodes if _in_place(network, node)}
        self._overwritten: set[fx.Node] = set()  # of which the tensor, or a view of it, is changed in place later
        for node in reversed(network.graph.nodes):
            views = [user for user in node.users if user.op in ("call_method", "call_function")]
            if any(n in self._in_place for n in node.users) or any(n in self._overwritten for n in views):
                self._overwritten.add(node)
        self._step = ""
        self.extra_traceback = False

    def observe(self, images: Tensor, *, origins: bool = True) -> Any:
        """The network's output; refused with the name of the step that fails."""
        if origins:
            self.origins = Origins(self.module, (images.shape[2], images.shape[3]))
        try:
            return self.run(images)
        except Exception as error:
            raise cannot_run(self.module, images, error, self._step) from error

    def run_node(self, n: fx.Node) -> Any:
        """One step, and what is worth remembering of it."""
        self._step = str(n.target if n.op == "call_module" else n.name)
        source = self.env.get(n.all_input_nodes[0]) if n.all_input_nodes else None
        source_map = (
            source if isinstance(source, Tensor) and source.dim() == 4 and parameter_free(self.module, n) else None
        )
        if source_map is not None and n in self._in_place:
            source_map = source_map.clone()
        result = super().run_node(n)
        if self.origins is not None and n.op == "placeholder":
            self.origins.start(n)
        elif self.origins is not None and n.op not in ("get_attr", "output"):
            self.origins.follow(n, partial(self._again, n), self.env, result, in_place=n in self._in_place)
        if not isinstance(result, Tensor):
            several = isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result)
            if several:
                self.tensors.add(n)
            else:
                self.constants[n] = result
            return result
        self.tensors.add(n)
        self.shapes[n] = result.shape
        if result.dim() in (3, 4) and n.op not in ("placeholder", "output", "get_attr"):
            if source_map is not None and _equal(source_map, result):
                self.unchanged.add(n)
            self._keep(n, result)
        return result

    def _again(self, node: fx.Node, given: Mapping[fx.Node, Tensor], others: float | None = None) -> Any:
        """A step done again, with other values for some inputs, and a number for the tensors among the rest."""

        def value_of(source: fx.Node) -> Any:
            if source in given:
                return given[source]
            value = self.env[source]
            if others is not None and isinstance(value, Tensor) and value.is_floating_point():
                return torch.full_like(value, others, dtype=torch.float64)
            return value

        args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
        return getattr(self, node.op)(node.target, args, kwargs)

    def _keep(self, node: fx.Node, value: Tensor) -> None:
        self.values[node] = value.clone() if node in self._overwritten else value
        self._recent.append(node)
        if len(self._recent) > _KEPT_VALUES:
            del self.values[self._recent.popleft()]


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; mostly their corner tells."""
    return a.shape == b.shape and torch.equal(a[..., :2, :2], b[..., :2, :2]) and torch.equal(a, b)


def between(graph: fx.Graph, start: fx.Node) -> tuple[fx.Node, ...]:
    """The steps that depend on ``start``, in order, without the output."""
    after: dict[fx.Node, None] = {start: None}
    for node in graph.nodes:
        if node.op != "output" and any(source in after for source in node.all_input_nodes):
            after[node] = None
    return tuple(after)[1:]


def extract(
    graph: fx.Graph,
    start: fx.Node | None,
    end: fx.Node,
    *,
    skip: Iterable[fx.Node] = (),
    constants: Mapping[fx.Node, Any] | None = None,
) -> fx.Graph:
    """The steps from ``start`` (None: the image) to ``end``; sizes read off others become constants."""
    needed = _upstream(end, start)
    part = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if start is not None and node is start:
            copies[node] = part.placeholder("features")
        elif node not in needed:
            continue
        elif node in skip:
            copies[node] = copies[node.all_input_nodes[0]]
        elif node.op == "placeholder" and start is not None:
            continue
        elif all(source in copies for source in node.all_input_nodes):
            copies[node] = part.node_copy(node, lambda n: copies[n])
        elif constants is not None and node in constants:
            copies[node] = constants[node]
    part.output(copies[end])
    return part


def steps(nodes: Sequence[fx.Node]) -> list[tuple[Any, ...]]:
    """What each step does, its inputs given by position, so that two traces can be compared."""
    position = {node: f"%{index}" for index, node in enumerate(nodes)}
    return [
        (
            n.op,
            "" if n.op == "placeholder" else n.target,
            fx.map_arg((n.args, n.kwargs), position.__getitem__),
        )
        for n in nodes
    ]


def ancestors(graph: fx.Graph, end: fx.Node) -> list[fx.Node]:
    """The steps that ``end`` depends on and itself, in order."""
    needed = _upstream(end)
    return [node for node in graph.nodes if node in needed]


def _upstream(end: fx.Node, start: fx.Node | None = None) -> set[fx.Node]:
    nodes, pending = set(), [end]
    while pending:
        node = pending.pop()
        if node not in nodes:
            nodes.add(node)
            pending.extend([] if node is start else node.all_input_nodes)
    return nodes
