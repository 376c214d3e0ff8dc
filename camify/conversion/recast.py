"""Recasting: the old head as layers that run at every position, so that pooling moves to the last step but one.

Flatten + linear becomes a convolution of the map's size (Simonyan & Zisserman 2014, section 3.2; Long et al. 2015,
"Fully Convolutional Networks", section 3.1), later linear layers become 1x1 convolutions, and what stands between
them its per-position form. Whether a step works element by element is asked, not read off its name.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..checkpoint.certificate import TOLERANCE
from ..errors import ConversionError
from ..eval_mode import eval_mode, without_hooks
from ..graphs import FeaturesCopy, Layout, NetworkAnalysis, TracedAnalysis, between, extract
from ..graphs.fx_modules import as_module, parameter_free
from ..graphs.rearrangement import Rerun, rearrangement
from ..logits import lacks_memory

__all__ = ["Recast", "RecastError", "recast_head"]

_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


class RecastError(ConversionError):
    """A step of a head has no per-position form; ``reason`` says which, and why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"head='recast': {reason}. Use head='gap' or head='direct'.")


@dataclass(frozen=True)
class Recast:
    """A recast head: features with the head's layers behind them, and the last linear layer.

    ``pool_moved``: the old head pooled before its last layers; moving the pooling behind them changes the function.
    ``pool_replaced``: it also pooled by something other than the mean, whose place the mean takes.
    """

    graph: fx.Graph
    classifier: nn.Linear
    layers: tuple[str, ...]
    pool_moved: bool
    pool_replaced: bool
    kernel: tuple[int, int]
    analysis: TracedAnalysis

    def copy_features(self) -> FeaturesCopy:
        """A copy of the features with the recast layers behind them."""
        return self.analysis.copy_features(self.graph)


@torch.no_grad()
def recast_head(analysis: NetworkAnalysis) -> Recast:
    """The head of a network, whatever it is made of, with its pooling moved behind all but the last linear layer.

    The result is checked against the old head: on maps of the native size, or, where the pooling was moved, on maps
    that are the same at all positions, where moving it changes nothing.

    Raises:
        RecastError: a step of the head has no per-position form; names it.
    """
    if not isinstance(analysis, TracedAnalysis):
        raise RecastError("torch.fx cannot trace the network, so the steps of its head are not known")
    with without_hooks(analysis.model), eval_mode(analysis.model):
        try:
            return _Recaster(analysis).run()
        except ConversionError:
            raise
        except Exception as error:  # the steps are the user's: given other maps, they fail as they like
            if lacks_memory(error):
                raise
            reason = str(error).split("\n")[0].rstrip(".")
            raise RecastError(
                f"a step of the head runs on the network's own maps only ({type(error).__name__}: {reason})"
            ) from error


class _Recaster:
    """Walks along the head and appends the per-position form of every step to the features' graph."""

    def __init__(self, analysis: TracedAnalysis) -> None:
        self.analysis, self.network = analysis, analysis.network
        self.graph = analysis.features_graph()
        self.output = next(iter(reversed(self.graph.nodes)))
        targets = [str(n.target) for n in self.graph.nodes if n.op == "call_module"]
        first = targets[0].split(".")[0] + "." if targets else ""
        self.prefix = first if all(target.startswith(first) for target in targets) else ""
        self.layers: list[str] = []
        self.resampling: list[fx.Node] = []  # pools to a fixed size, to be folded into the kernel
        self.copies: dict[fx.Node, fx.Node] = {}
        self.shape = analysis.map_shape
        self.is_vector = self.is_pooled = self.has_kernel = self.pool_moved = self.pool_replaced = False
        self.start = self.output.args[0]
        self.kernel = (1, 1)
        self.affine: tuple[Tensor, Tensor] | None = None  # per feature, of batch norms between a flatten and its linear
        self.order = self._order_of(analysis.layout)  # of a map in other axes: the place of each number in (C, h, w)

    def run(self) -> Recast:
        nodes = list(self.analysis.head_nodes)
        last = self._last_linear(nodes)
        classifier: nn.Linear | None = None
        skipped = set(self._pools_behind(self.analysis.feature))
        for node in nodes:
            if node in skipped or not isinstance(self.analysis.shapes.get(node), torch.Size):
                continue  # a size or another plain value
            layer = self._layer(node)
            if node is last and isinstance(layer, nn.Linear) and self.is_vector and (self.has_kernel or self.is_pooled):
                classifier = copy.deepcopy(layer)
            elif self.is_vector:
                self._step_of_vector(node)
            elif not self._moves(node):
                self._step_of_map(node)
                skipped |= set(self._pools_behind(node))
        if self.is_vector and not (self.has_kernel or self.is_pooled):
            self._refuse(nodes[-1], "ends the network, whose flattened features no linear layer follows")
        if classifier is None:
            classifier = self._same(self.analysis.logits)
        self._prove(classifier)
        layers = tuple(self.layers)
        return Recast(
            self.graph, classifier, layers, self.pool_moved, self.pool_replaced, self.kernel, self.analysis
        )  # fmt: skip

    def _pools_behind(self, start: fx.Node) -> list[fx.Node]:
        """Pools of several branches or steps (fastai's average beside maximum; axis by axis), or of another layout.

        Such pools answer a map that is the same everywhere with its channels, perhaps several times over. So many
        times they are put into the recast network; what differs is that the pooling is moved.
        """
        at_feature = start is self.analysis.feature
        layout = self.analysis.layout if at_feature else Layout("NCHW", (0, 0))
        branches = [user for user in start.users if user in self.analysis.shapes]
        in_steps = len(branches) == 1 and (
            len(self.analysis.shapes[branches[0]]) == 3 or self._moved(branches[0]) is not None
        )
        if self.is_pooled or self.is_vector or (layout.axes == "NCHW" and len(branches) < 2 and not in_steps):
            return []
        nodes = between(self.network.graph, start)
        end = self._end_of_pools(start, nodes)
        if end is None:
            return []
        shape = self.analysis.map_shape if at_feature else self.analysis.shapes[start]
        if len(shape) != 4:
            return []
        values = torch.randn(shape[:2], generator=torch.Generator().manual_seed(0)).to(self.analysis.images)
        part = extract(self.network.graph, start, end, constants=self.analysis.constants)
        pooled, constant = as_module(self.network, part), layout.from_map(values[:, :, None, None].expand(shape))
        if rearrangement(_of_one(pooled, start), [(start, constant)], self.analysis.shapes[end]) is not None:
            return []  # it flattens
        answer = pooled(constant.contiguous()).flatten(1)
        times = answer.shape[1] // shape[1]
        if answer.shape[1] % shape[1] or not torch.allclose(answer, values.repeat(1, times), atol=1e-5):
            return []  # refused at its first step
        maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(values)
        means = maps.mean((2, 3)).repeat(1, times)
        if not torch.allclose(pooled(layout.from_map(maps)).flatten(1), means, atol=1e-5):
            if times == 1:
                self._refuse(end, "pools, with the steps before it, in another way than by the mean")
            self.pool_replaced = True
        if times > 1:
            with self.graph.inserting_before(self.output):
                step = self.output.args[0]
                self.output.args = (self.graph.call_function(torch.cat, ([step] * times, 1)),)
        self.is_pooled, self.pool_moved, self.order = True, True, None
        self.is_vector = len(self.analysis.shapes[end]) == 2
        return list(nodes[: nodes.index(end) + 1])

    def _end_of_pools(self, start: fx.Node, nodes: Sequence[fx.Node]) -> fx.Node | None:
        """The first step through which everything flows, and in which no positions are left."""
        for index, node in enumerate(nodes):
            earlier_steps = {start, *nodes[:index]}
            if not parameter_free(self.network, node) or not self._sources(node) <= earlier_steps:
                return None
            steps = [user for earlier in earlier_steps for user in earlier.users if user in self.analysis.shapes]
            shape = self.analysis.shapes.get(node, torch.Size())
            if len(shape) in (2, 4) and shape[2:].numel() == 1 and all(s in earlier_steps or s is node for s in steps):
                return node
        return None

    def _last_linear(self, nodes: list[fx.Node]) -> fx.Node | None:
        """The last linear layer, where nothing but dropout follows."""
        for node in reversed(nodes):
            layer = self._layer(node)
            if isinstance(layer, nn.Linear):
                return node
            if not isinstance(layer, _DROPOUT):
                return None
        return None

    def _prove(self, classifier: nn.Linear) -> None:
        """Compare the new head with the old one."""
        feature, images = self.analysis.feature, self.analysis.images
        maps = torch.randn(self.analysis.map_shape, generator=torch.Generator().manual_seed(0)).to(images)
        if self.pool_moved:
            maps = maps[:, :, :1, :1].expand_as(maps).contiguous()
        (end,) = next(iter(reversed(self.network.graph.nodes))).args
        old = extract(self.network.graph, feature, end, constants=self.analysis.constants)
        new = extract(self.graph, self.start, self.output.args[0])
        expected = as_module(self.network, old)(self.analysis.layout.from_map(maps))
        logits = classifier(as_module(self.network, new)(maps).mean((2, 3)))
        error = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not error <= TOLERANCE:
            raise RecastError(f"the recast head differs from the old one by {error:.1e} (relative)")

    # ------------------------------------------------------------ moved axes

    def _moves(self, node: fx.Node) -> bool:
        """Whether a step only puts the numbers of the map into another order, which is remembered."""
        if self.is_pooled or not parameter_free(self.network, node):
            return False
        order = self._moved(node)
        if order is None or len(self.analysis.shapes[node]) == 2:
            return False
        self._remember(order)
        return True

    def _remember(self, order: Tensor) -> None:
        """Put one more move behind those so far; where all is as it was, nothing is kept."""
        places = order if self.order is None else self.order.flatten()[order]
        self.order = None if torch.equal(places.flatten(), torch.arange(places.numel())) else places

    def _order_of(self, layout: Layout) -> Tensor | None:
        """The places in (N, C, h, w) of a map's numbers in another layout; None where it is that one, or has others."""
        if layout.axes == "NCHW" or layout.prefix + layout.suffix > 0:
            return None
        return layout.from_map(torch.arange(self.shape.numel()).view(self.shape))

    def _moved(self, node: fx.Node) -> Tensor | None:
        """Where the numbers of a step stood before it, all of them and each once; None where it is no move."""
        source = self._source(node)
        before = torch.empty(self.analysis.shapes[source], device=self.analysis.images.device)
        step = _of_one(as_module(self.network, self._step(node)), source)
        order = rearrangement(step, [(source, before)], self.analysis.shapes[node])
        return order if order is not None and order.numel() == before.numel() and int(order.min()) >= 0 else None

    # ------------------------------------------------------------ steps

    def _step_of_map(self, node: fx.Node) -> None:
        """A step that still sees (N, C, h, w)."""
        layer, before, after = self._layer(node), self._before(node), self.analysis.shapes[node]
        if isinstance(layer, _DROPOUT):
            self._emit(copy.deepcopy(layer))
        elif len(after) == 2:
            self._to_vector(node, before, after)
        elif self.order is not None and not (after == before and parameter_free(self.network, node)):
            self._refuse(node, "works on axes in another order than channels, height, width")
        elif self.is_pooled:
            self._copy(node)
        elif node in self.analysis.unchanged and parameter_free(self.network, node):
            return  # idle at the native size: VGG's adaptive pool at 224 px
        elif before[2:].numel() > 1 and after[2:].numel() == 1 and parameter_free(self.network, node):
            self._pool_all(node)
        elif node.target in _ADAPTIVE or isinstance(layer, _ADAPTIVE[:2]):
            self.resampling.append(node)
        elif len(after) == 4 and (before[2:] == after[2:] or parameter_free(self.network, node)):
            self._copy(node)
        elif isinstance(layer, nn.Module):
            self._window(node, before)
        else:
            self._refuse(node, "works across positions")

    def _window(self, node: fx.Node, before: torch.Size) -> None:
        """A layer that runs over windows of the map already (timm's VGG): one answer at the native size, else more."""
        self._copy(node)
        self.has_kernel, self.kernel = True, (before[2], before[3])

    def _step_of_vector(self, node: fx.Node) -> None:
        """A step that sees (N, D), and in the recast network a map (N, D, h, w)."""
        layer, before = self._layer(node), self._before(node)
        flattened = not (self.has_kernel or self.is_pooled)  # each feature is a channel at one position
        if isinstance(layer, nn.Linear):
            self._emit(self._convolution(layer))
        elif flattened and isinstance(layer, nn.BatchNorm1d):
            self._fold(layer)
        elif flattened and not isinstance(layer, _DROPOUT) and (self.affine or isinstance(layer, nn.LayerNorm)):
            self._refuse(node, "stands between a flatten and its linear layer, where it has no per-position form")
        elif isinstance(layer, nn.BatchNorm1d):
            self._emit(_batch_norm_2d(layer))
        elif isinstance(layer, nn.LayerNorm):
            self._call_method("permute", 0, 2, 3, 1)
            self._emit(copy.deepcopy(layer))
            self._call_method("permute", 0, 3, 1, 2)
        elif isinstance(layer, _DROPOUT):
            self._emit(nn.Dropout(layer.p))
        elif self.analysis.shapes[node] == before and self._is_elementwise(node):
            self._copy(node)
        else:
            self._refuse(node, "mixes features in a way that has no per-position form")

    def _fold(self, norm: nn.BatchNorm1d) -> None:
        """A batch norm of flattened features becomes part of the linear layer behind it."""
        zeros = torch.zeros(1, norm.num_features, device=self.analysis.images.device)
        shift = norm(zeros)[0]
        scale = norm(zeros + 1)[0] - shift
        if self.affine is not None:
            scale, shift = scale * self.affine[0], scale * self.affine[1] + shift
        self.affine = (scale, shift)

    def _to_vector(self, node: fx.Node, before: torch.Size, after: torch.Size) -> None:
        """Flatten, or a mean over all positions."""
        positions = before[2:].numel()
        if after[1] == before[1] and positions > 1:
            self._pool_all(node)
        elif after[1] != before[1:].numel():
            self._refuse(node, "is no flatten")
        elif not self.is_pooled and positions > 1:
            moved = self._moved(node)
            if moved is None:
                self._refuse(node, "is no flatten")
            self._remember(moved)
        self.is_vector = True

    def _pool_all(self, node: fx.Node) -> None:
        before = self._before(node)
        shape = before if self.order is None else self.shape
        maps = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0)).to(self.analysis.images)
        moved = maps if self.order is None else maps.flatten()[self.order.flatten()].view(before)
        answer = self._ask(node, moved).double().flatten()
        means = maps.double().flatten(2).mean(2).flatten()
        times = float(answer @ means / (means @ means))
        if not torch.allclose(answer, times * means, atol=1e-5 * max(abs(times), 1.0)):
            self._refuse(node, "pools in another way than by the mean")
        if abs(times - 1) > 1e-5:  # a sum, which the head may divide later
            whole = round(times)
            times = whole if abs(times - whole) < 1e-4 * abs(times) else times
            with self.graph.inserting_before(self.output):
                self.output.args = (self.graph.call_function(operator.mul, (self.output.args[0], times)),)
        self.is_pooled, self.order = True, None

    # ------------------------------------------------------------ layers

    def _convolution(self, linear: nn.Linear) -> nn.Conv2d:
        """A linear layer at every position; the first one after a flatten takes the whole map as its kernel."""
        weight: Tensor = linear.weight
        bias: Tensor | None = linear.bias
        if self.affine is not None:
            scale, shift = self.affine
            bias = weight @ shift if bias is None else bias + weight @ shift
            weight, self.affine = weight * scale, None
        if self.has_kernel or self.is_pooled:
            kernel = weight[:, :, None, None]
        else:
            channels, height, width = self._map_shape()
            weight = self._in_map_order(weight)
            weight = weight.reshape(len(weight), channels, -1) @ self._resampling_matrix(height, width)
            kernel = weight.reshape(len(weight), channels, height, width)
            self.kernel = (height, width)
        self.has_kernel = True
        size = (kernel.shape[2], kernel.shape[3])
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], size, bias=bias is not None, device="meta")
        conv.to_empty(device=kernel.device).to(kernel.dtype)
        conv.weight.copy_(kernel)
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
        return conv

    def _in_map_order(self, weight: Tensor) -> Tensor:
        """The columns of a linear layer behind a flatten in the order of (C, h, w)."""
        if self.order is None:
            return weight
        columns = self.order[0].flatten()
        if int(columns.max()) >= weight.shape[1]:
            raise RecastError("the flatten mixes images")
        ordered = torch.empty_like(weight)
        ordered[:, columns] = weight
        return ordered

    def _map_shape(self) -> tuple[int, int, int]:
        first = self.resampling[0] if self.resampling else None
        shape = self.shape if first is None else self._before(first)
        return shape[1], shape[2], shape[3]

    def _resampling_matrix(self, height: int, width: int) -> Tensor:
        """What the pools to a fixed size do to the positions of one channel, (positions after, before)."""
        like = self.analysis.images
        basis = torch.eye(height * width, device=like.device, dtype=like.dtype)
        if not self.resampling:
            return basis
        answers = basis.reshape(-1, 1, height, width)
        noise = torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(0)).to(like)
        expected = noise.flatten(1)
        for node in self.resampling:
            answers, noise = self._ask(node, answers), self._ask(node, noise)
        matrix = answers.flatten(1).T
        if not torch.allclose(expected @ matrix.T, noise.flatten(1), atol=1e-4):
            self._refuse(self.resampling[-1], "is no linear pool")
        return matrix

    @staticmethod
    def _same(logits: Tensor) -> nn.Linear:
        """The identity, behind maps that are logits already."""
        count = logits.shape[1]
        layer = nn.Linear(count, count, device="meta").to_empty(device=logits.device).to(logits.dtype)
        layer.weight.copy_(torch.eye(count))
        layer.bias.zero_()
        return layer

    # ------------------------------------------------------------ the graph

    def _emit(self, layer: nn.Module) -> None:
        name = f"{self.prefix}head{len(self.layers)}"
        self.layers.append(name)
        self.network.add_submodule(name, layer.eval())
        with self.graph.inserting_before(self.output):
            self._append(self.graph.call_module(name, (self.output.args[0],)))
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Conv2d) and weight is not None:
            self.shape = torch.Size((2, len(weight), 1, 1))

    def _copy(self, node: fx.Node) -> None:
        """The step itself, in its own form; a layer under a name of the new head."""
        layer = self._layer(node)
        if layer is not None:
            self._emit(copy.deepcopy(layer))
        else:
            if node.target in (F.relu, torch.relu, "relu"):
                self._emit(nn.ReLU())
            else:
                source = next(s for s in node.all_input_nodes if s.op != "get_attr")
                with self.graph.inserting_before(self.output):
                    step = self.output.args[0]
                    self._append(self.graph.node_copy(node, lambda n: step if n is source else self._constant(n)))
        if not self.is_vector and not self.is_pooled:
            self.shape = self.analysis.shapes[node]

    def _constant(self, node: fx.Node) -> Any:
        """A tensor of the network's own; behind the pool also a number, such as how many cells a sum went over."""
        number = self.analysis.constants.get(node)
        if isinstance(number, int | float) and (self.is_vector or self.is_pooled):
            return number
        if node.op != "get_attr":
            self._refuse(node, "is used apart from the chain of the head")
        return self.graph.get_attr(str(node.target))

    def _call_method(self, name: str, *arguments: int) -> None:
        with self.graph.inserting_before(self.output):
            self._append(self.graph.call_method(name, (self.output.args[0], *arguments)))

    def _append(self, node: fx.Node) -> None:
        self.output.args = (node,)
        self.pool_moved |= self.is_pooled

    # ------------------------------------------------------------ asking

    def _layer(self, node: fx.Node) -> nn.Module | None:
        if node.op == "call_module":
            return self.network.get_submodule(str(node.target))
        if node.target not in (F.linear, F.layer_norm):
            return None
        tensors = [self.network.get_parameter(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
        if not tensors:
            return None
        weight, bias = (*tensors, None)[:2]
        layer: nn.Linear | nn.LayerNorm
        if node.target is F.linear:
            layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # type: ignore[union-attr]
        else:
            eps = node.args[4] if len(node.args) > 4 else node.kwargs.get("eps", 1e-5)
            layer = nn.LayerNorm(weight.shape, eps, device="meta")  # type: ignore[union-attr,arg-type]
        layer.register_parameter("weight", weight)
        layer.register_parameter("bias", bias)
        return layer

    def _source(self, node: fx.Node) -> fx.Node:
        sources = self._sources(node)
        if len(sources) != 1:
            self._refuse(node, "joins several branches")
        return next(iter(sources))

    def _sources(self, node: fx.Node) -> set[fx.Node]:
        """The tensors that a step works on, without the network's own."""
        return {source for source in node.all_input_nodes if source in self.analysis.shapes and source.op != "get_attr"}

    def _before(self, node: fx.Node) -> torch.Size:
        return self.analysis.shapes[self._source(node)]

    def _ask(self, node: fx.Node, value: Tensor) -> Tensor:
        """The answer of one step to a value."""
        answer: Tensor = as_module(self.network, self._step(node))(value)
        return answer

    def _step(self, node: fx.Node) -> fx.Graph:
        return extract(self.network.graph, self._source(node), node, constants=self.analysis.constants)

    def _is_elementwise(self, node: fx.Node) -> bool:
        """Whether every output depends on its own input only, and on each in the same way."""
        count = self._before(node)[1]
        values = torch.randn(2, count, generator=torch.Generator().manual_seed(0)).to(self.analysis.images)
        others = values.clone()
        others[:, 1:] += 1.0
        answer = self._ask(node, values.clone())  # the step may work in place
        turned = self._ask(node, values.roll(1, dims=1)).roll(-1, dims=1)
        alone = self._ask(node, others)
        return torch.allclose(answer, turned, atol=1e-6) and torch.allclose(answer[:, 0], alone[:, 0], atol=1e-6)

    def _refuse(self, node: fx.Node, why: str) -> NoReturn:
        name = str(node.target) if node.op == "call_module" else node.name
        raise RecastError(f"{name} {why}")


def _of_one(step: nn.Module, source: fx.Node) -> Rerun:
    return lambda given, others=None: step(given[source])  # noqa: ARG005 - there are no others


def _batch_norm_2d(layer: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """The same batch norm at every position."""
    options = {"eps": layer.eps, "momentum": layer.momentum, "affine": layer.affine}
    norm = nn.BatchNorm2d(layer.num_features, track_running_stats=layer.track_running_stats, **options)  # type: ignore[arg-type]
    norm.load_state_dict(copy.deepcopy(layer.state_dict()))
    return norm.to(next(iter(layer.state_dict().values())).device)
