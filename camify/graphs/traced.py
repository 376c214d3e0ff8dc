"""The analysis of a classifier by its steps: traced by torch.fx, run once under observation, cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import ConversionError
from ..logits import require_logits
from .analysis import FeaturesCopy, NetworkAnalysis
from .copied_features import copy_graph
from .fx_modules import as_module, parameter_free
from .last_map import NoMapError, before_pools, candidates_of, map_origins, no_map
from .layouts import Layout
from .linear_head import fold_linear_head
from .origins import Origin
from .place import not_placed, place_notes, placed_layout
from .tracer import Observer, TracingError, ancestors, between, extract, steps, trace

__all__ = ["TracedAnalysis", "analyze_traced", "only_layer"]

_PLACE_ADVICE = "If the network was made for another size, give input_size; or give example images."
_FUNCTIONAL_DROPOUT = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}


@dataclass
class TracedAnalysis(NetworkAnalysis):
    """A traced classifier; ``network`` runs over the layers of ``model`` and only while that is in eval mode."""

    network: fx.GraphModule
    feature: fx.Node
    skipped: tuple[fx.Node, ...]
    """Pools before the last activation that a larger map does without."""
    head_nodes: tuple[fx.Node, ...]
    shapes: Mapping[fx.Node, torch.Size]
    """Of every tensor step, for the two images."""
    unchanged: Set[fx.Node]
    """Steps that leave a map as it is."""
    constants: Mapping[fx.Node, Any]
    """Sizes and other plain values read in the forward."""
    origins: Mapping[fx.Node, Origin]
    """Of all steps through which everything flows and that may hold a map, in order."""

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers behind the last spatial map, in the order in which they run."""
        nodes = [*self.skipped, *self.head_nodes]
        return [str(node.target) for node in nodes if node.op == "call_module"]

    @property
    def left_out(self) -> list[str]:
        """Names of pools at the end of the features that a larger map does without."""
        return [str(node.target) for node in self.skipped]

    @property
    def map_shape(self) -> torch.Size:
        """(2, C, h, w) of the last spatial map with no pool left out."""
        return self.layout.to_map(torch.empty(self.shapes[self.feature], device="meta")).shape

    def features_graph(self, skip: Sequence[fx.Node] = ()) -> fx.Graph:
        """The graph from the image to the last spatial map (N, C, h, w)."""
        graph = extract(self.network.graph, None, self.feature, skip=skip)
        output = next(iter(reversed(graph.nodes)))
        with graph.inserting_before(output):
            output.args = (self.layout.append(graph, output.args[0]),)
        return graph

    def copy_features(self, graph: fx.Graph | None = None) -> FeaturesCopy:
        """A copy of what a graph over the network runs; None: up to the last spatial map (N, C, h, w)."""
        return copy_graph(self.model, self.network, graph or self.features_graph(self.skipped))


def analyze_traced(model: nn.Module, choices: Sequence[Tensor]) -> TracedAnalysis:
    """Find the last spatial map of a network in eval mode, and what its head does with it.

    The last spatial map is the last tensor with a map (N, C, h, w) of h * w > 1, or with one in another layout,
    through which everything flows, taken before pools that only resample it - unless the head is linear after those
    pools.

    Args:
        model: in eval mode.
        choices: images (2, C, H, W); the first that the network takes are used.

    Raises:
        TracingError: torch.fx cannot write the forward down.
        ConversionError: the network cannot be run, or has no such map; says where and why.
    """
    try:
        return _analyze_watched(model, choices, whole=False)
    except TracingError as error:
        first = error
    try:
        return _analyze_watched(model, choices, whole=True)
    except NoMapError:  # it may be inside a module that was kept whole
        raise first from None
    finally:
        del first  # its traceback has this frame: in such a circle the network would stay


@torch.no_grad()
def _analyze_watched(model: nn.Module, choices: Sequence[Tensor], *, whole: bool) -> TracedAnalysis:
    traced = trace(model, training=False, whole=whole)
    network = traced.network
    observer, images, output = _observe(network, choices)
    logits = require_logits(output, images)
    origins = map_origins(network, observer)
    candidates, place, why = _placed_candidates(network, observer, origins, images, logits)
    if not candidates:
        if traced.kept_whole:
            raise TracingError(f"torch.fx cannot enter {traced.kept_whole[0]}, which holds the last spatial map.")
        raise NoMapError(why or no_map(network, observer, images))
    feature, linear = next(reversed(candidates)), None
    for node, layout in candidates.items():  # the largest map first
        value, head = layout.to_map(observer.values[node]), _head(network, node, layout, observer)
        only = only_layer(network, node)
        linear = fold_linear_head(head, value, network.get_submodule(only) if only else None)
        if linear is not None:
            feature = node
            break
    skipped: tuple[fx.Node, ...] = ()
    if linear is None and candidates[feature].axes == "NCHW":
        feature, skipped = before_pools(network, observer, next(iter(candidates)))
    layout = candidates.get(feature) or Layout("NCHW", (observer.shapes[feature][2], observer.shapes[feature][3]))
    head_nodes = between(network.graph, feature)
    weighted = [n for n in head_nodes if not parameter_free(network, n)]
    analysis = TracedAnalysis(
        model=model,
        network=network,
        images=images,
        logits=logits,
        layout=layout,
        feature=feature,
        feature_layer=_layer_name(network.graph, feature, traced.outermost),
        feature_shape=(0, 0, 0),
        skipped=skipped,
        head_nodes=head_nodes,
        shapes=observer.shapes,
        unchanged=observer.unchanged,
        constants=observer.constants,
        origins=origins,
        linear=linear,
        reads_token=layout.prefix + layout.suffix > 0 and _reads_token(network, feature, layout, observer),
        single_layer=len(weighted) == 1,
        activation=traced.activation,
        place=place,
        notes=[
            *(f"torch.fx cannot enter {name}: it stays as it is." for name in traced.kept_whole[:3]),
            *place_notes(place),
        ],
    )
    shape = as_module(network, analysis.features_graph(skipped))(images).shape if skipped else analysis.map_shape
    analysis.feature_shape = (shape[1], shape[2], shape[3])
    _match_training_mode(model, analysis, whole)
    return analysis


def _observe(network: fx.GraphModule, choices: Sequence[Tensor]) -> tuple[Observer, Tensor, Any]:
    """The network under observation, on the first images that it takes; else what was wrong with the first."""
    refusal: ConversionError | None = None
    for images in choices:
        observer = Observer(network)
        try:
            return observer, images, observer.observe(images)
        except ConversionError as error:
            refusal = refusal or error
    try:
        raise refusal or ConversionError("There are no images to run the network with.")
    finally:
        del refusal  # its traceback has this frame: in such a circle the network would stay


def _placed_candidates(
    network: fx.GraphModule, observer: Observer, origins: Mapping[fx.Node, Origin], images: Tensor, logits: Tensor
) -> tuple[dict[fx.Node, Layout], float | None, str | None]:
    """The last spatial map whose place is shown, and those before it that differ by pools, largest first.

    With them its figure (see ``place_figures``), and, where there is none, why the last one that looked like a map
    was refused.
    """
    why = None
    while True:
        nodes = candidates_of(network, observer, origins, logits)
        if not nodes:
            return {}, None, why
        last = nodes[-1]
        run = as_module(network, extract(network.graph, None, last))
        layouts, followed = origins[last].layouts, origins[last].followed
        layout, figure = placed_layout(run, images, observer.values[last], layouts, followed=followed)
        if layout is not None:
            before = {node: replace(layout, grid=origins[node].layouts[0].grid) for node in nodes[:-1]}
            return before | {last: layout}, figure, None
        shown = not_placed(observer.shapes[last], figure)
        why = why or f"No spatial map was found: {last.name} {shown} {_PLACE_ADVICE}"
        steps_before = list(origins)[: list(origins).index(last)]
        origins = {node: origins[node] for node in steps_before}


def only_layer(network: fx.GraphModule, feature: fx.Node) -> str | None:
    """Name of the layer with weights behind a step, where there is just one."""
    weighted = [node for node in between(network.graph, feature) if not parameter_free(network, node)]
    single = len(weighted) == 1 and weighted[0].op == "call_module"
    return str(weighted[0].target) if single else None


def _layer_name(graph: fx.Graph, feature: fx.Node, outermost: dict[fx.Node, str]) -> str:
    """Name of the outermost module that ends in ``feature``, or in the last step before it that has one."""
    name = ""
    for node in graph.nodes:
        name = outermost.get(node, name)
        if node is feature:
            break
    return name or feature.name


def _head(network: fx.GraphModule, feature: fx.Node, layout: Layout, observer: Observer) -> Callable[[Tensor], Tensor]:
    """The head as a function of the map (2, C, h, w)."""
    (output,) = next(iter(reversed(network.graph.nodes))).args
    if not isinstance(output, fx.Node):
        raise ConversionError("The network returns several outputs; expected one tensor of logits (N, classes).")
    head = as_module(network, extract(network.graph, feature, output, constants=observer.constants))
    return lambda maps: head(layout.from_map(maps))


def _reads_token(network: fx.GraphModule, feature: fx.Node, layout: Layout, observer: Observer) -> bool:
    """Whether the first vector behind the tokens is another than the mean of the patches."""
    value = observer.values[feature]
    mean = layout.to_map(value).mean((2, 3))
    vector = next((node for node in between(network.graph, feature) if len(observer.shapes.get(node, ())) == 2), None)
    if vector is None:
        return True
    first_vector = as_module(network, extract(network.graph, feature, vector, constants=observer.constants))(value)
    return first_vector.shape != mean.shape or not torch.allclose(first_vector, mean, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- training mode


def _match_training_mode(model: nn.Module, analysis: TracedAnalysis, whole: bool) -> None:
    """Make functional dropout in the features a layer, so that one graph is right in both modes.

    Raises:
        TracingError: the features take other steps in training, which one graph cannot hold.
    """
    network = trace(model, training=True, whole=whole).network
    twin = next((n for n in network.graph.nodes if n.name == analysis.feature.name), None)
    ours = ancestors(analysis.network.graph, analysis.feature)
    theirs = ancestors(network.graph, twin) if twin is not None else []
    same = len(ours) == len(theirs)
    for node, step, other in zip(ours, steps(ours), steps(theirs), strict=True) if same else ():
        if step == other:
            continue
        is_function = node.op == "call_function"
        dropout = _FUNCTIONAL_DROPOUT.get(node.target) if is_function else None  # type: ignore[arg-type]
        if dropout is None:
            same = False
            break
        name = f"{node.name}_layer"
        analysis.network.add_submodule(name, dropout(_argument(node, 1, "p", 0.5)))
        node.args, node.kwargs = (_argument(node, 0, "input", None),), {}
        node.op, node.target = "call_module", name
    if not same:
        raise TracingError(
            f"Up to {analysis.feature_layer} the network takes other steps in training than in evaluation,"
            " which cannot be kept in one network. Use layers (nn.Dropout) instead of `if self.training`."
        )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
