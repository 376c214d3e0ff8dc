"""The layers of a new head, from data: convolutions, dropout and pools put behind the features."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, fx, nn
from torch.nn import init

from ..errors import ConversionError

__all__ = ["FILLERS", "Conv3x3", "DropoutOnMap", "MaxPoolOnMap", "NewLayer", "append_layers"]

FILLERS: dict[str, Callable[[Tensor], object]] = {
    "he_fan_in": partial(init.kaiming_normal_, nonlinearity="relu"),
    "he_fan_out": partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "xavier": init.xavier_uniform_,
    "caffe_xavier": partial(init.kaiming_uniform_, nonlinearity="linear"),  # Caffe's counts the fan-in only
    "gaussian": partial(init.normal_, std=0.01),
}
"""How new weights are drawn, by name; ``"gaussian"`` has the standard deviation 0.01."""


@dataclass(frozen=True)
class Conv3x3:
    """A convolution 3x3, stride 1, padding 1, and a ReLU; ``weights`` is one of ``FILLERS``, ``bias`` a constant."""

    channels: int
    groups: int = 1
    weights: str = "he_fan_in"
    bias: float = 0.0

    def build(self, channels: int) -> dict[str, nn.Module]:
        """The layers behind a map of ``channels`` channels."""
        if channels % self.groups:
            raise ConversionError(
                f"The map has {channels} channels, which {self.groups} groups of the new convolution cannot share."
                " Choose a recipe without groups."
            )
        conv = nn.Conv2d(channels, self.channels, 3, padding=1, groups=self.groups)
        FILLERS[self.weights](conv.weight)
        init.constant_(conv.bias, self.bias)  # type: ignore[arg-type]
        return {"conv": conv, "relu": nn.ReLU()}


@dataclass(frozen=True)
class DropoutOnMap:
    """Dropout of single values of the map, while training."""

    p: float

    def build(self, channels: int) -> dict[str, nn.Module]:  # noqa: ARG002 - as the others
        """The layer."""
        return {"dropout": nn.Dropout(self.p)}


@dataclass(frozen=True)
class MaxPoolOnMap:
    """A max-pool without padding."""

    kernel_size: int
    stride: int

    def build(self, channels: int) -> dict[str, nn.Module]:  # noqa: ARG002 - as the others
        """The layer."""
        return {"pool": nn.MaxPool2d(self.kernel_size, self.stride)}


NewLayer = Conv3x3 | DropoutOnMap | MaxPoolOnMap


def append_layers(features: nn.Module, channels: int, new: Sequence[NewLayer]) -> tuple[nn.Module, list[str]]:
    """The features with new layers behind them, and their names: ``cam_conv`` as in the released networks.

    Layers of one kind are numbered where there are several. ``channels`` is what the features end in.
    """
    layers: dict[str, nn.Module] = {}
    taken = dict(features.named_children())
    total, count = Counter(map(type, new)), Counter[type]()
    for spec in new:
        built = spec.build(channels)
        channels = spec.channels if isinstance(spec, Conv3x3) else channels
        count[type(spec)] += 1
        number = str(count[type(spec)]) if total[type(spec)] > 1 else ""
        while any(f"cam_{kind}{number}" in taken for kind in built):  # the network went through a conversion before
            number = f"_{number}"
        layers |= {f"cam_{kind}{number}": layer for kind, layer in built.items()}
    if isinstance(features, fx.GraphModule):
        _append_steps(features, layers)
    elif layers:
        if not isinstance(features, nn.Sequential):  # a network that torch.fx cannot trace
            features = nn.Sequential(OrderedDict(legacy=features))
        for name, layer in layers.items():
            features.add_module(name, layer)
    return features, list(layers)


def _append_steps(features: fx.GraphModule, layers: Mapping[str, nn.Module]) -> None:
    output = next(iter(reversed(features.graph.nodes)))
    step = output.args[0]
    for name, layer in layers.items():
        features.add_submodule(name, layer)
        with features.graph.inserting_before(output):
            step = features.graph.call_module(name, (step,))
    output.args = (step,)
    features.recompile()
