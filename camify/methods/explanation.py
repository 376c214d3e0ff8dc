"""explain: heat maps of images by name of the method."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, overload

from torch import Tensor, nn

from ..console import shown, warn
from ..errors import ConfigError, ConstantMapWarning
from ..eval_mode import plain_tensors
from ..maps import upsample
from ..preprocessing import LARGEST_SIDE, sides_of
from ..sources import Source, source_of
from ..task import Task
from .augmentations import check_augmentations
from .base import Method, Targets, check_targets, find_method
from .cam import CAM
from .forward_pass import observe, unwrapped
from .given_images import network_input

__all__ = ["explain", "make_methods"]


@overload
def explain(
    model: nn.Module | str | Source, images: Any, *, method: str = ..., targets: Targets = ...,
    layer: str | Sequence[str] | None = ..., normalize: str | None = ...,
    size: str | int | tuple[int, int] | None = ..., task: str | Task | None = ...,
    augmentations: str | Sequence[str] | None = ..., **method_options: Any,
) -> Tensor: ...  # fmt: skip
@overload
def explain(
    model: nn.Module | str | Source, images: Any, *, method: Sequence[str], targets: Targets = ...,
    layer: str | Sequence[str] | None = ..., normalize: str | None = ...,
    size: str | int | tuple[int, int] | None = ..., task: str | Task | None = ...,
    augmentations: str | Sequence[str] | None = ..., **method_options: Any,
) -> dict[str, Tensor]: ...  # fmt: skip
@plain_tensors()
def explain(
    model: nn.Module | str | Source,
    images: Any,
    *,
    method: str | Sequence[str] = "cam",
    targets: Targets = None,
    layer: str | Sequence[str] | None = None,
    normalize: str | None = "minmax",
    size: str | int | tuple[int, int] | None = "input",
    task: str | Task | None = None,
    augmentations: str | Sequence[str] | None = None,
    **method_options: Any,
) -> Tensor | dict[str, Tensor]:
    """Heat maps (N, H, W) in [0, 1] of images (N, 3, H, W), of one method or of several from one forward.

    Raw map -> ReLU, where the method has one -> upsampled (bilinear, half-pixel) -> normalized once, in this order.
    A map that is constant then gives zeros, and a ``ConstantMapWarning`` says which.

    Args:
        model: any network that classifies images, left as it was: modes, gradients and hooks; or a source such as
            ``"torchvision/resnet50"``.
        images: (N, 3, H, W) float, prepared as the network expects, or one image (3, H, W), which is a batch of one;
            tensors or NumPy arrays, on any device, in any precision. Or pictures, which are prepared by the
            preprocessing that the network carries: uint8 tensors or arrays (N, 3, H, W), (H, W, 3), (N, H, W, 3),
            (H, W), PIL images, image files, or a list of these. Where nothing says how the network wants its pictures,
            a warning says what is assumed, once.
        method: a name of ``camify.methods.METHODS``, such as ``"cam"``, ``"gradcam"`` or ``"scorecam"``;
            or a list of names: then a dict by name comes back.
        targets: None (top-1), one class, one class per image (N,), or T per image (N, T): then (N, T, H, W). A network
            of one logit has two classes: with names (negative, positive) 0 is evidence against and 1 evidence for;
            without two names 0 is evidence for, also for None, and 1 evidence against. Classes of a network that
            knows their names can be given by name, alone or in lists.
        layer: exact name of the module whose map is looked at; None is the last spatial map. A list of names, each
            computed from the one before, where the method fuses them (``"layercam"``).
        normalize: ``"minmax"`` (each map by its own extremes), or None for raw values, signed, without ReLU.
        size: ``"input"`` (of pictures, the size to which they are prepared), (height, width), one number for both, or
            None for map resolution.
        task: ``"multiclass"``, ``"multilabel"`` or ``"binary"``: what the logits mean, for methods that look at
            probabilities; None: what the network says, see ``observe``.
        augmentations: ``"flip"``, ``"shifts"``, ``"sizes"`` or several: raw maps are the mean over the image and its
            views, whose 1, 4 and 2 forwards all methods and classes share; see ``camify.methods.views_of``. None: the
            image alone.
        **method_options: such as ``variant``; of several methods every one gets those that it has.

    Raises:
        ConfigError: a name or option is unknown, or targets do not match the images; or the network cannot run the
            images in other sizes.
        ConversionError: the method needs a CAM-ready network, or the network cannot be run, returns no logits (N, K),
            or has no map.
        DataError: a picture cannot be read, or the network gives NaN or infinite values.

    A network that gives other outputs for the same image each time is named once, in a warning.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> _ = [nn.init.ones_(parameter) for parameter in network.parameters()]  # map of class 0: image + 1
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> explain(network, image, targets=0, normalize=None, size=None)
        tensor([[[1., 2.],
                 [3., 4.]]])
        >>> explain(network, image, method="gradcam", targets=0, normalize=None, size=None)  # CAM / (h w)
        tensor([[[0.2500, 0.5000],
                 [0.7500, 1.0000]]])
        >>> explain(network, image, targets=0)  # heat
        tensor([[[0.0000, 0.3333],
                 [0.6667, 1.0000]]])
    """
    source = source_of(unwrapped(model) if isinstance(model, nn.Module) else model)
    names = _method_names(method)
    if normalize not in ("minmax", None):
        raise ConfigError(f"normalize={normalize!r} is unknown. Choose 'minmax' or None.")
    network = source.explained_by(names).model
    layer = _layer_names(network, layer)
    methods = make_methods(network, names, layer, method_options, augmentations=augmentations)
    require_forward_only(source, methods)
    gradients = any(item.uses_gradients for item in methods.values())
    batch = network_input(network, images, source.preprocessing, source.input_size)
    heat_size = _heat_size(size, batch)
    with observe(
        network, batch, layer, gradients=gradients, task=task or source.task, class_names=source.class_names
    ) as forward:
        chosen = check_targets(targets, forward.logits, forward.classes)
        raw = {name: item.raw_maps(forward, chosen) for name, item in methods.items()}
    if normalize is None:
        heats = raw if heat_size is None else {name: upsample(maps, heat_size) for name, maps in raw.items()}
    else:
        heats = {name: methods[name].heat(maps, heat_size) for name, maps in raw.items()}
        for name, heat in heats.items():
            _report_constant(name, heat)
    return heats[method] if isinstance(method, str) else heats


def require_forward_only(source: Source, methods: Mapping[str, Method]) -> None:
    """Refuse methods that need gradients or layers of a network that runs forward only.

    Raises:
        ConversionError: it does; names the methods.
    """
    refused = [name for name, method in methods.items() if method.uses_gradients or isinstance(method, CAM)]
    if refused:
        source.require_gradients(f"{', '.join(refused)} cannot be used")


def make_methods(
    model: nn.Module,
    names: Sequence[str],
    layer: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    augmentations: str | Sequence[str] | None = None,
) -> dict[str, Method]:
    """Methods by name for one network; every one gets those of the options that it has, and all the augmentations.

    Raises:
        ConfigError: a name or augmentation is unknown, or no method has an option.

    Example:
        >>> methods = make_methods(nn.Identity(), ["cam", "gradcam++"], options={"variant": "authors"})
        >>> list(methods), methods["gradcam++"].variant
        (['cam', 'gradcam++'], 'authors')
    """
    if not names:
        raise ConfigError("method=[]: name at least one.")
    classes = {name: find_method(name) for name in names}
    accepted = {name: {*inspect.signature(kind).parameters} - {"model", "layer"} for name, kind in classes.items()}
    for option in options or {}:
        if not any(option in known for known in accepted.values()):
            known = sorted(set().union(*accepted.values()))
            raise ConfigError(f"{option}: no option of {', '.join(names)}. Known: {', '.join(known) or 'none'}.")
    methods = {
        name: kind(model, layer, **{key: value for key, value in (options or {}).items() if key in accepted[name]})
        for name, kind in classes.items()
    }
    for method in methods.values():
        method.augmentations = check_augmentations(augmentations)
    return methods


def _method_names(method: Any) -> list[str]:
    names = [method] if isinstance(method, str) else method
    if not isinstance(names, list | tuple | set) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"method={shown(repr(method))[:80]}: expected the name of a method, or a list of names.")
    return list(names)


def _layer_names(network: nn.Module, layer: Any) -> str | list[str] | None:
    if layer is None or isinstance(layer, str):
        return layer
    if isinstance(layer, list | tuple) and layer and all(isinstance(name, str) for name in layer):
        return list(layer)
    name = next((name for name, module in network.named_modules() if module is layer), "")
    hint = f" This one is called {name!r}." if name else ""
    raise ConfigError(
        "layer: expected the name of one module, as in network.named_modules(), or a list of names, not"
        f" {type(layer).__name__}.{hint}"
    )


def _heat_size(size: Any, images: Tensor) -> tuple[int, int] | None:
    """Height and width of the heat; None for map resolution."""
    if size is None:
        return None
    if isinstance(size, str) and size == "input":
        return images.shape[-2], images.shape[-1]
    sides = sides_of(size)
    if sides is None:
        raise ConfigError(
            f"size={shown(repr(size))[:80]}: choose 'input', (height, width), whole numbers from 1 to {LARGEST_SIDE},"
            " or None."
        )
    return sides


def _report_constant(name: str, heat: Tensor) -> None:
    constant = (heat.amax((-2, -1)).reshape(len(heat), -1) == 0).any(1).nonzero().flatten().tolist()
    if constant:
        images = ", ".join(map(str, constant[:10])) + (", ..." if len(constant) > 10 else "")
        warn(
            f"{name}: nothing to show for image {images} of the batch: the map is constant, or nowhere positive"
            " before its ReLU. It is all zeros.",
            ConstantMapWarning,
            stacklevel=3,
        )
