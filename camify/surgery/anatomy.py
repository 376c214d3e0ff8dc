"""The anatomy of a classifier, found by running it: its last spatial map and the head behind it."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..architecture import LayerTracer, parameter_free
from ..errors import ConversionError
from .linearity import fold_linear_head

__all__ = ["Anatomy", "dissect", "probe_images", "refuse_wrapped"]

_FUNCTIONAL_DROPOUT = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}
_KEPT_VALUES = 16


@dataclass
class Anatomy:
    """A traced classifier, cut at its last spatial map.

    ``network`` runs over the user's own layers (nothing is copied) and, like ``head``, only while the model is
    in eval mode.
    """

    network: fx.GraphModule
    images: Tensor
    logits: Tensor
    feature: fx.Node
    feature_layer: str
    features_NCHW: Tensor
    left_out: tuple[fx.Node, ...]
    head_nodes: tuple[fx.Node, ...]
    head: Callable[[Tensor], Tensor]
    linear: nn.Linear | None = None
    """The head as one linear layer after global average pooling, where it is one."""
    single_layer: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the last spatial map, with the left-out pools left out."""
        channels, height, width = self.features_NCHW.shape[1:]
        return channels, height, width

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers behind the last spatial map, in the order in which they run."""
        nodes = [*self.left_out, *self.head_nodes]
        return [str(node.target) for node in nodes if node.op == "call_module"]

    def features_graph(self) -> fx.Graph:
        """The graph from the image to the last spatial map."""
        return _extract(self.network.graph, None, self.feature, skip=self.left_out)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse networks inside a wrapper, and say how to unwrap them."""
    kind = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or "FullyShardedDataParallel" in kind:
        raise ConversionError(f"The network is wrapped in {kind}. Pass `model.module`.")
    if hasattr(model, "_orig_mod"):
        raise ConversionError("The network went through torch.compile. Pass `model._orig_mod`; compile the result.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("The network is a ScriptModule, which has no layers to convert. Pass the nn.Module.")


def probe_images(model: nn.Module, input_size: int | tuple[int, int], example: Tensor | None) -> Tensor:
    """Two images to run the network with: the example's first, or noise of the network's channel count."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ConversionError("The network has no parameters; there is nothing to convert.")
    if example is not None:
        if example.dim() != 4 or not example.is_floating_point():
            raise ConversionError(f"example: expected float images (N, C, H, W), got {tuple(example.shape)}.")
        images = example[:2] if len(example) > 1 else torch.cat([example, example.flip(-1)])
        return images.to(parameter)
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise ConversionError(f"input_size={input_size}: must be positive.")
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    noise = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter)


@torch.no_grad()
def dissect(model: nn.Module, images: Tensor) -> Anatomy:
    """Find the last spatial map of a network in eval mode, and what its head does with it.

    The last spatial map is the last tensor (N, C, h, w) with h * w > 1 through which everything flows, taken
    before pools that only shrink it - unless the head is linear after those pools.

    Raises:
        ConversionError: the network cannot be traced or run, or has no such map; says where and why.
    """
    network, outermost = _trace(model, training=False)
    observer = _Observer(network)
    try:
        output = observer.run(images)
    except Exception as error:
        size = "x".join(map(str, images.shape[2:]))
        raise ConversionError(
            f"The network cannot run on input {tuple(images.shape)}: {error}. Give input_size (now {size}) or example."
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConversionError(f"The network returns {shape}; expected one tensor of logits (N, classes).")
    candidates = _candidates(network, observer, output)
    _refuse_attention(network, candidates[-1])
    head_of = {node: _head(network, node, observer) for node in candidates}
    feature, linear = candidates[-1], None
    for node in candidates:  # the largest map first
        linear = fold_linear_head(head_of[node], observer.values[node])
        if linear is not None:
            feature = node
            break
    left_out: tuple[fx.Node, ...] = ()
    if linear is None:
        feature, left_out = _before_pools(network, observer, candidates[0])
    head = _head(network, feature, observer)
    graph = _extract(network.graph, None, feature, skip=left_out)
    values = observer.values.get(feature)
    if left_out or values is None:
        values = fx.GraphModule(network, graph)(images)
    head_nodes = _between(network.graph, feature)
    weighted = [n for n in head_nodes if n.op == "call_module" and not parameter_free(network, n)]
    anatomy = Anatomy(
        network=network,
        images=images,
        logits=output,
        feature=feature,
        feature_layer=_layer_name(network.graph, feature, outermost),
        features_NCHW=values,
        left_out=left_out,
        head_nodes=head_nodes,
        head=head,
        linear=linear,
        single_layer=len(weighted) == 1 and all(parameter_free(network, n) for n in head_nodes if n not in weighted),
    )
    _match_training_mode(model, anatomy)
    return anatomy


# ---------------------------------------------------------------- tracing and running


def _trace(model: nn.Module, *, training: bool) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    modes = [(module, module.training) for module in model.modules()]
    tracer = LayerTracer()
    model.train(training)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise ConversionError(
            f"The network's forward cannot be traced by torch.fx ({type(error).__name__}: {error})."
            " Control flow that depends on tensor values is the usual cause; move it out of forward."
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    _use_results_of_in_place_steps(graph)
    return fx.GraphModule(model, graph), tracer.outermost


def _use_results_of_in_place_steps(graph: fx.Graph) -> None:
    """Let later steps read the result of an in-place step where they read its (overwritten) input."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _in_place(graph, node):
            continue
        source = node.all_input_nodes[0]
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)


def _in_place(graph: fx.Graph, node: fx.Node) -> bool:
    if not node.all_input_nodes:
        return False
    if node.op == "call_module" and graph.owning_module is not None:
        return bool(getattr(graph.owning_module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        inplace = node.kwargs.get("inplace", False) or node.target in (operator.iadd, operator.imul, operator.isub)
        return bool(inplace) or (name.endswith("_") and not name.startswith("_"))
    return False


class _Observer(fx.Interpreter):
    """Runs a graph once and remembers shapes, which steps change nothing, and the last spatial values."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.unchanged: set[fx.Node] = set()
        self.tensors: set[fx.Node] = set()
        self.values: dict[fx.Node, Tensor] = {}
        self._recent: deque[fx.Node] = deque()

    def run_node(self, n: fx.Node) -> Any:
        source = self.env.get(n.all_input_nodes[0]) if n.all_input_nodes else None
        before = source.clone() if isinstance(source, Tensor) and source.dim() == 4 else source
        result = super().run_node(n)
        if not isinstance(result, Tensor):
            is_tensors = isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result)
            if is_tensors:
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


# ---------------------------------------------------------------- the cut


def _flow(network: fx.GraphModule, observer: _Observer) -> list[fx.Node]:
    """Tensor steps on a way from the image to the output, in order."""
    forward: set[fx.Node] = set()
    for node in network.graph.nodes:
        if node.op == "placeholder" or (node in observer.tensors and any(i in forward for i in node.all_input_nodes)):
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


def _candidates(network: fx.GraphModule, observer: _Observer, logits: Tensor) -> list[fx.Node]:
    """The last spatial map and, before it, those that differ from it by pools and idle steps; largest first."""
    cuts = _cuts(_flow(network, observer))
    maps: list[fx.Node] = []
    for node in cuts:
        if node in observer.values and observer.shapes[node][2:].numel() > 1:
            maps.append(node)
        elif node in observer.values and maps:
            break  # pooled to 1 x 1: what is 4-D after this is no map (channels-last layers of ConvNeXt)
    if not maps:
        last = [tuple(shape) for shape in observer.shapes.values() if len(shape) == 4][-1:]
        raise ConversionError(
            f"No spatial map was found: the last 4-D tensor has shape {last[0] if last else None}. A CNN whose map"
            " is larger than 1 x 1 is needed; if this is one, give a larger input_size."
        )
    before_conv = _before_conv_head(network, maps[-1], observer, logits)
    if before_conv in cuts and before_conv in observer.values:
        return [before_conv]
    candidates = [maps[-1]]
    for before in reversed(maps[:-1]):
        node = candidates[0]
        if node.all_input_nodes != [before] or not _only_pools(network, observer, node):
            break
        candidates.insert(0, before)
    return candidates


def _refuse_attention(network: fx.GraphModule, feature: fx.Node) -> None:
    for node in _between(network.graph, feature):
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.MultiheadAttention):
            raise ConversionError(
                f"Behind the last spatial map ({feature.name}) stands attention ({node.target}): in a transformer the"
                " map is in its tokens, which this version does not convert. Use a CNN."
            )


def _only_pools(network: fx.GraphModule, observer: _Observer, node: fx.Node) -> bool:
    """Whether a step has no parameters and leaves its input unchanged or only shrinks it."""
    if not parameter_free(network, node):
        return False
    if node in observer.unchanged:
        return True
    now, before = observer.shapes[node], observer.shapes[node.all_input_nodes[0]]
    return now[1] == before[1] and now[2] * now[3] < before[2] * before[3]


def _before_conv_head(network: fx.GraphModule, last: fx.Node, observer: _Observer, logits: Tensor) -> fx.Node | None:
    """The map in front of a 1x1 convolution to the classes, where that is the head (SqueezeNet, NIN)."""
    if not all(parameter_free(network, node) for node in _between(network.graph, last)):
        return None
    conv = last
    while len(conv.all_input_nodes) == 1 and parameter_free(network, conv):
        conv = conv.all_input_nodes[0]
    layer = network.get_submodule(str(conv.target)) if conv.op == "call_module" else None
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.out_channels != logits.shape[1]:
        return None
    source = conv.all_input_nodes[0]
    while source in observer.unchanged and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    return source


def _before_pools(
    network: fx.GraphModule, observer: _Observer, feature: fx.Node
) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The map without the pools that stand between its last weighted layer and it.

    A pool at the end is dropped by cutting before it; one before the last activation (conv -> pool -> ReLU) is
    left out.
    """
    tail, node = [], feature
    while len(node.all_input_nodes) == 1 and parameter_free(network, node) and node.op != "placeholder":
        tail.append(node)
        node = node.all_input_nodes[0]
    while tail and _only_pools(network, observer, tail[0]):
        feature = tail.pop(0).all_input_nodes[0]
    pools = [n for n in tail if n not in observer.unchanged and _only_pools(network, observer, n)]
    return feature, tuple(reversed(pools))


def _between(graph: fx.Graph, start: fx.Node) -> tuple[fx.Node, ...]:
    """The steps that depend on ``start``, in order, without the output."""
    after: dict[fx.Node, None] = {start: None}
    for node in graph.nodes:
        if node.op != "output" and any(source in after for source in node.all_input_nodes):
            after[node] = None
    return tuple(after)[1:]


def _layer_name(graph: fx.Graph, feature: fx.Node, outermost: dict[fx.Node, str]) -> str:
    """Name of the outermost module that ends in ``feature``, or in the last step before it that has one."""
    name = ""
    for node in graph.nodes:
        name = outermost.get(node, name)
        if node is feature:
            break
    return name or feature.name


def _head(network: fx.GraphModule, feature: fx.Node, observer: _Observer) -> Callable[[Tensor], Tensor]:
    (output,) = next(iter(reversed(network.graph.nodes))).args
    if not isinstance(output, fx.Node):
        raise ConversionError("The network returns several outputs; expected one tensor of logits (N, classes).")
    return fx.GraphModule(network, _extract(network.graph, feature, output, constants=observer.constants))


def _extract(
    graph: fx.Graph,
    start: fx.Node | None,
    end: fx.Node,
    *,
    skip: Iterable[fx.Node] = (),
    constants: dict[fx.Node, Any] | None = None,
) -> fx.Graph:
    """Copy the steps from ``start`` (None: the image) to ``end``; sizes read before ``start`` become constants."""
    needed, pending = set(), [end]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend([] if node is start else node.all_input_nodes)
    part = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    inside = start is None
    for node in graph.nodes:
        if node is start:
            copies[node], inside = part.placeholder("features"), True
        elif node not in needed:
            continue
        elif node in skip:
            copies[node] = copies[node.all_input_nodes[0]]
        elif inside or node.op == "get_attr":
            copies[node] = part.node_copy(node, lambda n: copies[n])
        elif constants is not None and node in constants:
            copies[node] = constants[node]
    part.output(copies[end])
    return part


# ---------------------------------------------------------------- training mode


def _match_training_mode(model: nn.Module, anatomy: Anatomy) -> None:
    """Make functional dropout in the features a layer, so that one graph is right in both modes.

    Raises:
        ConversionError: the features take other steps in training, which one graph cannot hold.
    """
    network, _ = _trace(model, training=True)
    twin = next((n for n in network.graph.nodes if n.name == anatomy.feature.name), None)
    ours = _ancestors(anatomy.network.graph, anatomy.feature)
    theirs = _ancestors(network.graph, twin) if twin is not None else []
    same = len(ours) == len(theirs)
    for node, step, other in zip(ours, _steps(ours), _steps(theirs), strict=True) if same else ():
        if step == other:
            continue
        dropout = _FUNCTIONAL_DROPOUT.get(node.target) if node.op == "call_function" else None  # type: ignore[arg-type]
        if dropout is None:
            same = False
            break
        probability = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        name = f"{node.name}_layer"
        anatomy.network.add_submodule(name, dropout(probability).train(model.training))
        node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1] or (node.kwargs["input"],), {}
    if not same:
        raise ConversionError(
            f"Up to {anatomy.feature_layer} the network takes other steps in training than in evaluation, which"
            " cannot be kept in one network. Use layers (nn.Dropout) instead of `if self.training`."
        )


def _steps(nodes: Sequence[fx.Node]) -> list[tuple[Any, ...]]:
    """What each step does, its inputs given by position, so that two traces can be compared."""
    position = {node: f"%{index}" for index, node in enumerate(nodes)}
    return [
        (n.op, n.target if n.op != "placeholder" else "", fx.map_arg((n.args, n.kwargs), position.__getitem__))
        for n in nodes
    ]


def _ancestors(graph: fx.Graph, end: fx.Node) -> list[fx.Node]:
    needed, pending = set(), [end]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]
