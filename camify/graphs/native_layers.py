"""Layers of other libraries as the layers of torch that they are, so that they can be stored without code."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, fx, nn

from ..eval_mode import eval_mode
from .allowed_layers import LAYERS

__all__ = ["in_torch_layers"]


@torch.no_grad()
def in_torch_layers(network: fx.GraphModule, modes: dict[nn.Module, bool]) -> None:
    """Replace layers of other libraries by equal layers of torch, in place; others stay.

    Known by what they do: a batch norm with activation behind it (timm's ``BatchNormAct2d``) and stochastic depth
    (``DropPath``; Huang et al. 2016). Each replacement is compared with the layer on noise, and made only where equal.
    Tensors are shared, names stay, and an activation gets the name of its norm with ``_act`` behind it.

    Args:
        network: over copies of the layers.
        modes: training mode of each layer; those of new layers are added.
    """
    targets = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    with eval_mode(network):  # a norm in training would learn from the noise
        for name in dict.fromkeys(targets):
            layer = network.get_submodule(name)
            if type(layer) in LAYERS.values():
                continue
            if isinstance(layer, nn.BatchNorm2d):
                _split_norm(network, name, layer, modes)
            elif type(layer).__name__ == "DropPath" and not list(layer.parameters()):
                _put(network, name, _stochastic_depth(layer), modes, layer)


def _split_norm(network: fx.GraphModule, name: str, layer: nn.BatchNorm2d, modes: dict[nn.Module, bool]) -> None:
    norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for key, parameter in layer.named_parameters(recurse=False):
        norm.register_parameter(key, parameter)
    for key, buffer in layer.named_buffers(recurse=False):
        norm.register_buffer(key, buffer)
    norm.eval()
    behind = [getattr(layer, part, None) for part in ("drop", "act")]
    rest = [part for part in behind if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    if any(type(part) not in LAYERS.values() for part in rest) or not _same(layer, nn.Sequential(norm, *rest)):
        return
    _put(network, name, norm, modes, layer)
    for part in reversed(rest):
        _insert_behind(network, name, part)


def _insert_behind(network: fx.GraphModule, name: str, layer: nn.Module) -> None:
    added = f"{name}_act"
    while added in dict(network.named_modules()):
        added += "_"
    network.add_submodule(added, layer)
    for node in list(network.graph.nodes):
        if node.op == "call_module" and node.target == name:
            with network.graph.inserting_after(node):
                step = network.graph.call_module(added, (node,))
            node.replace_all_uses_with(step, delete_user_cb=lambda user, step=step: user is not step)


def _stochastic_depth(layer: nn.Module) -> nn.Module:
    share = getattr(layer, "drop_prob", None) or 0.0
    if not isinstance(share, float) or (share and not getattr(layer, "scale_by_keep", True)):
        return layer
    depth: nn.Module = torchvision.ops.StochasticDepth(share, "row").eval()
    return depth


def _put(network: fx.GraphModule, name: str, layer: nn.Module, modes: dict[nn.Module, bool], old: nn.Module) -> None:
    if old in modes:
        modes[layer] = modes[old]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def _same(layer: nn.BatchNorm2d, other: nn.Module) -> bool:
    """Whether two layers answer alike in evaluation, to noise of their own size."""
    like: Tensor = layer.running_mean if layer.running_mean is not None else next(layer.parameters())
    noise = torch.randn(2, layer.num_features, 3, 3, generator=torch.Generator().manual_seed(0)).to(like)
    return torch.allclose(layer(noise.clone()), other(noise.clone()), rtol=1e-4, atol=1e-5)
