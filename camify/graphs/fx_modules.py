"""Networks as graphs of their steps: traced down to layers, and code again."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable
from threading import get_ident
from typing import Any

from torch import fx, nn

from ..errors import ConversionError
from ..eval_mode import one_at_a_time
from .allowed_layers import LAYER_NAMES

__all__ = ["OWN_NAMES", "LayerTracer", "as_module", "assemble", "parameter_free", "without_echo"]

OWN_NAMES = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that ``fx.GraphModule`` has for itself."""


class LayerTracer(fx.Tracer):
    """Symbolic tracer down to layers.

    ``outermost`` names the largest module that ends in a step, ``ends`` has the step in which each module ends (in
    its last call), ``calls`` how often each was called.

    While torch.fx traces, every call of every ``nn.Module`` of the process comes here: those of other threads go on
    to the module.
    """

    proxy_buffer_attributes = True  # what is computed from a buffer is a step, not a constant

    def __init__(self, autowrap_functions: tuple[Callable[..., Any], ...] = ()) -> None:
        super().__init__(autowrap_functions=autowrap_functions)
        self.outermost: dict[fx.Node, str] = {}
        self.ends: dict[str, fx.Node] = {}
        self.calls = Counter[str]()
        self._thread = get_ident()

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The steps of a network; no other thread of camify traces meanwhile."""
        with one_at_a_time:
            try:
                return super().trace(root, concrete_args)
            finally:  # torch.fx's own functions refer to the tracer in a circle: the network is not to stay for that
                self.root, self.tensor_attrs, self.submodule_paths = nn.Module(), {}, None
                self.module_stack.clear()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """What a module has by a name: a step, where it is a tensor that is read while tracing."""
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch and those that can be stored by name stay whole."""
        return type(m) in LAYER_NAMES or bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of a module: a step of the network, or the call itself in another thread."""
        return self.trace_call(m, forward, args, kwargs) if get_ident() == self._thread else forward(*args, **kwargs)

    def trace_call(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace one module and remember where it ended (outer modules return last)."""
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.ended(self.path_of_module(m), result.node)
        return result

    def ended(self, name: str, node: fx.Node) -> None:
        """Remember the step in which a module ended."""
        self.outermost[node] = name
        self.ends[name] = node
        self.calls[name] += 1


def parameter_free(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node neither is a layer with parameters nor reads a parameter."""
    if node.op == "call_module":
        return next(root.get_submodule(str(node.target)).parameters(), None) is None
    return all(source.op != "get_attr" for source in node.all_input_nodes)


def as_module(root: nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """The code of a graph over the layers of ``root`` (not copied), a network or its layers by name.

    In that code a layer is ``self.name``. A layer named like a method of ``fx.GraphModule`` would call the
    method (``to_folder`` writes files), a step named ``self`` would take the module's place, and a keyword
    is no name.

    Its graph does not refer back to it, in which it would stay, with all weights, until Python collects garbage: what
    is only looked into is gone with the last reference.

    Raises:
        ConversionError: a layer or step has such a name.
    """
    for node in graph.nodes:
        layer = str(node.target) if node.op in ("call_module", "get_attr") else ""
        parts = layer.split(".")
        if parts[0] in OWN_NAMES or node.name == "self" or any(map(keyword.iskeyword, parts)):
            name = layer or node.name
            raise ConversionError(f"layer {name}: torch.fx or Python uses this name itself. Rename the layer.")
    network = without_echo(fx.GraphModule(root, graph, class_name="Features"))
    graph.owning_module = None
    return network


def without_echo(network: fx.GraphModule) -> fx.GraphModule:
    """The network, whose errors torch.fx no longer prints a second time, with the code of its graph, on stderr."""
    type(network).__call__ = nn.Module.__call__  # type: ignore[method-assign]  # each GraphModule has a class of its own
    return network


def assemble(root: nn.Module, graph: fx.Graph) -> nn.Module:
    """The network of a graph over the layers of ``root`` (not copied).

    A plain chain becomes ``nn.Sequential``, anything else an ``fx.GraphModule``. A prefix that all layer
    names share ("features." in a VGG) is left out of the new names.
    """
    layers = [n for n in graph.nodes if n.op in ("call_module", "get_attr")]
    prefix = _common_prefix([str(n.target) for n in layers])
    if prefix:
        root = root.get_submodule(prefix)
        for node in layers:
            node.target = str(node.target)[len(prefix) + 1 :]
    chain = _chain(graph)
    if chain is not None:
        sequence = nn.Sequential()
        for name in chain:
            sequence.add_module(name, root.get_submodule(name))
        sequence.training = root.training
        return sequence
    network = as_module(root, graph)
    graph.owning_module = network  # torch.fx's own passes over a graph ask for it
    return network


def _common_prefix(paths: list[str]) -> str:
    parts = [path.split(".")[:-1] for path in paths]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _chain(graph: fx.Graph) -> list[str] | None:
    """Names of the layers where the graph is layer after layer, each used once; else None."""
    previous, names = None, []
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            if node.args != (previous,) or node.kwargs or "." in name or hasattr(nn.Sequential, name):
                return None
            names.append(name)
        elif node.op == "output":
            if node.args != (previous,):
                return None
        elif node.op != "placeholder" or previous is not None:
            return None
        previous = node
    return names if len(set(names)) == len(names) else None
