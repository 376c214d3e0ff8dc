"""The anatomy of a classifier, found by running it: its last spatial map and the head behind it."""

from __future__ import annotations

import copy
import operator
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..architecture import LayerTracer, as_module, parameter_free
from ..errors import ConversionError
from ..modes import evaluating, without_hooks
from .linearity import fold_linear_head

__all__ = ["Anatomy", "examine"]

_FUNCTIONAL_DROPOUT = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_KEPT_VALUES = 16


@dataclass
class Anatomy:
    """A traced classifier, cut at its last spatial map.

    ``network`` runs over the layers of ``model`` (nothing is copied) and only while it is in eval mode.
    ``model`` is the user's own, or a float32 copy of one in half precision.
    """

    model: nn.Module
    network: fx.GraphModule
    images: Tensor
    logits: Tensor
    feature: fx.Node
    feature_layer: str
    feature_shape: tuple[int, int, int]
    """Channels, height and width of the last spatial map, with the left-out pools left out."""
    left_out: tuple[fx.Node, ...]
    head_nodes: tuple[fx.Node, ...]
    linear: nn.Linear | None = None
    """The head as one linear layer after global average pooling, where it is one."""
    single_layer: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers behind the last spatial map, in the order in which they run."""
        nodes = [*self.left_out, *self.head_nodes]
        return [str(node.target) for node in nodes if node.op == "call_module"]

    def features_graph(self) -> fx.Graph:
        """The graph from the image to the last spatial map."""
        return _extract(self.network.graph, None, self.feature, skip=self.left_out)


def examine(model: nn.Module, input_size: int | tuple[int, int], example: Tensor | None) -> Anatomy:
    """The anatomy of a network, which is left as it was: its modes, its hooks (none runs) and its values.

    Networks in half precision are examined as a float32 copy.

    Raises:
        ConversionError: the network is wrapped, cannot be run, or has no map; says why and what to do.
    """
    _refuse_wrapped(model)
    with without_hooks(model):
        images = _probe_images(model, input_size, example)
        if next(model.parameters()).dtype != images.dtype:
            model = copy.deepcopy(model).to(images.dtype)
        with evaluating(model):
            return _dissect(model, images)


def _refuse_wrapped(model: nn.Module) -> None:
    kind = type(model).__name__
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if parallel or "FullyShardedDataParallel" in kind:
        raise ConversionError(f"The network is wrapped in {kind}. Pass `model.module`.")
    if hasattr(model, "_orig_mod"):
        raise ConversionError("The network went through torch.compile. Pass `model._orig_mod`; compile the result.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("The network is a ScriptModule, which has no layers to convert. Pass the nn.Module.")
    for name, layer in model.named_modules():
        computed = [key for key, value in vars(layer).items() if isinstance(value, Tensor)]
        if computed and type(layer).__module__.startswith("torch.nn"):
            raise ConversionError(
                f"layer {name}: a hook computes its {computed[0]} (weight_norm, spectral_norm or pruning)."
                " Make the result permanent first, with torch.nn.utils.remove_weight_norm,"
                " remove_spectral_norm or prune.remove."
            )


def _probe_images(model: nn.Module, input_size: int | tuple[int, int], example: Tensor | None) -> Tensor:
    """Two images to run the network with: the example's first, or noise of the network's channel count."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ConversionError("The network has no parameters; there is nothing to convert.")
    if any(p.is_meta or isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ConversionError("The network has parameters without values. Load or initialise them first.")
    device, dtype = parameter.device, torch.promote_types(parameter.dtype, torch.float32)
    if example is not None:
        if example.dim() != 4 or not example.is_floating_point():
            raise ConversionError(
                f"example: expected float images (N, C, H, W), got {example.dtype} {tuple(example.shape)}."
            )
        images = example[:2] if len(example) > 1 else torch.cat([example, example.flip(-1)])
        return images.detach().to(device, dtype)
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise ConversionError(f"input_size={input_size}: must be positive.")
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    noise = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(device, dtype)


@torch.no_grad()
def _dissect(model: nn.Module, images: Tensor) -> Anatomy:
    """Find the last spatial map of a network in eval mode, and what its head does with it.

    The last spatial map is the last tensor (N, C, h, w) with h * w > 1 through which everything flows, taken
    before pools that only resample it - unless the head is linear after those pools.

    Raises:
        ConversionError: the network cannot be traced or run, or has no such map; says where and why.
    """
    network, outermost = _trace(model, training=False)
    observer = _Observer(network)
    output = observer.observe(images)
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
    channels, height, width = observer.shapes[feature][1:]
    if left_out:
        graph = _extract(network.graph, None, feature, skip=left_out)
        height, width = as_module(network, graph)(images).shape[2:]
    head_nodes = _between(network.graph, feature)
    weighted = [n for n in head_nodes if not parameter_free(network, n)]
    if len(weighted) == 1 and weighted[0].op == "call_module" and linear is not None:
        linear = _as_it_is(network.get_submodule(str(weighted[0].target)), linear)
    anatomy = Anatomy(
        model=model,
        network=network,
        images=images,
        logits=output,
        feature=feature,
        feature_layer=_layer_name(network.graph, feature, outermost),
        feature_shape=(channels, height, width),
        left_out=left_out,
        head_nodes=head_nodes,
        linear=linear,
        single_layer=len(weighted) == 1,
    )
    _match_training_mode(model, anatomy)
    return anatomy


def _as_it_is(layer: nn.Module, linear: nn.Linear) -> nn.Linear:
    """A copy of the head's own layer where it is the folded one, so that it stays bit for bit."""
    if not isinstance(layer, nn.Linear) or layer.weight.shape != linear.weight.shape:
        return linear
    bias = torch.zeros_like(linear.bias) if layer.bias is None else layer.bias
    same = all(_near(a, b) for a, b in ((layer.weight, linear.weight), (bias, linear.bias)))
    return copy.deepcopy(layer) if same else linear


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * max(a.abs().max(), b.abs().max()))


# ---------------------------------------------------------------- tracing and running


def _trace(model: nn.Module, *, training: bool) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
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


# ---------------------------------------------------------------- the cut


def _flow(network: fx.GraphModule, observer: _Observer) -> list[fx.Node]:
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


def _candidates(network: fx.GraphModule, observer: _Observer, logits: Tensor) -> list[fx.Node]:
    """The last spatial map and those before it that differ by pools and idle steps only; largest first."""
    cuts = _cuts(_flow(network, observer))
    maps: list[fx.Node] = []
    for node in cuts:
        if node in observer.values and observer.shapes[node][2:].numel() > 1:
            maps.append(node)
        elif node in observer.values and maps:
            break  # pooled to 1 x 1: what is 4-D after this is no map (channels-last layers of ConvNeXt)
    if not maps:
        shapes = [tuple(shape) for shape in observer.shapes.values() if len(shape) == 4]
        last = shapes[-1] if shapes else None
        raise ConversionError(
            f"No spatial map was found: the last 4-D tensor has shape {last}. A CNN whose map"
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
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.MultiheadAttention):
            raise ConversionError(
                f"Behind the last spatial map ({feature.name}) stands attention ({node.target}): in a"
                " transformer the map is in its tokens, which this version does not convert. Use a CNN."
            )


def _only_pools(network: fx.GraphModule, observer: _Observer, node: fx.Node) -> bool:
    """Whether a step has no parameters and leaves its input unchanged or only resamples it.

    An adaptive pool to a fixed size enlarges the map of a small image (VGG's to 7 x 7), and adds nothing.
    """
    if not parameter_free(network, node):
        return False
    if node in observer.unchanged:
        return True
    now, before = observer.shapes[node], observer.shapes[node.all_input_nodes[0]]
    return len(before) == 4 and now[1] == before[1] and now[2:] != before[2:]


def _before_conv_head(network: fx.GraphModule, last: fx.Node, observer: _Observer, logits: Tensor) -> fx.Node | None:
    """The map in front of a 1x1 convolution to the classes, where that is the head (SqueezeNet, NIN)."""
    if not all(parameter_free(network, node) for node in _between(network.graph, last)):
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


def _before_pools(
    network: fx.GraphModule, observer: _Observer, feature: fx.Node
) -> tuple[fx.Node, tuple[fx.Node, ...]]:
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
    return as_module(network, _extract(network.graph, feature, output, constants=observer.constants))


def _extract(
    graph: fx.Graph,
    start: fx.Node | None,
    end: fx.Node,
    *,
    skip: Iterable[fx.Node] = (),
    constants: dict[fx.Node, Any] | None = None,
) -> fx.Graph:
    """The steps from ``start`` (None: the image) to ``end``; sizes read off others become constants."""
    needed, pending = set(), [end]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend([] if node is start else node.all_input_nodes)
    part = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node is start:
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
        raise ConversionError(
            f"Up to {anatomy.feature_layer} the network takes other steps in training than in evaluation,"
            " which cannot be kept in one network. Use layers (nn.Dropout) instead of `if self.training`."
        )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _steps(nodes: Sequence[fx.Node]) -> list[tuple[Any, ...]]:
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


def _ancestors(graph: fx.Graph, end: fx.Node) -> list[fx.Node]:
    needed, pending = set(), [end]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]
