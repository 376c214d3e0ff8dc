"""What an explanation method is, and the names under which methods are known."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..console import shown
from ..errors import ConfigError
from ..maps import normalize, upsample
from ..sources.source import require_network
from ..task import Classes, class_index
from .augmentations import AUGMENTATIONS, mean_map, views_of
from .forward_pass import ForwardPass, not_finite, observe, unwrapped
from .given_images import network_input

__all__ = ["METHODS", "Method", "check_targets", "find_method", "register"]

Targets = int | str | Sequence[int] | Sequence[str] | Tensor | None


class Method(ABC):
    """An explanation method: raw, signed maps (N, h, w) of images, from one forward.

    A new one says how its maps follow from a ``ForwardPass`` (``maps``), and gets a name by ``register``.

    Args:
        model: any network that classifies images.
        layer: exact name of the module whose map is looked at; None is the last spatial map. Names of several, each
            computed from the one before, where the method fuses their maps.

    Raises:
        ConfigError: several layers are given to a method that looks at one.
    """

    uses_gradients: ClassVar[bool] = False
    """Whether ``maps`` asks for gradients; so the forward can be prepared for it."""
    relu: ClassVar[bool] = True
    """Whether the method's own definition ends in a ReLU. It is applied on the way to heat, not to raw maps."""
    class_discriminative: ClassVar[bool] = True
    """Whether the map depends on the class; where it does not, it is the same for every target."""
    fuses_layers: ClassVar[bool] = False
    """Whether the method makes one map of several layers'."""
    augmentations: tuple[str, ...] = ()
    """Of ``camify.methods.AUGMENTATIONS``: raw maps are then the mean over the image and its views. Set by
    ``make_methods``."""

    def __init__(self, model: nn.Module, layer: str | Sequence[str] | None = None) -> None:
        require_network(model)
        if not (layer is None or isinstance(layer, str) or self.fuses_layers):
            raise ConfigError(
                f"layer={', '.join(layer)}: {type(self).__name__} looks at one layer. Several are fused by LayerCAM"
                " (method='layercam')."
            )
        self.model, self.layer = unwrapped(model), layer

    @abstractmethod
    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """Raw maps (N, h, w) of one class per image."""

    def further_forwards(self, channels: int) -> int:  # noqa: ARG002 - of most methods none, however many channels
        """Forwards of the whole network that one map takes beside the shared one, at a layer of so many channels."""
        return 0

    def all_forwards(self, channels: int) -> int:
        """``further_forwards`` of the image and of its views, and those of the views, which methods share."""
        views = sum(AUGMENTATIONS[name] for name in self.augmentations)
        return views + (1 + views) * self.further_forwards(channels)

    def __call__(self, images: Any, targets: Targets = None) -> Tensor:
        """Raw maps (N, h, w) of images (N, 3, H, W) for the targets, before ReLU, at map resolution.

        Args:
            images: prepared as the network expects, or pictures; see ``camify.explain``.
            targets: top-1 (None), one class, one class per image (N,), or T per image (N, T): then (N, T, h, w); by
                number or, where the network knows them, by name.

        Raises:
            ConfigError: the number of targets is not that of the images, or one is no class.
            DataError: the network gives NaN or infinite values.
        """
        images = network_input(self.model, images)
        with observe(self.model, images, self.layer, gradients=self.uses_gradients) as forward:
            return self.raw_maps(forward, check_targets(targets, forward.logits, forward.classes))

    def raw_maps(self, forward: ForwardPass, targets: Tensor) -> Tensor:
        """Raw maps of a forward that other methods share, for targets (N,) or (N, T)."""
        if targets.dim() == 2:
            return torch.stack([self.raw_maps(forward, column) for column in targets.unbind(1)], dim=1)
        with torch.autocast(forward.images.device.type, enabled=False):
            return self._finite(self.averaged(forward, lambda one_forward: self.maps(one_forward, targets)), forward)

    def _finite(self, maps: Tensor, forward: ForwardPass) -> Tensor:
        """The maps themselves, where they are finite."""
        bad = (~maps.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            raise not_finite(f"{type(self).__name__}: the map of", bad[0], forward.layer)
        return maps

    def averaged(self, forward: ForwardPass, maps_of: Callable[[ForwardPass], Tensor]) -> Tensor:
        """What a function makes of a forward, maps (..., h, w): the mean over the image and its augmented views.

        Raises:
            ConfigError: the network cannot run the image in another size.
        """
        plain = maps_of(forward)
        if not self.augmentations:
            return plain
        height, width = forward.images.shape[-2:]
        grid = (forward.activations.shape[-2], forward.activations.shape[-1])
        views = views_of(self.augmentations, (height, width), grid)
        return mean_map(plain, ((view, maps_of(forward.of_view(view))) for view in views), (height, width))

    def heat(self, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Raw maps (..., h, w) as heat (..., H, W) in [0, 1]: ReLU where the method has one, upsampled, min-max.

        Each map is scaled by its own extremes, once, at the end; a constant one gives zeros.
        """
        positive = maps.relu() if self.relu else maps
        return normalize(positive if size is None else upsample(positive, size))


METHODS: dict[str, type[Method]] = {}
"""Methods by name; ``register`` adds to them."""

_MethodClass = TypeVar("_MethodClass", bound=type[Method])


class register:  # noqa: N801 - a decorator
    """Class decorator that makes a method known by a name: ``@register("mine")``.

    An installed package can do so for the command line too, by an entry point in the group ``camify.methods``.

    Raises:
        ConfigError: the name is taken by another class, or the class is no Method.

    Example:
        >>> @register("mean")
        ... class Mean(Method):
        ...     def maps(self, forward, targets_N):
        ...         return forward.activations.mean(1)
        >>> find_method("mean") is METHODS.pop("mean")  # taken back, for this example only
        True
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, method: _MethodClass) -> _MethodClass:
        """The class itself."""
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise ConfigError(f"{self.name}: {method!r} is no camify.methods.Method.")
        taken = METHODS.get(self.name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (method.__module__, method.__qualname__):
            raise ConfigError(f"{self.name}: this name is taken by {taken.__qualname__}. Choose another.")
        METHODS[self.name] = method
        return method


def find_method(name: str) -> type[Method]:
    """The method of a name: camify's, registered, or of an installed package.

    Raises:
        ConfigError: there is none; lists those that there are.

    Example:
        >>> find_method("gradcam++").__name__
        'GradCAMPlusPlus'
    """
    if name not in METHODS:
        for point in entry_points(group="camify.methods", name=name):
            register(name)(point.load())
    if name not in METHODS:
        raise ConfigError(f"method={name!r} is unknown.{_guess(name)} Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def _guess(name: str) -> str:
    """What may have been meant by the name of no method."""
    parts = re.split(r"[,;\s]+", name)
    if len(parts) > 1 and all(part in METHODS for part in parts):
        return f" Several methods are given one by one: --method {' '.join(parts)}, in Python {parts}."
    close = difflib.get_close_matches(name.casefold().replace("-", "").replace("_", ""), METHODS, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def check_targets(targets: Any, logits_NK: Tensor, classes: Classes | None = None) -> Tensor:
    """Targets as classes (N,), or (N, T), on the device of the logits; None: the predicted ones, as ``classes`` say.

    Raises:
        ConfigError: their number is not that of the images, or one is no class.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
        >>> check_targets(None, logits), check_targets(2, logits)
        (tensor([1, 0]), tensor([2, 2]))
    """
    count, num_classes = logits_NK.shape
    if targets is None:
        return logits_NK.argmax(dim=1) if classes is None else classes.predicted(logits_NK)
    names = None if classes is None or classes.names is None else classes.titles(num_classes)
    numbers = _numbers_of(targets, names)
    try:
        chosen = torch.as_tensor(numbers, device=logits_NK.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"targets: {shown(repr(targets))[:80]} are no classes. Give None, one class, one per image, or (images,"
            " classes), by number or by name."
        ) from error
    if chosen.dim() == 0:
        chosen = chosen.expand(count)
    is_integer = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    if chosen.dim() > 2 or len(chosen) != count or not chosen.numel() or not is_integer:
        raise ConfigError(
            f"targets: {chosen.dtype} {tuple(chosen.shape)} for {count} images. Give None, one class, one per image, or"
            " (images, classes)."
        )
    if bool(((chosen < 0) | (chosen >= num_classes)).any()):
        raise ConfigError(f"targets: {chosen.tolist()} must lie in 0..{num_classes - 1}.")
    return chosen.long()


def _numbers_of(targets: Any, names: Sequence[str] | None) -> Any:
    """Targets in which every name is the number of its class."""
    if isinstance(targets, str):
        if names is None:
            raise ConfigError(
                f"targets={shown(repr(targets))}: the network has no class names. Give the class's number."
            )
        return class_index(targets, names, "targets")
    if isinstance(targets, np.ndarray):
        return targets if targets.dtype.kind in "biufc" else _numbers_of(targets.tolist(), names)
    return [_numbers_of(item, names) for item in targets] if isinstance(targets, list | tuple) else targets
