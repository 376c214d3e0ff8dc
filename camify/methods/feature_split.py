"""A network in use, cut at a layer: image -> map, map -> logits, over its own layers and weights."""

from __future__ import annotations

import copy
import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, fx, nn

from ..console import warn
from ..errors import ConfigError, ConversionError
from ..eval_mode import eval_mode, full_precision, without_hooks
from ..graphs.analysis import NetworkAnalysis
from ..graphs.analyze import analyze, checked_parameter
from ..graphs.final_activation import ACTIVATION_MODULES, activation_name
from ..graphs.fx_modules import as_module
from ..graphs.layouts import Layout, guess_layouts
from ..graphs.place import not_placed, placed_layout
from ..graphs.traced import TracedAnalysis, only_layer
from ..graphs.tracer import Observer, Trace, TracingError, between, extract, trace
from ..graphs.untraceable import Record, UntracedAnalysis, bypassed, last_activation, replayed, value_of
from ..logits import BATCH_NOTE, Spread, chance_note, logits_of, require_logits, spread
from ..model import CAMNet

__all__ = ["LogitsOf", "Rest", "Split", "TracedSplit", "part_of_graph", "split"]

Rest = tuple[Any, ...]
"""What flows past the map: shortcuts, class tokens, sizes."""


class Split(ABC):
    """A network as two functions, to be called in eval mode: training the network changes them too.

    Attributes:
        layer: name of the layer that gives the map.
        classifier: the linear layer or 1x1 convolution that alone follows global average pooling; None where the
            head is something else.
        activation: what the network has behind its logits, ``"softmax"`` for instance; the head ends before it.
    """

    def __init__(
        self, layer: str, classifier: nn.Linear | nn.Conv2d | None = None, activation: str | None = None
    ) -> None:
        self.layer, self.classifier, self.activation = layer, classifier, activation

    @abstractmethod
    def features(self, images: Tensor) -> tuple[Tensor, Rest]:
        """The map (N, C, h, w) of images (N, 3, H, W), and what flows past it."""

    @abstractmethod
    def head(self, maps_NCHW: Tensor, rest: Rest) -> Tensor:
        """The logits (N, K) that follow from a map in the layer's place."""

    def logits(self, images: Tensor) -> Tensor:
        """The logits (N, K) of images (N, 3, H, W)."""
        return self.head(*self.features(images))


class _CAMNetSplit(Split):
    def __init__(self, net: CAMNet) -> None:
        super().__init__("features", net.classifier if net.pool_name == "gap" else None)
        self._net = net

    def features(self, images: Tensor) -> tuple[Tensor, Rest]:
        return self._net.forward_features(images), ()

    def head(self, maps_NCHW: Tensor, rest: Rest) -> Tensor:  # noqa: ARG002 - nothing flows past it
        return self._net.forward_head(maps_NCHW)


class TracedSplit(Split):
    """A traced network as two graphs; the second reads the map and what flows past it.

    Attributes:
        features_module: the first graph: image -> the layer's output, and what flows past it.
    """

    def __init__(
        self,
        root: nn.Module | dict[str, Any],
        graph: fx.Graph,
        node: fx.Node,
        layout: Layout,
        layer: str,
        classifier: nn.Linear | nn.Conv2d | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__(layer, classifier, activation)
        self.root, self.graph, self.node, self.layout, self.passing = root, graph, node, layout, _passing(graph, node)
        self.features_module = as_module(root, part_of_graph(graph, [], [node, *self.passing])).eval()
        self._run_features: Callable[[Tensor], Sequence[Any]] = self.features_module
        self._head = as_module(
            root, part_of_graph(graph, [node, *self.passing], graph.output_node().all_input_nodes)
        ).eval()

    def features(self, images: Tensor) -> tuple[Tensor, Rest]:
        """The map (N, C, h, w) of images (N, 3, H, W), and what flows past it."""
        value, *passing = self._run_features(images)
        return self.layout.to_map(value), (*([value] if self.layout.prefix or self.layout.suffix else []), *passing)

    def with_features(self, run: Callable[[Tensor], Sequence[Any]]) -> TracedSplit:
        """The same with ``run`` in the place of ``features_module``, whose outputs it gives."""
        parts = copy.copy(self)
        parts._run_features = run
        return parts

    @cached_property
    def first_linear(self) -> tuple[nn.Module, nn.Linear, nn.Module] | None:
        """The head as steps without weights -> a linear layer -> the rest, where it begins so (VGG, AlexNet)."""
        behind = between(self.graph, self.node)
        linear = next((n for n in behind if not self._parameter_free(n)), None)
        layer = linear and linear.op == "call_module" and _attribute(self.root, str(linear.target))
        if linear is None or not isinstance(layer, nn.Linear) or self.passing or self.layout.axes != "NCHW":
            return None
        after = {linear, *between(self.graph, linear)}
        ends = self.graph.output_node().all_input_nodes
        past = [n for n in after - {linear} for s in n.all_input_nodes if s not in after and s.op != "get_attr"]
        if past or not set(ends) <= after:
            return None
        before = as_module(self.root, part_of_graph(self.graph, [self.node], linear.all_input_nodes))
        return before.eval(), layer, as_module(self.root, part_of_graph(self.graph, [linear], ends)).eval()

    def _parameter_free(self, node: fx.Node) -> bool:
        layer = _attribute(self.root, str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Module):
            return next(layer.parameters(), None) is None
        return all(source.op != "get_attr" for source in node.all_input_nodes)

    def inputs(self, maps_NCHW: Tensor, rest: Rest) -> list[Any]:
        """What the steps behind the layer read: a map in its place, and what flows past it.

        A step may work in place: what is given stays as it is.
        """
        like, passing = (rest[0], rest[1:]) if self.layout.prefix or self.layout.suffix else (None, rest)
        value = self.layout.from_map(maps_NCHW, like)
        return [item.clone() if isinstance(item, Tensor) else item for item in (value, *passing)]

    def head(self, maps_NCHW: Tensor, rest: Rest) -> Tensor:
        """The logits (N, K) that follow from a map in the layer's place."""
        return require_logits(self._head(*self.inputs(maps_NCHW, rest))[0], len(maps_NCHW), finite=False)


class _HookedSplit(Split):
    """A network that cannot be traced: its own code runs, and its modules before the map give what they gave before."""

    def __init__(self, model: nn.Module, layer: str, layout: Layout, last: str | None) -> None:
        super().__init__(layer, activation=None if last is None else activation_name(model.get_submodule(last)))
        self._model, self._layout, self._last = ref(model), layout, last

    @property
    def _network(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise ConversionError("The network was deleted.")
        return model

    def features(self, images: Tensor) -> tuple[Tensor, Rest]:
        record = Record()
        record.watch(self._network, images)
        value = record.ended[self.layer]
        return self._layout.to_map(value), (images, record, value)

    def head(self, maps_NCHW: Tensor, rest: Rest) -> Tensor:
        images, record, before = rest
        map_value = self._layout.from_map(maps_NCHW, before)
        with bypassed(self._network, self._last), replayed(self._network, record, self.layer, map_value):
            return require_logits(self._network(images.clone()), len(maps_NCHW), finite=False)

    def logits(self, images: Tensor) -> Tensor:
        """The logits (N, K) of images (N, 3, H, W): the network runs once."""
        with bypassed(self._network, self._last):
            return require_logits(self._network(images.clone()), len(images), finite=False)


class LogitsOf(nn.Module):
    """A network as a module that returns logits (N, K), without the activation that it may end in.

    Its layers and weights are the network's own, which is run in eval mode. Where the network ends in logits it runs
    just as it is.

    Args:
        network: any network that classifies images.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    @classmethod
    def of(cls, network: nn.Module) -> nn.Module:
        """The network itself where it cannot end in an activation: made of torch's and torchvision's layers only."""
        return cls(network) if not isinstance(network, CAMNet) and _may_end_in_activation(network) else network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        parts = split(self._network, images)
        if parts.activation is None:
            return logits_of(self._network, images, finite=False)
        return parts.logits(images)


def _may_end_in_activation(network: nn.Module) -> bool:
    """Whether an activation layer, or code that is not torch's or torchvision's, could stand behind the logits."""
    packages = ("torch.nn", "torchvision.models")
    return any(
        type(layer) in ACTIVATION_MODULES or not type(layer).__module__.startswith(packages)
        for layer in network.modules()
    )


def _passing(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """The steps before a node whose results are read behind it as well."""
    behind = {*between(graph, node)}
    read = [s for n in graph.nodes if n in behind or n.op == "output" for s in n.all_input_nodes]
    return [n for n in dict.fromkeys(read) if n not in behind and n is not node and n.op != "get_attr"]


def part_of_graph(graph: fx.Graph, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> fx.Graph:
    """The steps from ``starts`` (none: the image) to ``ends``, which come out as a tuple."""
    needed, pending = {*starts}, [end for end in ends if end not in starts]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    part = fx.Graph()
    copies = {start: part.placeholder(f"given_{index}") for index, start in enumerate(starts)}
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[end] for end in ends))
    return part


# ---------------------------------------------------------------- where to cut

_KNOWN: WeakKeyDictionary[nn.Module, tuple[list[int], dict[Any, Split]]] = WeakKeyDictionary()
_TOLD: WeakSet[nn.Module] = WeakSet()
"""Networks of which it was said that chance takes part in them."""


def split(model: nn.Module, images: Tensor, layer: str | None = None, *, by_name: bool = False) -> Split:
    """A network in eval mode, cut at a layer, or at its last spatial map (None), which is found by running it.

    What was found is remembered as long as the network lives and keeps its modules.

    Args:
        model: in eval mode.
        images: (N, 3, H, W); the first two are used.
        layer: exact name of a module.
        by_name: a CAMNet's last map, where ``layer`` names it, is found among the steps too, as other layers are.

    Raises:
        ConfigError: no module has that name, or it gives no map.
        ConversionError: the network cannot be run, or has no map.
    """
    if isinstance(model, CAMNet) and (layer is None or (layer == "features" and not by_name)):
        return _CAMNetSplit(model)
    modules = [id(module) for module in model.modules()]
    if model not in _KNOWN or _KNOWN[model][0] != modules:
        _KNOWN[model] = (modules, {})
    splits = _KNOWN[model][1]
    key = (layer, *images.shape[1:], next((p.dtype for p in model.parameters()), None))
    if key not in splits:
        checked_parameter(model)
        with torch.no_grad(), without_hooks(model):
            pair = _pair(images)
            if layer is None:
                splits[key], differing = _at_last_map(model, pair)
            else:
                differing = spread(model, pair)
                splits[key] = _at_layer(model, pair, layer)
        if differing != Spread() and model not in _TOLD:
            _TOLD.add(model)
            chance = f"{chance_note(differing.chance)} Its maps change from call to call."
            warn(chance if differing.chance else BATCH_NOTE, stacklevel=5)
    return splits[key]


def _pair(images: Tensor) -> Tensor:
    """Two images to look at the network with; noise where they are not finite, which is said of the forward."""
    if not bool(images[:2].isfinite().all()):
        noise = torch.randn(2, *images.shape[1:], generator=torch.Generator().manual_seed(0))
        return noise.to(images)
    return images[:2] if len(images) > 1 else torch.cat([images, images.flip(-1)])


def _at_last_map(model: nn.Module, images: Tensor) -> tuple[Split, Spread]:
    """The network cut at its last spatial map, and whether it gives the same each time."""
    analysis = analyze(model, (images.shape[-2], images.shape[-1]), images)
    return _cut(model, analysis, images), analysis.spread


def _cut(model: nn.Module, analysis: NetworkAnalysis, images: Tensor) -> Split:
    if isinstance(analysis, UntracedAnalysis):
        parts = _HookedSplit(model, analysis.feature_layer, analysis.layout, analysis.last)
        return (
            parts if not analysis.layout.prefix or _is_read(parts, images) else _read_earlier(model, analysis, images)
        )
    if not isinstance(analysis, TracedAnalysis):
        raise TypeError(f"analysis of an unknown kind: {type(analysis).__name__}")
    root = _live(model, analysis)
    graph, name, layout = analysis.network.graph, analysis.feature_layer, analysis.layout
    if not analysis.reads_token:
        classifier = _live_classifier(model, analysis)
        return TracedSplit(root, graph, analysis.feature, layout, name, classifier, analysis.activation)
    for node, origin in reversed(list(analysis.origins.items())):  # the last whose patches the class token still reads
        node_name = name if node is analysis.feature else node.name
        traced = TracedSplit(root, graph, node, origin.layouts[0], node_name, activation=analysis.activation)
        if _is_read(traced, images[:1]) and (origin.followed or node is analysis.feature or _is_placed(traced, images)):
            return traced
    raise ConversionError("The head reads no patch of any map. Give layer.")


def _is_placed(parts: Split, images: Tensor) -> bool:
    """Whether the cells of the map follow the image."""

    def maps_of(images: Tensor) -> Tensor:
        return parts.features(images)[0]

    maps = maps_of(images)
    layout = Layout("NCHW", (maps.shape[2], maps.shape[3]))
    return placed_layout(maps_of, images, maps, [layout], followed=False)[0] is not None


@torch.no_grad()
@full_precision()
def _read_earlier(model: nn.Module, analysis: UntracedAnalysis, images: Tensor) -> Split:
    """The last module before the last map through whose map everything flows, and whose patches the head still reads.

    A class token gathers what it reads of the patches before the last map.
    """
    record, image, grid = Record(), (images.shape[-2], images.shape[-1]), analysis.layout.grid
    with bypassed(model, analysis.last):
        logits = require_logits(record.watch(model, images), images)
    names = list(record.ended)
    for name in reversed(names[: names.index(analysis.feature_layer)]):
        value = record.ended[name]
        guesses = guess_layouts(value.shape, image, [grid]) if isinstance(value, Tensor) else []
        layouts = [layout for layout in guesses if layout.grid == grid]
        if not layouts or record.calls[name] != 1:
            continue
        parts = _HookedSplit(model, name, layouts[0], analysis.last)
        swapped = parts.head(layouts[0].to_map(value).flip(0), (images, record, value.flip(0)))
        near = torch.allclose(
            swapped, logits.flip(0), rtol=1e-3, atol=1e-3 * float((logits - logits.flip(0)).abs().max())
        )
        if near and _is_read(parts, images) and _is_placed(parts, images):
            return parts
    raise ConversionError("The head reads no patch of any map. Give layer.")


def _is_read(parts: Split, images: Tensor) -> bool:
    """Whether the logits depend on the map."""
    with torch.no_grad():
        maps, rest = parts.features(images)
        return not torch.equal(parts.head(maps, rest), parts.head(maps * 0.5, rest))


def _live(model: nn.Module, analysis: TracedAnalysis) -> nn.Module | dict[str, Any]:
    """The layers for an analysis's graph: the network's own, where the analysis is of its float32 copy."""
    if analysis.model is model:
        return analysis.network
    targets = [str(n.target) for n in analysis.network.graph.nodes if n.op in ("call_module", "get_attr")]
    return {name: _attribute(model, name, _attribute(analysis.network, name)) for name in targets}


def _attribute(root: Any, path: str, default: Any = None) -> Any:
    if isinstance(root, dict):
        return root.get(path, default)
    for name in path.split("."):
        if not hasattr(root, name):
            return default
        root = getattr(root, name)
    return root


def _live_classifier(model: nn.Module, analysis: TracedAnalysis) -> nn.Linear | nn.Conv2d | None:
    """The network's own layer that alone follows global average pooling."""
    name = only_layer(analysis.network, analysis.feature)
    layer = None if name is None else model.get_submodule(name)
    if analysis.kept_linear is None or not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    kept_weight, weight = analysis.kept_linear.weight, layer.weight.flatten(1)
    same = weight.shape == kept_weight.shape and torch.allclose(
        weight.to(kept_weight), kept_weight, rtol=1e-3, atol=1e-5
    )
    return layer if same else None


def _at_layer(model: nn.Module, images: Tensor, layer: str) -> Split:
    names = [name for name, _ in model.named_modules()]
    if layer not in names or not layer:
        close = difflib.get_close_matches(layer, names, n=3, cutoff=0.4)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(f"layer={layer!r}: the network has no such module.{hint}")
    try:
        traced: Trace | None = trace(model, training=False)
    except TracingError:
        traced = None
    node = traced.ends.get(layer) if traced is not None else None
    if traced is None or node is None:
        return _watched(model, images, layer)
    try:
        layout = _followed_layout(traced.network, node, images, layer)
    except ConfigError as error:
        if traced.calls[layer] > 1:
            raise ConfigError(f"{error} It runs {traced.calls[layer]} times; this is its last run.") from error
        raise
    if traced.calls[layer] > 1:
        warn(f"layer={layer!r}: runs {traced.calls[layer]} times; the map is that of its last run.", stacklevel=6)
    return TracedSplit(traced.network, traced.network.graph, node, layout, layer, activation=traced.activation)


def _followed_layout(network: fx.GraphModule, node: fx.Node, images: Tensor, layer: str) -> Layout:
    """The layout of a step's map, whose place is shown."""
    part = as_module(network, extract(network.graph, None, node))
    observer = Observer(part)
    value = observer.observe(images)
    (step,) = part.graph.output_node().all_input_nodes
    origin = observer.origins.of.get(step) if observer.origins is not None else None
    layouts = () if origin is None else origin.layouts
    return _layout_of(value, part, images, layer, layouts, followed=origin is not None and origin.followed)


def _watched(model: nn.Module, images: Tensor, layer: str) -> Split:
    record = Record()
    with eval_mode(model):
        output = record.watch(model, images)
    logits = require_logits(output, images)
    if record.calls.get(layer) != 1:
        raise ConfigError(
            f"layer={layer!r}: runs {record.calls.get(layer, 0)} times, and torch.fx cannot trace the network to tell"
            " them apart. Give a layer that runs once."
        )
    value = record.ended[layer]
    layouts = guess_layouts(value.shape, (images.shape[-2], images.shape[-1])) if isinstance(value, Tensor) else []
    layout = _layout_of(value, partial(value_of, model, layer), images, layer, layouts, followed=False)
    return _HookedSplit(model, layer, layout, last_activation(model, record, logits))


def _layout_of(
    value: Any, run: Callable[[Tensor], Tensor], images: Tensor, layer: str, layouts: Sequence[Layout], *,
    followed: bool,
) -> Layout:  # fmt: skip
    layouts = [layout for layout in layouts if math.prod(layout.grid) > 1]
    if not layouts:
        kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"layer={layer!r}: gives {kind}, no map (N, C, h, w) larger than 1 x 1. Give an earlier layer."
        )
    layout, figure = placed_layout(run, images, value, layouts, followed=followed)
    if layout is None:
        raise ConfigError(f"layer={layer!r}: {not_placed(value.shape, figure)} Give an earlier layer.")
    return layout
