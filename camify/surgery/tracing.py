"""A classifier as the graph of its steps: traced, run once under observation, taken apart."""

from __future__ import annotations

import operator
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..architecture import LayerTracer, as_module
from ..errors import ConversionError

__all__ = ["Observer", "ancestors", "between", "extract", "steps", "trace"]

_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_KEPT_VALUES = 16


def trace(model: nn.Module, *, training: bool) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """The steps that a network takes in one mode, and the outermost module that ends in each.

    Raises:
        ConversionError: the steps depend on values, or a layer's name cannot stand in their code.
    """
    modes = [(module, module.training) for module in model.modules()]
    tracer = LayerTracer()
    model.train(training)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise ConversionError(
            f"The network's forward cannot be traced by torch.fx{_where(error)}"
            f" ({type(error).__name__}: {error})."
            " Control flow that depends on tensor values is the usual cause; move it out of forward."
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    _use_results_of_in_place_steps(model, graph)
    return as_module(model, graph), tracer.outermost


def _where(error: Exception) -> str:
    """The user's line at which tracing stopped."""
    own = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _use_results_of_in_place_steps(model: nn.Module, graph: fx.Graph) -> None:
    """Let later steps read the result of an in-place step where they read its (overwritten) input."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _in_place(model, node):
            continue
        source = node.all_input_nodes[0]
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)


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
    """Runs a graph once and remembers shapes, which steps change nothing, and the last spatial values."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.unchanged: set[fx.Node] = set()
        self.tensors: set[fx.Node] = set()
        self.values: dict[fx.Node, Tensor] = {}
        self._recent: deque[fx.Node] = deque()
        self._step = ""
        self.extra_traceback = False

    def observe(self, images: Tensor) -> Any:
        """The network's output; refused with the name of the step that fails."""
        try:
            return self.run(images)
        except Exception as error:
            size = "x".join(map(str, images.shape[2:]))
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ConversionError(
                f"The network cannot run on input {tuple(images.shape)}; at {self._step}: {reason}."
                f" Give input_size (now {size}) or example."
            ) from error

    def run_node(self, n: fx.Node) -> Any:
        """One step, and what is worth remembering of it."""
        self._step = str(n.target if n.op == "call_module" else n.name)
        source = self.env.get(n.all_input_nodes[0]) if n.all_input_nodes else None
        before = source.clone() if isinstance(source, Tensor) and source.dim() == 4 else source
        result = super().run_node(n)
        if not isinstance(result, Tensor):
            several = isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result)
            if several:
                self.tensors.add(n)
            else:
                self.constants[n] = result
            return result
        self.tensors.add(n)
        self.shapes[n] = result.shape
        if result.dim() == 4 and n.op not in ("placeholder", "output", "get_attr"):
            if isinstance(before, Tensor) and before.shape == result.shape and torch.equal(before, result):
                self.unchanged.add(n)
            self._keep(n, result)
        return result

    def _keep(self, node: fx.Node, value: Tensor) -> None:
        self.values[node] = value.clone()
        self._recent.append(node)
        if len(self._recent) > _KEPT_VALUES:
            del self.values[self._recent.popleft()]


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
    found, pending = set(), [end]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend([] if node is start else node.all_input_nodes)
    return found
