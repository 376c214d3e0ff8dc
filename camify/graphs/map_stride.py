"""Finer maps with the same weights: strides become dilations."""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConversionError
from ..eval_mode import full_precision, without_hooks
from .fx_modules import LayerTracer
from .untraceable import UntracedFeatures

__all__ = ["finer_map", "set_map_stride"]

_FINER: WeakKeyDictionary[nn.Module, dict[int, nn.Module]] = WeakKeyDictionary()  # without weights, by stride

_WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@torch.no_grad()
@full_precision()
def set_map_stride(features: nn.Module, stride: int, images: Tensor) -> str:
    """Give the last spatial map a smaller stride, in place; every weight stays. Returns what it costs.

    Strides beyond ``stride`` are dropped and all later windows dilated by as much (Chen et al. 2017, "DeepLab",
    section 3.1; the "a trous" algorithm), so that the new map, subsampled, is the old one. That is checked. Windows
    that see no border add no cells at the edges: 14 x 14 cells of stride 16 become 27 x 27 of stride 8, not 28 x 28.

    New convolutions that a head adds behind the map (``head="gap"``) are not dilated: they have no weights that were
    made for the old distances, and learn at the new ones.

    Args:
        features: the network up to the last spatial map, in eval mode; chain or graph of layers.
        stride: pixels of the image per cell of the map.
        images: (N, C, H, W) to run it with.

    Raises:
        ConversionError: the stride cannot be had, or a step works across the whole map.
    """
    if isinstance(features, UntracedFeatures):
        raise ConversionError("map_stride: torch.fx cannot trace the network, so its strides stay. Leave it None.")
    old, old_cost = _run(features, images)
    graph = features.graph if isinstance(features, fx.GraphModule) else LayerTracer().trace(features)
    strides = _Strides(features, graph)
    strides.run(images)
    current = strides.of_map
    fitting = sorted({1, *(s for s in strides.of.values() if current % s == 0)})
    if stride not in fitting:
        raise ConversionError(f"map_stride={stride}: the map's stride is {current}. Choose one of {fitting}.")
    if stride == current:
        return f"The map's stride is {current} already."
    _dilate(features, graph, strides, stride)
    try:
        new, new_cost = _run(features, images)
    except RuntimeError as error:
        raise ConversionError(
            f"map_stride={stride}: the network does not run with a finer map ({str(error).splitlines()[0]}): it holds"
            " a size or a position embedding of the old one. Give a larger input_size instead."
        ) from error
    factor = current // stride
    part = new[:, :, ::factor, ::factor]
    same = part.shape == old.shape and torch.allclose(part, old, rtol=1e-4, atol=1e-5 * float(old.abs().max()))
    if not same:
        raise ConversionError(
            f"map_stride={stride}: a step of the network (a pool that rounds up, a functional pool) keeps the finer map"
            " from being the old one with cells in between. Give a larger input_size instead."
        )
    size = f"{new.shape[2]} x {new.shape[3]}"
    return (
        f"Stride {current} -> {stride}: map {size}, {new_cost / old_cost:.1f} times the multiplications, same weights."
    )


def finer_map(features: nn.Module, stride: int, images: Tensor) -> Tensor:
    """The last spatial map (N, C, h, w) at a smaller stride; the network stays as it is, and its weights are used.

    The layers of that stride are made once for each network and stride, without weights.

    Args:
        features: the network up to the last spatial map, in eval mode.
        stride: pixels of the image per cell of the map.
        images: (N, C, H, W).

    Raises:
        ConversionError: the stride cannot be had.
    """
    layers = _FINER.setdefault(features, {})
    if stride not in layers:
        with without_hooks(features):
            copied = copy.deepcopy(features).float().eval()
        set_map_stride(copied, stride, images[:1].float())
        layers[stride] = copied.requires_grad_(False).to("meta")
    tensors = dict(features.named_parameters()) | dict(features.named_buffers())
    maps: Tensor = functional_call(layers[stride], tensors, (images,))
    return maps


def _run(features: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    with FlopCounterMode(display=False) as counter:
        maps: Tensor = features(images)
    return maps, counter.get_total_flops()


def _dilate(features: nn.Module, graph: fx.Graph, strides: _Strides, stride: int) -> None:
    """Drop strides once the map's stride is reached, and dilate what follows."""
    dilation: dict[fx.Node, int] = {}
    seen: set[str] = set()
    for node in graph.nodes:
        dilation[node] = max((dilation[source] for source in node.all_input_nodes), default=1)
        layer = features.get_submodule(str(node.target)) if node.op == "call_module" else None
        if dilation[node] > 1 and isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            raise ConversionError(
                f"map_stride={stride}: {node.target} works across positions (squeeze-and-excitation): on a finer map it"
                " gives other values. Give a larger input_size instead."
            )
        if not isinstance(layer, _WINDOWED):
            continue
        if node.target in seen:
            raise ConversionError(f"map_stride: layer {node.target} is used twice; its windows cannot differ.")
        seen.add(str(node.target))
        stride_before = strides.of.get(node.all_input_nodes[0], 1)
        dilation[node] *= _widen(str(node.target), layer, dilation[node], stride_before, stride)


def _widen(name: str, layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, dilation: int, before: int, target: int) -> int:
    """Dilate one layer's windows and drop its stride where it passes the target; returns the stride dropped."""
    step = max(_pair(layer.stride))
    if dilation > 1 and max(_pair(layer.kernel_size)) > 1:
        if isinstance(layer, nn.AvgPool2d):
            raise ConversionError(f"map_stride: {name} is an average pool, which cannot be dilated.")
        if isinstance(layer, nn.MaxPool2d) and max(_pair(layer.padding)) > 0:
            raise ConversionError(f"map_stride: {name} is a max-pool with padding, which torch cannot dilate.")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ConversionError(f"map_stride: {name} pads with {layer.padding_mode}; only zeros can be dilated.")
        first, second = _pair(layer.dilation)
        layer.dilation = (dilation * first, dilation * second)
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
            first, second = _pair(layer.padding)
            layer.padding = (dilation * first, dilation * second)
    if step > 1 and (dilation > 1 or before * step > target):
        layer.stride = (1, 1)
        return step
    return 1


def _pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[arg-type,return-value]


class _Strides(fx.Interpreter):
    """Notes how many pixels of the image lie between two cells of every step's map.

    Sizes do not tell it: AlexNet's map of 224 pixels has 13 cells, 16 pixels apart. They are asked where a step is no
    layer with a stride.

    Attributes:
        of: by the step that gives the map.
        of_map: of the last one.
    """

    def __init__(self, features: nn.Module, graph: fx.Graph) -> None:
        super().__init__(features, graph=graph)
        self.of: dict[fx.Node, int] = {}
        self.of_map = 1
        self._widths: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if not isinstance(result, Tensor) or result.dim() != 4:
            return result
        layer = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        source = max((s for s in n.all_input_nodes if s in self._widths), key=self._widths.__getitem__, default=None)
        if source is None:
            step = round(self._image_width / result.shape[-1]) if self.of else 1
        elif isinstance(layer, _WINDOWED):
            step = max(_pair(layer.stride))
        else:
            step = max(round(self._widths[source] / max(result.shape[-1], 1)), 1)
        self._widths[n] = result.shape[-1]
        self.of[n] = self.of_map = step * (1 if source is None else self.of[source])
        return result

    @property
    def _image_width(self) -> int:
        return next(iter(self._widths.values()))
