"""What the layers of a Keras network are put together with: its graph, its weights, and what has to be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..layer_graph import LayerGraph
from .archive import KerasFile
from .config import KerasLayer
from .values import Value, laid_out

__all__ = ["KerasSteps", "keras_axis", "number", "pair", "placed", "tensor_of", "whole"]


def placed(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A layer that was made on the meta device, with its tensors; None leaves one out."""
    given = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    if "num_batches_tracked" in layer.state_dict():
        given["num_batches_tracked"] = torch.tensor(0)
    layer.load_state_dict(given, assign=True)
    return layer


class KerasSteps:
    """The network as far as it is put together.

    Attributes:
        graph: its steps.
        file: the weights.
        hard_sigmoid_of_2: whether ``hard_sigmoid`` is that of Keras 2.
        left_out: names of layers that do nothing after training, by what they are.
        read: layers whose weights were read.
    """

    def __init__(self, graph: LayerGraph, file: KerasFile) -> None:
        self.graph, self.file = graph, file
        self.hard_sigmoid_of_2 = file.keras < 3
        self.left_out: dict[str, list[str]] = {}
        self.read: set[KerasLayer] = set()
        self._made: dict[Any, nn.Module] = {}

    def shape(self, value: Value) -> tuple[int, ...]:
        """Of a value, as Keras counts its axes."""
        sides = self.graph.shape(value.node)
        return tuple(sides[axis] for axis in value.axes)

    def axis(self, value: Value, axis: Any) -> int:
        """The axis of a value's tensor that Keras means by a number, or by a list of one."""
        return value.axes[keras_axis(axis, len(value.axes))]

    def weights(self, layer: KerasLayer, **shapes: tuple[int, ...] | None) -> dict[str, Tensor]:
        """See ``KerasFile.weights``."""
        self.read.add(layer)
        return self.file.weights(layer, shapes)

    def once(self, key: Any, make: Callable[[], nn.Module]) -> nn.Module:
        """A layer that is made the first time it is asked for, and shared then."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def layer(self, name: str, module: nn.Module, value: Value) -> Value:
        """A value behind a layer that keeps its axes."""
        return value._replace(node=self.graph.layer(name, module, value.node))

    def call(self, function: Callable[..., Any], value: Value, *args: Any, **kwargs: Any) -> Value:
        """A value behind a function that keeps its axes."""
        return value._replace(node=self.graph.call(function, value.node, *args, **kwargs))

    def constant(self, name: str, constant: Tensor, value: Value) -> Any:
        """A constant that Keras broadcasts over a value: a number, or the step of a tensor."""
        spread = laid_out(constant, value)
        if spread.ndim == 0:
            return float(spread)
        return self.graph.tensor(name, spread, trainable=False)

    def leave_out(self, layer: KerasLayer, why: str) -> None:
        """Remember a layer that does nothing in the network."""
        names = self.left_out.setdefault(why, [])
        if layer.title not in names:
            names.append(layer.title)


def keras_axis(axis: Any, rank: int) -> int:
    """A number of an axis, or a list of one, counted from 0."""
    if isinstance(axis, list | tuple):
        if len(axis) != 1:
            raise ValueError(f"axis={axis}: one axis can be read")
        axis = axis[0]
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise ValueError(f"axis={axis!r} of a tensor of {rank} axes")
    return axis % rank


def pair(config: Mapping[str, Any], name: str, default: int = 1) -> tuple[int, int]:
    """An option of one whole number or of two, from 1 on."""
    value = config.get(name, default)
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side < 2**31 for side in sides):
        raise ValueError(f"{name}={value!r}")
    return int(sides[0]), int(sides[1])


def whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """An option that is a whole number, from 1 on."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"{name}={value!r}")
    return value


def number(config: Mapping[str, Any], name: str, default: float) -> float:
    """An option that is a finite number; of ``None`` the default."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, dict):  # a number as NumPy has it
        value = value["config"]["value"] if "config" in value else value["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ValueError(f"{name}={value!r}")
    return float(value)


def tensor_of(value: Any) -> Tensor:
    """A number or nested lists of numbers as a tensor, float32."""
    if isinstance(value, dict) and value.get("class_name") in ("__numpy__", "__tensor__"):
        value = value["config"]["value"]
    tensor = torch.tensor(value, dtype=torch.float64)
    if tensor.numel() > 2**20 or not bool(tensor.isfinite().all()):
        raise ValueError("a constant that is too large or no number")
    return tensor if tensor.ndim == 0 else tensor.float()
