"""The anatomy of a classifier, found by running it: its last spatial map and the head behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..architecture import as_module, parameter_free
from ..errors import ConversionError
from ..modes import evaluating, without_hooks
from .linearity import fold_linear_head
from .tracing import Observer, ancestors, between, extract, steps, trace

__all__ = ["Anatomy", "examine"]

_FUNCTIONAL_DROPOUT = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}


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
    shapes: Mapping[fx.Node, torch.Size]
    """Of every tensor step, for the two images."""
    unchanged: Set[fx.Node]
    """Steps that leave a map as it is."""
    constants: Mapping[fx.Node, Any]
    """Sizes and other plain values read in the forward."""
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
        return extract(self.network.graph, None, self.feature, skip=self.left_out)


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
    network, outermost = trace(model, training=False)
    observer = Observer(network)
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
        graph = extract(network.graph, None, feature, skip=left_out)
        height, width = as_module(network, graph)(images).shape[2:]
    head_nodes = between(network.graph, feature)
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
        shapes=observer.shapes,
        unchanged=observer.unchanged,
        constants=observer.constants,
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


# ---------------------------------------------------------------- the cut


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


def _candidates(network: fx.GraphModule, observer: Observer, logits: Tensor) -> list[fx.Node]:
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
    for node in between(network.graph, feature):
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.MultiheadAttention):
            raise ConversionError(
                f"Behind the last spatial map ({feature.name}) stands attention ({node.target}): in a"
                " transformer the map is in its tokens, which this version does not convert. Use a CNN."
            )


def _only_pools(network: fx.GraphModule, observer: Observer, node: fx.Node) -> bool:
    """Whether a step has no parameters and leaves its input unchanged or only resamples it.

    An adaptive pool to a fixed size enlarges the map of a small image (VGG's to 7 x 7), and adds nothing.
    """
    if not parameter_free(network, node):
        return False
    if node in observer.unchanged:
        return True
    now, before = observer.shapes[node], observer.shapes[node.all_input_nodes[0]]
    return len(before) == 4 and now[1] == before[1] and now[2:] != before[2:]


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


def _head(network: fx.GraphModule, feature: fx.Node, observer: Observer) -> Callable[[Tensor], Tensor]:
    (output,) = next(iter(reversed(network.graph.nodes))).args
    if not isinstance(output, fx.Node):
        raise ConversionError("The network returns several outputs; expected one tensor of logits (N, classes).")
    return as_module(network, extract(network.graph, feature, output, constants=observer.constants))


# ---------------------------------------------------------------- training mode


def _match_training_mode(model: nn.Module, anatomy: Anatomy) -> None:
    """Make functional dropout in the features a layer, so that one graph is right in both modes.

    Raises:
        ConversionError: the features take other steps in training, which one graph cannot hold.
    """
    network, _ = trace(model, training=True)
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
        raise ConversionError(
            f"Up to {anatomy.feature_layer} the network takes other steps in training than in evaluation,"
            " which cannot be kept in one network. Use layers (nn.Dropout) instead of `if self.training`."
        )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
