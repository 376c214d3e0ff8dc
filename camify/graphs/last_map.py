"""Where to cut a traced network: the steps through which everything flows, and the last of them that holds a map."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from ..errors import ConversionError
from .fx_modules import parameter_free
from .origins import Origin
from .tracer import Observer, between

__all__ = ["NoMapError", "before_pools", "candidates_of", "map_origins", "no_map"]

_GOOD_MAP = 7
_NAMED = 4  # layers in a message


class NoMapError(ConversionError):
    """No step of a network holds a map through which everything flows."""


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


def map_origins(network: fx.GraphModule, observer: Observer) -> dict[fx.Node, Origin]:
    """The origins of all steps that may hold a map and through which everything flows, in order."""
    if observer.origins is None:
        raise ValueError("the network was observed without origins")
    origins = observer.origins.of
    chosen = {}
    for node in _cuts(_flow(network, observer)):
        layouts = origins[node].layouts if node in origins and node.op != "placeholder" else ()
        if layouts and any(math.prod(layout.grid) > 1 for layout in layouts):
            chosen[node] = origins[node]
    return chosen


def candidates_of(
    network: fx.GraphModule, observer: Observer, origins: Mapping[fx.Node, Origin], logits: Tensor
) -> list[fx.Node]:
    """The last spatial map and those before it that differ by pools and idle steps only, largest first; or none.

    Args:
        network: traced.
        observer: has seen it run.
        origins: of the steps that may hold a map, in order.
        logits: what the network returns.
    """
    maps: list[fx.Node] = []
    for node in _cuts(_flow(network, observer)):
        if node in observer.values and node in origins:
            maps.append(node)
        elif node in observer.values and len(observer.shapes[node]) == 4 and maps and not _holds_cells(node, observer):
            break  # pooled to 1 x 1: what is 4-D after this is no map (channels-last layers of ConvNeXt)
    if not maps:
        return []
    before_conv = _before_conv_head(network, maps[-1], observer, logits)
    if before_conv in origins and before_conv in observer.values:
        return [before_conv]
    candidates = [_before_moves(maps[-1], maps, origins)]
    for before in reversed(maps[: maps.index(candidates[0])]):
        node = candidates[0]
        if node.all_input_nodes != [before] or not _only_pools(network, observer, node):
            break
        candidates.insert(0, before)
    return candidates


def _holds_cells(node: fx.Node, observer: Observer) -> bool:
    """Whether the numbers of a map were followed into a tensor that is none itself, such as tokens of windows."""
    origin = observer.origins.of.get(node) if observer.origins is not None else None
    return origin is not None and origin.cells is not None


def _before_moves(node: fx.Node, maps: Sequence[fx.Node], origins: Mapping[fx.Node, Origin]) -> fx.Node:
    """The map (N, C, h, w) whose numbers a step only moves into another order; where there is none, the step."""
    before = node
    while origins[before].moved and origins[before].layouts[0].axes != "NCHW":
        source = next((source for source in before.all_input_nodes if source in maps), None)
        if source is None:
            return node
        before = source
    return before if origins[before].layouts[0].axes == "NCHW" else node


def no_map(network: fx.GraphModule, observer: Observer, images: Tensor) -> str:
    """Why there is no map, and the input size at which there would be a good one."""
    maps = [node for node in _cuts(_flow(network, observer)) if len(observer.shapes[node]) == 4]
    maps = [node for node in maps if node.op != "placeholder" and observer.shapes[node][2:].numel() == 1]
    if not maps:
        counts = Counter(str(node.target) for node in _branch_ends(network, observer))
        ends = list(counts)
        if ends:
            shown = [name if count == 1 else f"{name} ({count} calls)" for name, count in counts.items()]
            names = ", ".join(shown[:_NAMED]) + f" and {len(ends) - _NAMED} more" * (len(ends) > _NAMED)
            return (
                "No spatial map was found through which everything flows: the network has branches from the image on,"
                f" which pass by the last maps, those of {names}. Convert the network of one branch; methods other than"
                f" CAM explain the whole one at a layer that is named, layer={ends[-1]!r}."
            )
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
            other.observe(larger, origins=False)
        except ConversionError:
            break
        sizes = [other.shapes[node][2:] for node in maps if min(other.shapes[node][2:]) >= _GOOD_MAP]
        if sizes:
            px = "x".join(map(str, larger.shape[2:]))
            return f"{text} Give a larger input_size: {px} gives {sizes[-1][0]} x {sizes[-1][1]}."
    return f"{text} Give a larger input_size, or a CNN whose map is larger than 1 x 1."


def _branch_ends(network: fx.GraphModule, observer: Observer) -> list[fx.Node]:
    """The layers whose maps are the last ones on their way to the output."""
    shapes = {node: observer.shapes.get(node, ()) for node in _flow(network, observer) if node.op == "call_module"}
    maps = {node: None for node, shape in shapes.items() if len(shape) == 4 and math.prod(shape[2:]) > 1}
    return [node for node in maps if maps.keys().isdisjoint(between(network.graph, node))]


def _only_pools(network: fx.GraphModule, observer: Observer, node: fx.Node) -> bool:
    """Whether a step has no parameters and leaves its input unchanged or only resamples it.

    An adaptive pool to a fixed size enlarges the map of a small image (VGG's to 7 x 7), and adds nothing.
    """
    if not parameter_free(network, node):
        return False
    if node in observer.unchanged:
        return True
    origin = observer.origins.of.get(node) if observer.origins is not None else None
    if origin is not None and origin.moved:
        return False
    shape, source_shape = observer.shapes[node], observer.shapes[node.all_input_nodes[0]]
    return len(shape) == len(source_shape) == 4 and shape[1] == source_shape[1] and shape[2:] != source_shape[2:]


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


def before_pools(network: fx.GraphModule, observer: Observer, feature: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
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
