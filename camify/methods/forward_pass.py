"""One forward of a network, cut at a layer, for all methods that look at it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ConfigError, ConversionError, DataError
from ..eval_mode import channels_last, eval_mode, one_at_a_time, plain_tensors
from ..graphs import task_of
from ..logits import lacks_memory, require_gradients, running
from ..model import CAMNet
from ..task import Classes, Task
from .augmentations import View
from .feature_split import Split
from .several_layers import SplitAtLayers, split_at

__all__ = [
    "PRECISIONS", "ForwardPass", "left_as_it_was", "many_forwards", "not_finite", "observe", "unwrapped",
]  # fmt: skip

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # for autocast


@contextmanager
def many_forwards(
    network: nn.Module, device: torch.device, precision: str, at_once: int | None = None
) -> Iterator[int]:
    """How many images one of many forwards takes (VGG16 at 224 px: fastest so on 2 CPU cores and on an H100).

    Meanwhile the network's kernels lie in the order of memory in which they run faster.
    """
    is_cpu, is_half = device.type == "cpu", precision != "fp32"
    with channels_last(network) if is_cpu or is_half else nullcontext():
        yield at_once or (8 if is_cpu else 64 if is_half else 32)


class ForwardPass:
    """What one forward of a batch gave, and what can be asked of the network beside it.

    Made by ``observe``; to be used inside its context, or later inside ``left_as_it_was``. All tensors are float32
    (float64 where the network is). K is the number of classes: of a network of one logit 2 (see ``Classes``), with
    opposite logits and weights.

    Attributes:
        model: the network.
        images: (N, 3, H, W).
        classes: what the logits mean, for their probabilities.
        logits: (N, K), before a softmax or sigmoid that the network may end in.
        activations: A, the map (N, C, h, w) of the layer; of several layers the first one's.
        layer: its name; of several layers their names.
        split: the network cut at it.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, parts: Split, *, gradients: bool, task: str | Task | None,
        names: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self.model, self.images, self.split, self.layer = model, images, parts, parts.layer
        self._for_gradients, self._views = gradients, dict[View, ForwardPass]()
        device = images.device.type
        self._autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        with running(model, images):
            value, self._rest = parts.features(images)
        self._value = value.detach()
        self._graph: tuple[list[Tensor], Tensor] | None = None  # the layers' values, and the logits that follow
        self._gradients: tuple[Tensor, list[Tensor]] | None = None  # the last targets, and the gradients of each layer
        with running(model, images):
            if gradients and parts.classifier is None:
                logits = self._build_graph()[1]
            else:
                logits = parts.head(self._value, self._rest)
        bad = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise not_finite("The network's answer to", bad[0], self.layer)
        count = logits.shape[1]
        self.classes = Classes.of(task_of(parts.activation, count) if task is None else task, names, count)
        self.logits, self.activations = self._wide_classes(logits.detach()), _wide(self._value)

    @property
    def weight(self) -> Tensor | None:
        """Weights (K, C) of the linear layer behind global average pooling, where the head is just that."""
        layer = self.split.classifier
        return None if layer is None else self._wide_classes(layer.weight.detach().flatten(1), 0)

    @property
    def bias(self) -> Tensor | None:
        """Its bias (K,), zeros where it has none; None where the head is something else."""
        layer = self.split.classifier
        if layer is None:
            return None
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        return self._wide_classes(bias, 0)

    @property
    def probabilities(self) -> Tensor:
        """Of the classes, (N, K)."""
        return self.classes.probabilities(self.logits)

    @property
    def takes_any_batch(self) -> bool:
        """Whether ``head`` takes any number of maps: nothing of the images flows past the layer."""
        return not self._rest

    def gradients(self, targets_N: Tensor) -> Tensor:
        """dy_c / dA, (N, C, h, w): of the logit of one class per image, by the layer's map.

        Where the head is global average pooling and a linear layer it is w_kc / (h w), which needs no backward pass.
        Elsewhere the head alone is gone through backwards: never the features, nor any parameter.
        """
        weight = self.weight
        if weight is not None:
            positions = self.activations.shape[-2:].numel()
            return (weight[targets_N] / positions)[:, :, None, None].expand_as(self.activations)
        return _wide(self._gradients_of_layers(targets_N)[0])

    def gradient_of(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient (N, C, h, w) of a score (N,) of the logits (N, K), by the layer's map."""
        values, logits = self._graph or self._build_graph()
        with torch.enable_grad():
            total = score(self._wide_classes(logits)).sum()
        return _wide(self._derived(total, values[:1])[0])

    def gradient_and_curvature(self, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient g of a score (N,) of the logits (N, K), and H A, of its Hessian and the map; both (N, C, h, w).

        Raises:
            ConversionError: a step behind the layer cannot be derived twice.
        """
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the faster kinds of attention derive once
            (leaf, *_), logits = self._build_graph()
            total = score(self._wide_classes(logits)).sum()
            (gradient,) = self._derived(total, [leaf], create_graph=True)
            product = None
            if gradient.requires_grad:  # else it does not depend on the map
                try:
                    (product,) = torch.autograd.grad(
                        gradient, leaf, leaf.detach(), retain_graph=True, allow_unused=True
                    )
                except RuntimeError as error:
                    raise ConversionError(
                        f"layer {self.layer}: a step behind it cannot be derived twice: {error} Use gradcam."
                    ) from error
        gradient = _wide(gradient.detach())
        return gradient, torch.zeros_like(gradient) if product is None else _wide(product)

    def of_images(self, images_NCHW: Tensor) -> ForwardPass:
        """The forward of other images, for its gradients too: the same network, cut at the same layer."""
        return self._of_images(images_NCHW, gradients=True)

    def of_view(self, view: View) -> ForwardPass:
        """The forward of the images in another form; it is run once, for all methods and classes.

        Raises:
            ConfigError: the network cannot run them in that size.
        """
        if view not in self._views:
            images = view.of(self.images)
            try:
                self._views[view] = self._of_images(images, gradients=self._for_gradients)
            except Exception as error:
                if view.size is None or isinstance(error, DataError) or lacks_memory(error):
                    raise
                sizes = [" x ".join(map(str, one.shape[-2:])) for one in (self.images, images)]
                raise ConfigError(
                    f"augmentations: the network runs images of {sizes[0]}, but not of {sizes[1]}, which 'sizes' needs:"
                    f" {' '.join(str(error).split())[:200]}. Leave 'sizes' out."
                ) from error
        return self._views[view]

    def _of_images(self, images: Tensor, *, gradients: bool) -> ForwardPass:
        with self._as_called():
            return ForwardPass(
                self.model, images, self.split, gradients=gradients, task=self.classes.task, names=self.classes.names
            )

    def maps_and_gradients(self, targets_N: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and dy_c / dA, both (N, C, h, w), of each layer in the order of the network, from one backward pass."""
        parts = self.split
        if not isinstance(parts, SplitAtLayers):
            return [(self.activations, self.gradients(targets_N))]
        first, *gradients = self._gradients_of_layers(targets_N)
        values = (self._graph or self._build_graph())[0][1:]
        later = [
            (_wide(parts.map_of(index, value.detach())), _wide(parts.map_of(index, gradient)))
            for index, (value, gradient) in enumerate(zip(values, gradients, strict=True))
        ]
        return [(self.activations, _wide(first)), *later]

    def _gradients_of_layers(self, targets_N: Tensor) -> list[Tensor]:
        if self._gradients is None or not torch.equal(self._gradients[0], targets_N):
            values, logits = self._graph or self._build_graph()
            with torch.enable_grad():
                score = self.classes.two_sided(logits).gather(1, targets_N[:, None]).sum()
            self._gradients = (targets_N, self._derived(score, values))
        return self._gradients[1]

    def _derived(self, score: Tensor, values: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
        gradients = torch.autograd.grad(score, values, retain_graph=True, create_graph=create_graph, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise ConversionError(f"layer {self.layer}: the logits do not depend on it. Give another layer.")
        return list(gradients)

    @torch.no_grad()
    def head(self, maps_MCHW: Tensor) -> Tensor:
        """Logits (M, K) of maps in the place of the layer's; M is N unless ``takes_any_batch``."""
        with self._as_called(), running(self.model, self.images):
            return self._wide_classes(self.split.head(maps_MCHW.to(self._value.dtype), self._rest))

    @torch.no_grad()
    def network(self, images_MCHW: Tensor, *, autocast: torch.dtype | None = None) -> Tensor:
        """Logits (M, K) of other images; under autocast of a type, where one is given."""
        half = torch.autocast(self.images.device.type, dtype=autocast)
        with self._as_called() if autocast is None else half, running(self.model, images_MCHW):
            return self._wide_classes(self.split.logits(images_MCHW))

    def with_graph(self, images_MCHW: Tensor) -> Tensor:
        """Logits (M, K) of images, from which gradients go back through the whole network."""
        require_gradients(self.model)
        with torch.enable_grad(), self._as_called(), running(self.model, images_MCHW), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar")  # its own code
            return self._wide_classes(self.split.logits(images_MCHW))

    def _wide_classes(self, values: Tensor, dim: int = 1) -> Tensor:
        return self.classes.two_sided(_wide(values), dim)

    def _as_called(self) -> torch.autocast:
        enabled, dtype = self._autocast
        return torch.autocast(self.images.device.type, dtype=dtype, enabled=enabled)

    def _build_graph(self) -> tuple[list[Tensor], Tensor]:
        require_gradients(self.model)
        leaf, parts, later = self._value.clone().requires_grad_(), self.split, list[Tensor]()
        with torch.enable_grad(), self._as_called():  # of a copy: the head may begin with a step in place
            if isinstance(parts, SplitAtLayers):
                logits, later = parts.head_and_values(leaf * 1, self._rest)
            else:
                logits = parts.head(leaf * 1, self._rest)
        if not logits.requires_grad:
            raise ConversionError(f"layer {self.layer}: no gradient reaches it from the logits. Give another layer.")
        self._graph = ([leaf, *later], logits)
        return self._graph


@contextmanager
def observe(
    model: nn.Module,
    images: Tensor,
    layer: str | Sequence[str] | None = None,
    *,
    gradients: bool = False,
    task: str | Task | None = None,
    class_names: Sequence[str] | None = None,
    parts: Split | None = None,
) -> Iterator[ForwardPass]:
    """One forward in eval mode; modes, gradients and hooks are left as they were, also under ``inference_mode``.

    Args:
        model: any network that classifies images; also wrapped in DDP, DataParallel or torch.compile.
        images: (N, 3, H, W), prepared as the network expects.
        layer: exact name of a module, or of several, each computed from the one before; None is the last spatial map,
            found by running the network.
        gradients: whether a method is going to ask for them.
        task: what the logits mean; None takes the network's own, else what its last activation says, else of one logit
            ``binary`` and of several ``multiclass``.
        class_names: in order; None takes the network's own. Of one logit two names say which class is the first.
        parts: the network as it is cut there, where that is known.

    Raises:
        ConfigError: no module has that name, or it gives no map; or the task does not fit the logits.
        ConversionError: the network cannot be run, or has no map.
        DataError: its logits are not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map: image + 1; logits: its mean + 1
        >>> with observe(network, torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])) as forward:
        ...     print(forward.activations.flatten(), forward.logits)
        tensor([1., 2., 3., 4.]) tensor([[3.5000, 3.5000]])
    """
    model = unwrapped(model)
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        kind = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ConversionError(f"images: expected (N, C, H, W), got {kind}.")
    with left_as_it_was(model):
        images = images.clone() if images.is_inference() else images.detach()
        if isinstance(model, CAMNet):
            task, class_names = task or model.task, class_names or model.class_names
        parts = parts or split_at(model, images, layer)
        yield ForwardPass(model, images, parts, gradients=gradients, task=task, names=class_names)


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, one thread at a time: how a ``ForwardPass`` is made, and how it is asked later."""
    with one_at_a_time, plain_tensors(), torch.no_grad(), eval_mode(model):
        yield


def not_finite(what: str, image: int, layer: str) -> DataError:
    """The error of NaN or infinite values of an image of the batch."""
    return DataError(
        f"{what} image {image} of the batch is not finite, at layer {layer}. Look for NaN or infinite values in the"
        " image and the weights."
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DDP, DataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
