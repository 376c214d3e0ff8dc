"""A network put together of a foreign file's steps: layers and functions that camify can store, and no others."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..checkpoint.bounds import MOST_STEPS, allowed_bytes
from ..errors import CheckpointError
from ..graphs.allowed_layers import FUNCTIONS, LAYER_NAMES, METHODS
from ..graphs.fx_modules import OWN_NAMES, without_echo

__all__ = ["LayerGraph"]

_TAKEN = OWN_NAMES | frozenset(dir(nn.Sequential()))
_LONGEST_NAME = 200


class LayerGraph:
    """A graph that grows step by step; every step is run on the meta device at once, so that its shape is known.

    Args:
        source: the file, for messages.
        image_shape: (N, C, H, W) of the images on which the steps are run.

    Attributes:
        image: the first step; images (N, C, H, W).
        values: what each step gave: a tensor on the meta device, or a number.

    Example:
        >>> graph = LayerGraph("a file", (2, 3, 8, 8))
        >>> features = graph.layer("conv", nn.Conv2d(3, 4, 3), graph.image)
        >>> pooled = graph.call(torch.mean, features, (2, 3))
        >>> network = graph.network(graph.layer("fc", nn.Linear(4, 2), pooled))
        >>> network(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 2])
    """

    def __init__(self, source: str, image_shape: Sequence[int]) -> None:
        self.source, self.root, self.graph = source, nn.Module(), fx.Graph()
        self.image = self.graph.placeholder("image")
        image = torch.empty(tuple(image_shape), device="meta")
        self.values: dict[fx.Node, Any] = {self.image: image}
        self._allowed = allowed_bytes(image.nbytes)
        self._paths: set[str] = set()
        self._placed: dict[nn.Module, str] = {}

    # ------------------------------------------------------------ steps

    def layer(self, name: str, layer: nn.Module, *inputs: fx.Node) -> fx.Node:
        """A step that runs a layer; one that is there already is shared.

        Args:
            name: as the file has it; what cannot stand in a path of layers becomes ``_``, a dot opens a level.
            layer: of a kind that can be stored, on the CPU.
            inputs: its inputs.

        Raises:
            CheckpointError: it does not run on them; names it.
        """
        if type(layer) not in LAYER_NAMES:
            raise TypeError(f"{type(layer).__name__} is no layer that can be stored")
        path = self._placed.get(layer)
        if path is None:
            path = self._placed[layer] = self._free_path(name)
            self._place(path, layer)
        node = self.graph.call_module(path, inputs)

        def run(*values: Any) -> Any:
            state = {key: value.to("meta") for key, value in layer.state_dict().items()}
            return torch.func.functional_call(layer, state, values)

        return self._run(node, run, name)

    def _place(self, path: str, layer: nn.Module) -> None:
        owner = self.root
        *parents, last = path.split(".")
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        owner.add_module(last, layer.eval())

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A step that calls a function of ``allowed_layers.FUNCTIONS``."""
        if function not in FUNCTIONS.values():
            raise TypeError(f"{function} is no function that can be stored")
        return self._run(self.graph.call_function(function, args, kwargs), function)

    def method(self, name: str, tensor: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """A step that calls a method of a tensor, of ``allowed_layers.METHODS``."""
        if name not in METHODS:
            raise TypeError(f"{name} is no method that can be stored")

        def run(value: Any, *others: Any, **options: Any) -> Any:
            return getattr(value, name)(*others, **options)

        return self._run(self.graph.call_method(name, (tensor, *args), kwargs), run)

    def tensor(self, name: str, value: Tensor, *, trainable: bool | None = None) -> fx.Node:
        """A tensor of the file as a parameter (floats, unless ``trainable`` is False) or as a buffer."""
        path = self._free_path(name.replace(".", "_"))
        if trainable is None:
            trainable = value.is_floating_point()
        if trainable:
            self.root.register_parameter(path, nn.Parameter(value))
        else:
            self.root.register_buffer(path, value)
        node = self.graph.get_attr(path)
        self.values[node] = value.to("meta")
        return node

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a step's tensor, for the images that the graph is run on."""
        return tuple(self.values[node].shape)

    # ------------------------------------------------------------ the network

    def network(self, output: fx.Node) -> fx.GraphModule:
        """The network that ends in a step, in eval mode; steps that it does not need are left out."""
        self.graph.output(output)
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)
        self.graph.lint()
        network = fx.GraphModule(self.root, self.graph, class_name="Network")  # takes over what the steps name
        return without_echo(network.eval())

    def _run(self, node: fx.Node, function: Callable[..., Any], name: str | None = None) -> fx.Node:
        if len(self.values) >= MOST_STEPS:
            raise CheckpointError(f"{self.source}: more than {MOST_STEPS} steps are not read.")
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        with torch.no_grad():
            value = function(*args, **kwargs)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Tensor) and item.nbytes > self._allowed:
                raise CheckpointError(
                    f"{self.source}: the step {(name or node.name)[:80]} makes a tensor {tuple(item.shape)}; for such"
                    f" images camify allows {self._allowed / 2**30:.3g} GiB."
                )
        self.values[node] = value
        return node

    def _free_path(self, name: str) -> str:
        """A path of layers that nothing else has, close to a name."""
        parts = [re.sub(r"\W+", "_", part, flags=re.ASCII).strip("_") for part in name[:_LONGEST_NAME].split(".")]
        parts = [part for part in parts if part] or ["layer"]
        parts = [f"{part}_" if part in _TAKEN or keyword.iskeyword(part) else part for part in parts]
        path, number = ".".join(parts), 2
        while self._is_taken(path):
            inside = any(path.startswith(f"{one}.") for one in self._paths)  # of what is a layer itself
            parts = ["_".join(parts)] if inside else parts
            path, number = f"{'.'.join(parts)}_{number}", number + 1
        self._paths.add(path)
        return path

    def _is_taken(self, path: str) -> bool:
        """Whether a path is that of another layer, lies in one, or has one in itself."""
        return any(path == one or path.startswith(f"{one}.") or one.startswith(f"{path}.") for one in self._paths)
