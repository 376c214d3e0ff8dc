"""The features of a network as one of their own: a graph over copies of its layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..eval_mode import without_hooks
from .analysis import FeaturesCopy
from .fx_modules import assemble
from .layouts import Layout
from .native_layers import in_torch_layers
from .tracer import TracingError, steps, trace_up_to

__all__ = ["copy_graph", "features_up_to"]


def copy_graph(model: nn.Module, network: fx.GraphModule, graph: fx.Graph) -> FeaturesCopy:
    """A copy of what a graph over a network's layers runs; hooks and gradients stay behind.

    Args:
        model: has the layers.
        network: they, and what was added to them.
        graph: image -> last spatial map.
    """
    layers = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    copies: dict[int, Any] = {}
    with without_hooks(model):
        features = copy.deepcopy(assemble(network, graph), copies)
    graph.owning_module = None  # what was copied has the caller's own layers, and is not to keep them
    for parameter in features.parameters():
        parameter.grad = None
    modes = {copies[id(layer)]: layer.training for layer in model.modules() if id(layer) in copies}
    if isinstance(features, fx.GraphModule):
        in_torch_layers(features, modes)
        features.recompile()
    return FeaturesCopy(features, modes, list(dict.fromkeys(layers)))


@torch.no_grad()
def features_up_to(
    model: nn.Module, layer: str, layout: Layout, images: Tensor, value: Tensor
) -> tuple[fx.GraphModule, fx.Graph] | None:
    """The network's layers and the steps up to a module's map, whatever comes behind it.

    None where the steps cannot be written down, differ in training, or do not give the map.

    Args:
        model: in eval mode.
        layer: the module that gives the map.
        layout: of the map.
        images: (N, C, H, W).
        value: what the module gives for them.
    """
    try:
        network, other = (trace_up_to(model, layer, training=training) for training in (False, True))
    except TracingError:
        return None
    if steps(list(network.graph.nodes)) != steps(list(other.graph.nodes)):
        return None
    result = network(images)
    atol = 1e-5 * float(value.abs().max())
    if result.shape != value.shape or not torch.allclose(result, value, rtol=1e-4, atol=atol):
        return None
    graph = network.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (layout.append(graph, output.args[0]),)  # type: ignore[arg-type]
    return network, graph
