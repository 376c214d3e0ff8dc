"""The analysis of a classifier that torch.fx cannot trace: found by watching its modules, and cut by stopping it.

Where torch.fx can follow it up to the module that gives the last spatial map, the features are those steps. Else the
network's own code is kept and runs up to there: right in training and in evaluation alike, but it cannot be stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..eval_mode import without_hooks
from ..logits import cannot_run, require_logits
from .analysis import FeaturesCopy, NetworkAnalysis
from .copied_features import copy_graph, features_up_to
from .final_activation import activation_name
from .layouts import Layout, guess_layouts
from .linear_head import fold_linear_head, gives
from .place import not_placed, placed_layout
from .tracer import TracingError

__all__ = [
    "Record",
    "UntracedAnalysis",
    "UntracedFeatures",
    "analyze_untraced",
    "bypassed",
    "last_activation",
    "replayed",
    "value_of",
]


class _MapReached(Exception):  # noqa: N818 - no error: it carries the map out of the network's forward
    def __init__(self, value: Tensor) -> None:
        self.value = value


class _Last(nn.Module):
    """The module that gives the last spatial map; leaves the network with it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Never returns."""
        raise _MapReached(self.layer(*args, **kwargs))


class UntracedFeatures(nn.Module):
    """A network's own code, run up to its last spatial map (N, C, h, w)."""

    def __init__(self, network: nn.Module, layer: str, layout: Layout) -> None:
        super().__init__()
        self.network, self.layout = network, layout
        parent, _, name = layer.rpartition(".")
        setattr(network.get_submodule(parent), name, _Last(network.get_submodule(layer)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h, w)."""
        try:
            self.network(x.clone())  # it may begin with a step in place
        except _MapReached as reached:
            return self.layout.to_map(reached.value)
        raise ConversionError("The network took a way past its last spatial map.")


@dataclass
class UntracedAnalysis(NetworkAnalysis):
    """A classifier cut behind one of its modules."""

    behind: list[str]
    last: str | None = None
    """Name of the activation layer behind the logits."""
    steps: tuple[fx.GraphModule, fx.Graph] | None = None
    """The network's layers and the steps up to the last spatial map, where torch.fx can follow it so far."""

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers that start only behind the last spatial map."""
        return [name for name in self.behind if next(self.model.get_submodule(name).children(), None) is None]

    def copy_features(self) -> FeaturesCopy:
        """A copy of the steps up to the last spatial map, else of the network without the layers behind it."""
        if self.steps is not None:
            return copy_graph(self.model, *self.steps)
        memo: dict[int, Any] = {}
        with without_hooks(self.model):
            network = copy.deepcopy(self.model, memo)
        modes = {memo[id(layer)]: layer.training for layer in self.model.modules() if id(layer) in memo}
        outer = [name for name in self.behind if not any(name.startswith(f"{other}.") for other in self.behind)]
        for name in outer:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
        for parameter in network.parameters():
            parameter.grad = None
        layers = [name for name, _ in self.model.named_modules() if name and name not in self.behind]
        return FeaturesCopy(UntracedFeatures(network, self.feature_layer, self.layout), modes, layers)


class Record:
    """What every module returned in one forward, in the order in which they ended, and what started after it."""

    def __init__(self) -> None:
        self.ended: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self._started: list[str] = []
        self._begins: dict[str, int] = {}  # how many had started when a module ended
        self._thread = get_ident()

    @property
    def place(self) -> str:
        """The module that started last."""
        return self._started[-1] if self._started else "its start"

    def watch(self, model: nn.Module, images: Tensor) -> Any:
        """The output of one forward."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self._start, name)))
            handles.append(module.register_forward_hook(partial(self._end, name)))
        try:
            return model(images.clone())
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, name: str, _module: nn.Module, _args: Any) -> None:
        if get_ident() == self._thread:  # not a forward of somebody else
            self._started.append(name)

    def _end(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if get_ident() != self._thread:
            return
        self.ended.pop(name, None)  # of several calls the last counts
        self.ended[name] = output.clone() if isinstance(output, Tensor) else output
        self.calls[name] = self.calls.get(name, 0) + 1
        self._begins[name] = len(self._started)

    def behind(self, name: str) -> list[str]:
        """The modules that start only after another has ended."""
        before = set(self._started[: self._begins[name]])
        return [other for other in dict.fromkeys(self._started[self._begins[name] :]) if other not in before]


@torch.no_grad()
def analyze_untraced(model: nn.Module, choices: Sequence[Tensor], why: TracingError) -> UntracedAnalysis:
    """The last module through whose map everything flows, and whether the head behind it is linear.

    That everything flows through it is tested: with the maps of the two images swapped, the logits are swapped.

    Args:
        model: in eval mode.
        choices: images (2, C, H, W); the first that the network takes are used.
        why: what torch.fx said.

    Raises:
        ConversionError: the network cannot be run, or no module gives such a map.
    """
    images, record, output = _watch(model, choices)
    last = last_activation(model, record, output)
    if last is None:
        return _analyze_watched(model, images, record, output, why)
    activation = activation_name(model.get_submodule(last))
    with bypassed(model, last):
        analysis = _analyze_watched(model, *_watch(model, [images]), why)
    analysis.activation, analysis.last = activation, last
    return analysis


def last_activation(model: nn.Module, record: Record, output: Tensor) -> str | None:
    """Name of the softmax or sigmoid module whose answer the network returns; None where there is none."""
    for name in reversed(record.ended):
        layer, value = model.get_submodule(name), record.ended[name]
        if isinstance(value, Tensor) and activation_name(layer) and record.calls[name] == 1:
            return name if torch.equal(value, output) else None
    return None


@contextmanager
def _replaced_forwards(model: nn.Module, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Modules by name run other functions than their own ``forward`` for a while, in this thread."""
    thread = get_ident()

    def run(forward: Callable[..., Any], own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return (forward if get_ident() == thread else own)(*args, **kwargs)

    modules = [(model.get_submodule(name), forward) for name, forward in forwards.items()]
    saved_forwards = [(module, module.__dict__.get("forward")) for module, _ in modules]
    for module, forward in modules:
        module.forward = partial(run, forward, module.forward)
    try:
        yield
    finally:
        for module, saved_forward in saved_forwards:
            if saved_forward is None:
                module.__dict__.pop("forward", None)  # a module may have several names
            else:
                module.forward = saved_forward


def bypassed(model: nn.Module, layer: str | None) -> AbstractContextManager[None]:
    """A layer gives its input for a while; none does for None."""
    return _replaced_forwards(model, {} if layer is None else {layer: _same_value})


def _same_value(value: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return value


def _analyze_watched(
    model: nn.Module, images: Tensor, record: Record, logits: Tensor, why: TracingError
) -> UntracedAnalysis:
    image, grids = (images.shape[2], images.shape[3]), list[tuple[int, int]]()
    guesses: dict[str, list[Layout]] = {}
    for name, value in record.ended.items():
        possible = guess_layouts(value.shape, image, grids) if isinstance(value, Tensor) else []
        if possible and record.calls[name] == 1 and name:
            guesses[name] = possible
            grids.append(possible[0].grid)
    refusal = "Nor does any module give a map (N, C, h, w) through which everything flows."
    for name in reversed(guesses):
        value = record.ended[name]
        swapped = _head(model, name, guesses[name][0], record, images)(value, exact=value.flip(0))
        if not _same(swapped, logits.flip(0), logits):
            continue
        run = partial(value_of, model, name)
        layout, figure = placed_layout(run, images, value, guesses[name], followed=False)
        if layout is not None:
            break
        refusal = f"{name} {not_placed(value.shape, figure)}"
    else:
        raise ConversionError(f"{why} {refusal}")
    head = _head(model, name, layout, record, images)
    outer = _outermost(model, name, record)
    maps = layout.to_map(value)
    behind = record.behind(name)
    weighted = [n for n in behind if next(model.get_submodule(n).parameters(recurse=False), None) is not None]
    linear = fold_linear_head(head, maps, model.get_submodule(weighted[0]) if len(weighted) == 1 else None)
    traced = features_up_to(model, outer, layout, images, value)
    note = f"{why} Its own code was kept: the result cannot be saved without it."
    if traced is not None:
        note = f"torch.fx cannot follow the head ({why}); the features stand on their own."
    return UntracedAnalysis(
        model=model,
        images=images,
        logits=logits,
        layout=layout,
        feature_layer=outer,
        feature_shape=(maps.shape[1], maps.shape[2], maps.shape[3]),
        linear=linear,
        reads_token=linear is not None and not gives(linear, maps, logits),
        single_layer=len(weighted) == 1,
        behind=behind,
        place=figure,
        steps=traced,
        notes=[note],
    )


def value_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """What a module gives for images."""
    record = Record()
    record.watch(model, images)
    value: Tensor = record.ended[name]
    return value


def _same(actual: Tensor, expected: Tensor, other: Tensor) -> bool:
    """Whether logits are the expected ones, to a hundredth of what sets those apart from the others."""
    apart = float((expected - other).abs().max())
    return actual.shape == expected.shape and apart > 0 and float((actual - expected).abs().max()) <= 0.01 * apart


def _watch(model: nn.Module, choices: Sequence[Tensor]) -> tuple[Tensor, Record, Tensor]:
    """The first images that the network takes, what its modules returned, and the logits."""
    refusal: ConversionError | None = None
    for images in choices:
        record = Record()
        try:
            output = record.watch(model, images)
        except Exception as error:  # noqa: BLE001 - the network fails as it likes
            refusal = refusal or cannot_run(model, images, error, record.place)
        else:
            return images, record, require_logits(output, images)
    try:
        raise refusal or ConversionError("There are no images to run the network with.")
    finally:
        del refusal  # its traceback has this frame: in such a circle the network would stay


def _outermost(model: nn.Module, name: str, record: Record) -> str:
    """The largest module that ends with the same tensor."""
    parent = name.rpartition(".")[0]
    output, parent_output = record.ended[name], record.ended.get(parent)
    if (
        parent
        and isinstance(parent_output, Tensor)
        and record.calls[parent] == 1
        and torch.equal(output, parent_output)
    ):
        return _outermost(model, parent, record)
    return name


def _head(model: nn.Module, name: str, layout: Layout, record: Record, images: Tensor) -> Callable[..., Tensor]:
    """The logits (2, K) that follow from another map (2, C, h, w) in the place of a module's."""

    def head(maps: Tensor, exact: Tensor | None = None) -> Tensor:
        value = layout.from_map(maps) if exact is None else exact
        with replayed(model, record, name, value):
            logits: Tensor = model(images.clone())
        return logits

    return head


def replayed(model: nn.Module, record: Record, last: str, value: Tensor) -> AbstractContextManager[None]:
    """The module ``last`` gives a value, and those before it what they gave before, without running; for a while."""
    ancestors = {last[:index] for index, letter in enumerate(last) if letter == "."} | {""}
    before = takewhile(lambda name: name != last, record.ended)
    values = {name: record.ended[name] for name in before if record.calls[name] == 1 and name not in ancestors}
    return _replaced_forwards(
        model, {name: partial(_give, returned) for name, returned in {**values, last: value}.items()}
    )


def _give(value: Any, *_args: Any, **_kwargs: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value  # the next step may work in place
