"""Changes of a network's geometry as published recipes make them: where it ends, its strides, pools and paddings.

They are made on the converted copy, never on the user's network. Weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from ..errors import ConversionError
from ..graphs import Layout, TracedAnalysis, between
from ..graphs.fx_modules import LayerTracer, as_module, assemble

__all__ = [
    "Change",
    "DropMaxPool",
    "DropStrides",
    "MaxPoolBefore",
    "SetPadding",
    "apply_changes",
    "cut_after",
    "layout",
]


@dataclass(frozen=True)
class DropStrides:
    """Strides of a module's convolutions and functional pools become 1, without dilation.

    ``pad`` pads what had a stride by half its window.
    """

    module: str
    pad: bool = False

    def apply(self, network: fx.GraphModule) -> None:
        """Change the network in place."""
        for node in _steps_in(network.graph, self.module):
            layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
                layer.stride = (1, 1)
                if self.pad:
                    layer.padding = tuple(size // 2 for size in layer.kernel_size)
            elif node.op == "call_function" and node.kwargs.get("stride") == 2:  # a functional pool
                padding = int(node.args[1]) // 2 if self.pad else node.kwargs["padding"]  # type: ignore[arg-type]
                node.kwargs = {**node.kwargs, "stride": 1, "padding": padding}

    def __str__(self) -> str:
        return f"strides of {self.module} dropped"


@dataclass(frozen=True)
class SetPadding:
    """Another padding of a layer; a pool then also rounds up."""

    layer: str
    padding: int

    def apply(self, network: fx.GraphModule) -> None:
        """Change the network in place."""
        layer = network.get_submodule(self.layer)
        if isinstance(layer, nn.MaxPool2d):
            layer.padding, layer.ceil_mode = self.padding, True
        elif isinstance(layer, nn.Conv2d):
            layer.padding = (self.padding, self.padding)

    def __str__(self) -> str:
        return f"{self.layer} padded by {self.padding}"


@dataclass(frozen=True)
class DropMaxPool:
    """A max-pool layer less: number ``index`` of those in the features, counted from 0 or, negative, from the end."""

    index: int

    def apply(self, network: fx.GraphModule) -> None:
        """Change the network in place."""
        layers = {n: network.get_submodule(str(n.target)) for n in network.graph.nodes if n.op == "call_module"}
        node = [n for n, layer in layers.items() if isinstance(layer, nn.MaxPool2d)][self.index]
        node.replace_all_uses_with(node.all_input_nodes[0])
        network.graph.erase_node(node)

    def __str__(self) -> str:
        return f"max-pool number {self.index} of the features dropped"


@dataclass(frozen=True)
class MaxPoolBefore:
    """A new max-pool 3x3, stride 2, rounding up, in front of a module."""

    module: str
    name: str

    def apply(self, network: fx.GraphModule) -> None:
        """Change the network in place."""
        inside = _steps_in(network.graph, self.module)
        (source,) = {source for node in inside for source in node.all_input_nodes if source not in inside}
        network.add_submodule(self.name, nn.MaxPool2d(3, 2, ceil_mode=True))
        with network.graph.inserting_after(source):
            pool = network.graph.call_module(self.name, (source,))
        for node in inside:
            node.replace_input_with(source, pool)

    def __str__(self) -> str:
        return f"max-pool 3x3, stride 2, put before {self.module}"


Change = DropStrides | SetPadding | DropMaxPool | MaxPoolBefore


def apply_changes(features: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """The features with their geometry changed; layers are taken over, and altered in place."""
    if not changes:
        return features
    graph = features.graph if isinstance(features, fx.GraphModule) else LayerTracer().trace(features)
    network = as_module(features, graph)
    for change in changes:
        change.apply(network)
    return assemble(network, network.graph)


def cut_after(analysis: TracedAnalysis, module: str) -> TracedAnalysis:
    """The analysis with its features ending where a module ends; all that follows is head, and is dropped.

    Raises:
        ConversionError: the module's end is no single map (N, C, h, w).
    """
    graph = analysis.network.graph
    inside = _steps_in(graph, module)
    shape = analysis.shapes.get(inside[-1]) if inside else None
    if shape is None or len(shape) != 4:
        raise ConversionError(f"The features cannot end after {module}: no map (N, C, h, w) comes out of it.")
    return replace(
        analysis,
        feature=inside[-1],
        feature_layer=module,
        feature_shape=(shape[1], shape[2], shape[3]),
        skipped=(),
        layout=Layout("NCHW", (shape[2], shape[3])),
        reads_token=False,
        head_nodes=between(graph, inside[-1]),
        linear=None,
        single_layer=False,
    )


def layout(network: fx.GraphModule) -> str:
    """The kernel sizes of a network's convolutions and its max-pools (P) in order: ``"11 P 5 P 3 3 3 P"``."""
    words = []
    for node in network.graph.nodes:
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            words.append("x".join(map(str, dict.fromkeys(layer.kernel_size))))
        elif isinstance(layer, nn.MaxPool2d):
            words.append("P")
    return " ".join(words)


def _steps_in(graph: fx.Graph, module: str) -> list[fx.Node]:
    """The steps that a module takes, in order; torch.fx notes with each step in which modules it was taken."""
    return [node for node in graph.nodes if module in node.meta.get("nn_module_stack", ())]
