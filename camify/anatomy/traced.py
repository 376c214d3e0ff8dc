"""The anatomy of a classifier by its steps: traced by torch.fx, run once under observation, cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..architecture import as_module, assemble, parameter_free
from ..errors import ConversionError
from ..modes import without_hooks
from .anatomy import Anatomy, FeaturesCopy
from .equivalents import in_torch_layers
from .layout import Layout, find_layout
from .linearity import fold_linear_head
from .tracing import Observer, TracingError, ancestors, between, extract, require_logits, steps, trace

__all__ = ["TracedAnatomy", "dissect"]

_FUNCTIONAL_DROPOUT = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}
_PERMUTES = ("permute", torch.permute)
_GOOD_MAP = 7


@dataclass
class TracedAnatomy(Anatomy):
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
    maps: Mapping[fx.Node, Layout]
    """All steps through which everything flows and that hold a map, in order."""

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
        graph = graph or self.features_graph(self.skipped)
        layers = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
        copies: dict[int, Any] = {}
        with without_hooks(self.model):
            features = copy.deepcopy(assemble(self.network, graph), copies)
        for parameter in features.parameters():
            parameter.grad = None
        modes = {copies[id(layer)]: layer.training for layer in self.model.modules() if id(layer) in copies}
        if isinstance(features, fx.GraphModule):
            in_torch_layers(features, modes)
            features.recompile()
        return FeaturesCopy(features, modes, list(dict.fromkeys(layers)))


def dissect(model: nn.Module, choices: Sequence[Tensor]) -> TracedAnatomy:
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
        return _dissect(model, choices, whole=False)
    except TracingError:
        return _dissect(model, choices, whole=True)


@torch.no_grad()
def _dissect(model: nn.Module, choices: Sequence[Tensor], *, whole: bool) -> TracedAnatomy:
    traced = trace(model, training=False, whole=whole)
    network = traced.network
    observer, images, output = _observe(network, choices)
    logits = require_logits(output)
    maps = _maps(network, observer, images)
    candidates = _candidates(network, observer, maps, logits)
    if not candidates:
        if traced.kept_whole:
            raise TracingError(f"torch.fx cannot enter {traced.kept_whole[0]}, which holds the last spatial map.")
        raise ConversionError(_no_map(network, observer, images))
    feature, linear = next(reversed(candidates)), None
    for node, layout in candidates.items():  # the largest map first
        value, head = layout.to_map(observer.values[node]), _head(network, node, layout, observer)
        linear = fold_linear_head(head, value, _only_layer(network, node))
        if linear is not None:
            feature = node
            break
    skipped: tuple[fx.Node, ...] = ()
    if linear is None and candidates[feature].axes == "NCHW":
        feature, skipped = _before_pools(network, observer, next(iter(candidates)))
    layout = candidates.get(feature) or Layout("NCHW", (observer.shapes[feature][2], observer.shapes[feature][3]))
    head_nodes = between(network.graph, feature)
    weighted = [n for n in head_nodes if not parameter_free(network, n)]
    anatomy = TracedAnatomy(
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
        maps=maps,
        linear=linear,
        reads_token=layout.prefix > 0 and _reads_token(network, feature, layout, observer),
        single_layer=len(weighted) == 1,
        notes=[f"torch.fx cannot enter {name}: it stays as it is." for name in traced.kept_whole[:3]],
    )
    shape = as_module(network, anatomy.features_graph(skipped))(images).shape if skipped else anatomy.map_shape
    anatomy.feature_shape = (shape[1], shape[2], shape[3])
    _match_training_mode(model, anatomy, whole)
    return anatomy


def _observe(network: fx.GraphModule, choices: Sequence[Tensor]) -> tuple[Observer, Tensor, Any]:
    """The network under observation, on the first images that it takes; else what was wrong with the first."""
    refusal: ConversionError | None = None
    for images in choices:
        observer = Observer(network)
        try:
            return observer, images, observer.observe(images)
        except ConversionError as error:
            refusal = refusal or error
    raise refusal or ConversionError("There are no images to run the network with.")


# ---------------------------------------------------------------- the cut


def _only_layer(network: fx.GraphModule, feature: fx.Node) -> nn.Module | None:
    """The layer with weights behind a step, where there is just one."""
    weighted = [node for node in between(network.graph, feature) if not parameter_free(network, node)]
    single = len(weighted) == 1 and weighted[0].op == "call_module"
    return network.get_submodule(str(weighted[0].target)) if single else None


def _flow(network: fx.GraphModule, observer: Observer) -> list[fx.Node]:
    """Tensor steps on a way from the image to the output, in order."""
    forward: set[fx.Node] = set()
    for node in network.graph.nodes:
        follows = node in observer.tensors and any(source in forward for source in node.all_input_nodes)
        if node.op == "placeholder" or follows:
            forward.add(node)
    backward: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        if node.op == "output" or any(user in backward for user in node.users):
            backward.add(node)
    return [node for node in network.graph.nodes if node in forward and node in backward]


def _cuts(flow: Sequence[fx.Node]) -> list[fx.Node]:
    """The steps through which everything flows: no edge leads past them."""
    order = {node: index for index, node in enumerate(flow)}
    reach, cuts = 0, []
    for index, node in enumerate(flow):
        if reach <= index:
            cuts.append(node)
        reach = max([reach, *(order[user] for user in node.users if user in order)])
    return cuts


def _maps(network: fx.GraphModule, observer: Observer, images: Tensor) -> dict[fx.Node, Layout]:
    """The layouts of all steps that hold a map and through which everything flows, in order."""
    layouts = _layouts(network, observer, images)
    cuts = _cuts(_flow(network, observer))
    return {node: layouts[node] for node in cuts if node in layouts and node.op != "placeholder"}


def _candidates(
    network: fx.GraphModule, observer: Observer, layouts: Mapping[fx.Node, Layout], logits: Tensor
) -> dict[fx.Node, Layout]:
    """The last spatial map and those before it that differ by pools and idle steps only, largest first; or none."""
    maps: list[fx.Node] = []
    for node in _cuts(_flow(network, observer)):
        if node in observer.values and node in layouts:
            maps.append(node)
        elif node in observer.values and len(observer.shapes[node]) == 4 and maps:
            break  # pooled to 1 x 1: what is 4-D after this is no map (channels-last layers of ConvNeXt)
    if not maps:
        return {}
    before_conv = _before_conv_head(network, maps[-1], observer, logits)
    if before_conv in layouts and before_conv in observer.values:
        return {before_conv: layouts[before_conv]}
    candidates = [maps[-1]]
    for before in reversed(maps[:-1]):
        node = candidates[0]
        if node.all_input_nodes != [before] or not _only_pools(network, observer, node):
            break
        candidates.insert(0, before)
    return {node: layouts[node] for node in candidates}


def _layouts(network: fx.GraphModule, observer: Observer, images: Tensor) -> dict[fx.Node, Layout]:
    """The layouts of all steps that can hold a map."""
    image = (images.shape[2], images.shape[3])
    found: dict[fx.Node, Layout] = {}
    channels_last: dict[fx.Node, bool | None] = {}
    for node, shape in observer.shapes.items():
        source = next((n for n in node.all_input_nodes if len(observer.shapes.get(n, ())) == 4), None)
        last = False if node.op == "placeholder" else None if source is None else channels_last.get(source)
        last = {(0, 2, 3, 1): True, (0, 3, 1, 2): False}.get(_permutation(network, node), last)
        channels_last[node] = last
        layout = find_layout(shape, image, (known.grid for known in found.values()), channels_last=last)
        flattened = source in found and len(shape) == 3 and shape[1] == observer.shapes[source][1]
        if layout is not None and not flattened:
            found[node] = layout
    return found


def _permutation(network: fx.GraphModule, node: fx.Node) -> tuple[Any, ...]:
    """The order in which a step puts the axes, or () where it is no permutation."""
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return tuple(layer.dims) if isinstance(layer, torchvision.ops.Permute) else ()
    if node.target not in _PERMUTES:
        return ()
    order = node.args[1:] or (node.kwargs.get("dims", ()),)
    return tuple(order[0]) if isinstance(order[0], tuple | list) else tuple(order)


def _no_map(network: fx.GraphModule, observer: Observer, images: Tensor) -> str:
    """Why there is no map, and the input size at which there would be a good one."""
    maps = [node for node in _cuts(_flow(network, observer)) if len(observer.shapes[node]) == 4]
    maps = [node for node in maps if node.op != "placeholder" and observer.shapes[node][2:].numel() == 1]
    if not maps:
        return (
            "No spatial map was found: nothing behind the image has the shape (N, C, h, w). A CNN whose map is larger"
            " than 1 x 1 is needed; if this is one, give a larger input_size."
        )
    (height, width), at = observer.shapes[maps[-1]][2:], "x".join(map(str, images.shape[2:]))
    text = f"No spatial map was found: the last one ({maps[-1].name}) is {height} x {width} at {at} px."
    for times in (2, 3, 4, 5, 6, _GOOD_MAP, 8, 12, 16):
        larger = images.repeat(1, 1, times, times)
        if max(larger.shape[2:]) > 1024:
            break
        other = Observer(network)
        try:
            other.observe(larger)
        except ConversionError:
            break
        sizes = [other.shapes[node][2:] for node in maps if min(other.shapes[node][2:]) >= _GOOD_MAP]
        if sizes:
            px = "x".join(map(str, larger.shape[2:]))
            return f"{text} Give a larger input_size: {px} gives {sizes[-1][0]} x {sizes[-1][1]}."
    return f"{text} Give a larger input_size, or a CNN whose map is larger than 1 x 1."


def _only_pools(network: fx.GraphModule, observer: Observer, node: fx.Node) -> bool:
    """Whether a step has no parameters and leaves its input unchanged or only resamples it.

    An adaptive pool to a fixed size enlarges the map of a small image (VGG's to 7 x 7), and adds nothing.
    """
    if not parameter_free(network, node):
        return False
    if node in observer.unchanged:
        return True
    now, before = observer.shapes[node], observer.shapes[node.all_input_nodes[0]]
    return len(now) == len(before) == 4 and now[1] == before[1] and now[2:] != before[2:]


def _before_conv_head(network: fx.GraphModule, last: fx.Node, observer: Observer, logits: Tensor) -> fx.Node | None:
    """The map in front of a 1x1 convolution to the classes, where that is the head (SqueezeNet, NIN)."""
    if not all(parameter_free(network, node) for node in between(network.graph, last)):
        return None
    conv = last
    while len(conv.all_input_nodes) == 1 and parameter_free(network, conv):
        conv = conv.all_input_nodes[0]
    layer = network.get_submodule(str(conv.target)) if conv.op == "call_module" else None
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1):
        return None
    if layer.out_channels != logits.shape[1]:
        return None
    source = conv.all_input_nodes[0]
    while source in observer.unchanged and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    return source


def _before_pools(network: fx.GraphModule, observer: Observer, feature: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The map without the pools that stand between its last weighted layer and it.

    A pool at the end is dropped by cutting before it; one before the last activation (conv -> pool -> ReLU)
    is left out.
    """
    tail, node = [], feature
    while len(node.all_input_nodes) == 1 and parameter_free(network, node) and node.op != "placeholder":
        tail.append(node)
        node = node.all_input_nodes[0]
    while tail and _only_pools(network, observer, tail[0]):
        feature = tail.pop(0).all_input_nodes[0]
    pools = [n for n in tail if n not in observer.unchanged and _only_pools(network, observer, n)]
    return feature, tuple(reversed(pools))


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
    read = as_module(network, extract(network.graph, feature, vector, constants=observer.constants))(value)
    return read.shape != mean.shape or not torch.allclose(read, mean, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- training mode


def _match_training_mode(model: nn.Module, anatomy: TracedAnatomy, whole: bool) -> None:
    """Make functional dropout in the features a layer, so that one graph is right in both modes.

    Raises:
        TracingError: the features take other steps in training, which one graph cannot hold.
    """
    network = trace(model, training=True, whole=whole).network
    twin = next((n for n in network.graph.nodes if n.name == anatomy.feature.name), None)
    ours = ancestors(anatomy.network.graph, anatomy.feature)
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
        anatomy.network.add_submodule(name, dropout(_argument(node, 1, "p", 0.5)))
        node.args, node.kwargs = (_argument(node, 0, "input", None),), {}
        node.op, node.target = "call_module", name
    if not same:
        raise TracingError(
            f"Up to {anatomy.feature_layer} the network takes other steps in training than in evaluation,"
            " which cannot be kept in one network. Use layers (nn.Dropout) instead of `if self.training`."
        )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
