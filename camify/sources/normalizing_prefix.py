"""Networks of files that normalize their images themselves: the first steps become the preprocessing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ConfigError
from ..graphs.fx_modules import without_echo
from ..preprocessing import NORMALIZATIONS, Preprocessing

__all__ = ["fold_normalization", "preprocessing_of", "take_off_normalization", "take_off_reversal"]

_Affine = tuple[Tensor, Tensor]
_STEPS: dict[Any, str] = {
    operator.add: "add", operator.iadd: "add", torch.add: "add", "add": "add", "add_": "add",
    operator.sub: "sub", operator.isub: "sub", torch.sub: "sub", "sub": "sub", "sub_": "sub",
    operator.mul: "mul", operator.imul: "mul", torch.mul: "mul", "mul": "mul", "mul_": "mul",
    operator.truediv: "div", operator.itruediv: "div", torch.div: "div", "div": "div", "div_": "div",
    operator.neg: "neg", torch.neg: "neg", "neg": "neg",
    "float": "idle", "contiguous": "idle",
}  # fmt: skip
_SMALL = 1 / 8  # a factor that makes small numbers of 0..255, and nothing of 0..1
_TINY = 1 / 512  # makes nothing of 0..255 either: counts of 12 or 16 bits
_ROUNDING = 1e-6


def fold_normalization(
    network: fx.GraphModule, channels: int, size: int | tuple[int, int]
) -> tuple[fx.GraphModule, Preprocessing | None, str]:
    """A network without the normalization that it begins with, the preprocessing in its place, and what was assumed.

    Where the steps are no ``Preprocessing`` they stay, and the preprocessing makes the values that they take. None and
    no sentence where the network begins otherwise, or where nothing can be told from it.

    Args:
        network: takes (N, C, H, W); is left as it is.
        channels: C.
        size: of its images, pixels.
    """
    rest, scale, shift = take_off_normalization(network, channels)
    rest, is_reversed = take_off_reversal(rest)
    if bool((scale == 1).all() and (shift == 0).all()):
        return network, None, ""
    folded = preprocessing_of(scale, shift, size, is_reversed=is_reversed)
    if folded is not None:
        return rest, *folded
    largest = _range_of(scale, shift)
    if largest is None:
        return network, None, ""
    name = f"0..{largest}"
    raw = Preprocessing.stated(name, Preprocessing.assumed(size, channels))
    if raw.channels != channels:
        std = NORMALIZATIONS[name]["std"][0]
        raw = Preprocessing(size, (0.0,) * channels, (std,) * channels)
    return network, raw, f"images in {name}, which the network normalizes itself, are assumed"


# ------------------------------------------------------------ the steps


def take_off_normalization(network: fx.GraphModule, channels: int) -> tuple[fx.GraphModule, Tensor, Tensor]:
    """The network behind its first steps, as far as these are ``x * scale + shift`` per channel.

    Sums, differences, products and quotients of the image and numbers, or tensors of one value or of one per channel;
    a reversal of the channels between them stays as the first step (see ``take_off_reversal``). A batch norm is a layer
    that learns, and stays.

    Args:
        network: takes (N, C, H, W); is left as it is. The layers are not copied.
        channels: C.

    Returns:
        The network that takes ``x * scale + shift``, ``scale`` (C) and ``shift`` (C), float64: 1 and 0 where the
        network begins otherwise.
    """
    graph, image = _copied(network)
    scale, shift = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    reversals: list[fx.Node] = []
    last, step = image, _only_user(image)
    while step is not None:
        if _is_reversal(step):
            reversals.append(step)
        else:
            after = _affine(network, step, last, (scale, shift), reversed_=len(reversals) % 2 == 1)
            if after is None or not all(bool(value.isfinite().all()) for value in after):
                break
            scale, shift = after
        last, step = step, _only_user(step)
    if last is image:
        return network, scale, shift
    _keep_last(graph, image, last, reversals)
    return _as_network(network, graph), scale, shift


def take_off_reversal(network: fx.GraphModule) -> tuple[fx.GraphModule, bool]:
    """The network without a first step that reverses the channels (RGB to BGR), and whether there was one."""
    graph, image = _copied(network)
    step = _only_user(image)
    if step is None or not _is_reversal(step):
        return network, False
    step.replace_all_uses_with(image)
    graph.erase_node(step)
    return _as_network(network, graph), True


def _copied(network: fx.GraphModule) -> tuple[fx.Graph, fx.Node]:
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    return graph, image


def _as_network(network: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    taken = fx.GraphModule(network, graph, class_name=type(network).__name__)
    return without_echo(taken.train(network.training))


def _only_user(node: fx.Node) -> fx.Node | None:
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return None if user is None or user.op == "output" else user


def _keep_last(graph: fx.Graph, image: fx.Node, last: fx.Node, reversals: Sequence[fx.Node]) -> None:
    """Take out the steps up to ``last``, but for a reversal where there is an odd number of them."""
    first = image
    if len(reversals) % 2:
        with graph.inserting_after(image):
            first = graph.call_method("flip", (image, [1]))
    last.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    unused = last
    while unused is not image:
        before = next(node for node in unused.all_input_nodes if node.op != "get_attr")
        constants = [node for node in unused.all_input_nodes if node.op == "get_attr"]
        graph.erase_node(unused)
        for constant in constants:
            if not constant.users:
                graph.erase_node(constant)
        unused = before


def _is_reversal(step: fx.Node) -> bool:
    if step.op not in ("call_function", "call_method") or step.target not in (torch.flip, "flip"):
        return False
    dims = step.args[1:] or (step.kwargs.get("dims"),)
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
    return list(axes) in ([1], [-3])


def _affine(network: fx.GraphModule, step: fx.Node, last: fx.Node, before: _Affine, reversed_: bool) -> _Affine | None:
    """Scale and shift with one step more; None where it is no such step."""
    if step.op == "call_module":
        idle = isinstance(network.get_submodule(str(step.target)), nn.Identity)
        return before if idle else None
    if step.op not in ("call_function", "call_method") or step.kwargs:
        return None
    kind = _STEPS.get(step.target)
    scale, shift = before
    if kind == "neg":
        return -scale, -shift
    if kind == "idle":
        return before
    if kind is None or len(step.args) != 2:
        return None
    image_first = step.args[0] is last
    constant = _constant(network, step.args[1 if image_first else 0], len(scale))
    if constant is None:
        return None
    if reversed_ and len(constant) > 1:
        constant = constant.flip(0)
    return _applied(kind, before, constant, image_first)


def _applied(kind: str, before: _Affine, constant: Tensor, image_first: bool) -> _Affine | None:
    scale, shift = before
    steps: dict[str, Callable[[], _Affine | None]] = {
        "add": lambda: (scale, shift + constant),
        "sub": lambda: (scale, shift - constant) if image_first else (-scale, constant - shift),
        "mul": lambda: (scale * constant, shift * constant),
        "div": lambda: (scale / constant, shift / constant) if image_first else None,
    }
    return steps[kind]()


def _constant(network: fx.GraphModule, value: Any, channels: int) -> Tensor | None:
    """A number or a tensor of a step as (1) or (C) values, float64; None where it varies over the image."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor([float(value)], dtype=torch.float64)
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    parent, _, name = str(value.target).rpartition(".")
    tensor = getattr(network.get_submodule(parent), name).detach()
    if tensor.ndim > 4 or tensor.is_complex() or tensor.dtype == torch.bool:
        return None
    per_channel = tensor.ndim >= 3 and tensor.shape[-3] == channels and tensor.numel() == channels
    return tensor.double().flatten() if per_channel or tensor.numel() == 1 else None


# ------------------------------------------------------------ what they say


def preprocessing_of(
    scale: Tensor, shift: Tensor, size: int | tuple[int, int], *, is_reversed: bool = False
) -> tuple[Preprocessing, str] | None:
    """The preprocessing of a network that began with ``x * scale + shift``, and what was assumed; None: it is none.

    The network took images in 0..255 where the shift centers such values, or where the scale would make nothing of
    0..1; else in 0..1.

    Args:
        scale: (C), in the order of the network's input.
        shift: likewise.
        size: of the images, pixels.
        is_reversed: the network reversed the channels itself; what is left takes BGR.
    """
    largest = _range_of(scale, shift)
    if largest is None or not bool((scale > 0).all()):
        return None
    mean, std = -shift / (scale * largest), 1 / (scale * largest)
    if is_reversed:
        mean, std = mean.flip(0), std.flip(0)
    mean = torch.where((mean < 0) & (mean > -_ROUNDING), 0.0, mean)
    std = torch.where((std > 1) & (std < 1 + _ROUNDING), 1.0, std)
    input_format = "bgr" if is_reversed and len(scale) == 3 else ""
    if is_reversed and not input_format:
        return None
    try:
        preprocessing = Preprocessing(size, _plain(mean), _plain(std), input_format)
    except ConfigError:
        return None
    return preprocessing, f"the network's own normalization (of images in 0..{largest}) is now its preprocessing"


def _plain(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.8g}") + 0.0 for value in values.tolist())  # without float32's rounding, and -0


def _range_of(scale: Tensor, shift: Tensor) -> int | None:
    """The largest value of the images that a network normalizes so: 1 or 255; None where it is neither."""
    size = float(scale.abs().max())
    if not size > _TINY:
        return None
    center = -shift / scale
    return 255 if size <= _SMALL or float(center.nan_to_num().max()) > 1 + _ROUNDING else 1
