"""A network in use, cut at the first of several layers, whose later maps are seen on the way to the logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, fx, nn

from ..errors import ConfigError
from ..graphs.fx_modules import as_module
from ..graphs.tracer import between
from ..logits import require_logits
from .feature_split import Rest, Split, TracedSplit, part_of_graph, split

__all__ = ["SplitAtLayers", "split_at"]


class SplitAtLayers(TracedSplit):
    """A network as two functions, cut at the first of several layers; the second also gives the later layers' maps.

    Attributes:
        layers: their names, in the order of the network.
    """

    def __init__(self, first: TracedSplit, later: Sequence[TracedSplit]) -> None:
        names = [first.layer, *(part.layer for part in later)]
        super().__init__(first.root, first.graph, first.node, first.layout, ", ".join(names), None, first.activation)
        self.layers, self._layouts = names, [part.layout for part in later]
        ends = self.graph.output_node().all_input_nodes
        graph = part_of_graph(self.graph, [self.node, *self.passing], [*ends, *_places(self.graph, later)])
        for seen in graph.output_node().args[0][len(ends) :]:  # type: ignore[index,union-attr]
            _keep_from_steps_in_place(graph, seen)  # type: ignore[arg-type]
        self._head_and_maps = as_module(self.root, graph).eval()

    def head_and_values(self, maps_NCHW: Tensor, rest: Rest) -> tuple[Tensor, list[Tensor]]:
        """The logits (N, K), and what each later layer gives, as it is; ``map_of`` makes a map of it."""
        logits, *values = self._head_and_maps(*self.inputs(maps_NCHW, rest))
        return require_logits(logits, len(maps_NCHW), finite=False), values

    def map_of(self, index: int, value: Tensor) -> Tensor:
        """The map (N, C, h, w) in what later layer number ``index`` gives."""
        return self._layouts[index].to_map(value)


def split_at(model: nn.Module, images: Tensor, layer: str | Sequence[str] | None) -> Split:
    """A network in eval mode, cut at a layer, at its last spatial map (None), or at several layers.

    Args:
        model: in eval mode.
        images: (N, 3, H, W); the first two are used.
        layer: exact name of a module, or of several in any order.

    Raises:
        ConfigError: no module has that name, or it gives no map; or of several one is not computed from the other.
        ConversionError: the network cannot be run, or has no map.
    """
    if layer is None or isinstance(layer, str):
        return split(model, images, layer)
    names = list(dict.fromkeys(layer))
    if len(names) < 2:
        return split(model, images, names[0] if names else None)
    listed = ", ".join(names)
    parts = [split(model, images, name, by_name=True) for name in names]
    traced = [part for part in parts if isinstance(part, TracedSplit)]
    if len(traced) < len(parts):
        raise ConfigError(f"layer={listed}: torch.fx cannot trace the network to see several of them. Give one layer.")
    behind = {part.layer: {node.name for node in between(part.graph, part.node)} for part in traced}
    ordered = sorted(traced, key=lambda part: -sum(other.node.name in behind[part.layer] for other in traced))
    for before, after in itertools.pairwise(ordered):
        if after.node.name not in behind[before.layer]:
            raise ConfigError(
                f"layer={listed}: {after.layer} is not computed from {before.layer}. Give layers of which each is"
                " computed from the one before."
            )
    return SplitAtLayers(ordered[0], ordered[1:])


def _places(graph: fx.Graph, parts: Sequence[TracedSplit]) -> list[fx.Node]:
    """The steps of other traces of the same network in this one: a step has the same name in each."""
    nodes = {node.name: node for node in graph.nodes}
    return [nodes[part.node.name] for part in parts]


def _keep_from_steps_in_place(graph: fx.Graph, node: fx.Node) -> None:
    """Let later steps read a copy of a step's value, so that none changes it."""
    with graph.inserting_after(node):
        copy = graph.call_method("clone", (node,))
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy and user.op != "output")
