"""explain: heat maps of images by name of the method."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, overload

from torch import Tensor, nn

from ..console import warn
from ..errors import ConfigError, ConstantMapWarning
from ..maps import upsample
from ..sources.source import require_network
from ..task import Task
from .base import Method, Targets, check_targets, find_method
from .forward_pass import observe

__all__ = ["explain", "make_methods"]


@overload
def explain(
    model: nn.Module, images: Tensor, *, method: str = ..., targets: Targets = ..., layer: str | None = ...,
    normalize: str | None = ..., size: str | tuple[int, int] | None = ..., task: str | Task | None = ...,
    **method_options: Any,
) -> Tensor: ...  # fmt: skip
@overload
def explain(
    model: nn.Module, images: Tensor, *, method: Sequence[str], targets: Targets = ...,
    layer: str | None = ..., normalize: str | None = ..., size: str | tuple[int, int] | None = ...,
    task: str | Task | None = ..., **method_options: Any,
) -> dict[str, Tensor]: ...  # fmt: skip
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    method: str | Sequence[str] = "cam",
    targets: Targets = None,
    layer: str | None = None,
    normalize: str | None = "minmax",
    size: str | tuple[int, int] | None = "input",
    task: str | Task | None = None,
    **method_options: Any,
) -> Tensor | dict[str, Tensor]:
    """Heat maps (N, H, W) in [0, 1] of images (N, 3, H, W), of one method or of several from one forward.

    Raw map -> ReLU, where the method has one -> upsampled (bilinear, half-pixel) -> normalized once, in this order.
    A map that is constant then gives zeros, and a ``ConstantMapWarning`` says which.

    Args:
        model: any network that classifies images; left as it was, modes, gradients and hooks.
        images: (N, 3, H, W), prepared as the network expects.
        method: ``"cam"``, ``"gradcam"``, ``"gradcam++"``, ``"layercam"``, ``"scorecam"``, ``"reciprocam"``, a
            registered name; or a list of names: then a dict by name comes back.
        targets: None (top-1), one class, one class per image (N,), or T per image (N, T): then (N, T, H, W). A network
            of one logit has two classes: with names (negative, positive) 0 is evidence against and 1 evidence for;
            without two names 0 is evidence for, also for None, and 1 evidence against.
        layer: exact name of the module whose map is looked at; None is the last spatial map.
        normalize: ``"minmax"`` (each map by its own extremes), or None for raw values, signed, without ReLU.
        size: ``"input"``, (height, width), or None for map resolution.
        task: ``"multiclass"``, ``"multilabel"`` or ``"binary"``: what the logits mean, for methods that look at
            probabilities; None: what the network says, see ``observe``.
        **method_options: such as ``variant``; of several methods every one gets those that it has.

    Raises:
        ConfigError: a name or option is unknown, or targets do not match the images.
        ConversionError: the method needs a CAM-ready network, or the network has no map.
        DataError: the network gives NaN or infinite values.

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
    require_network(model)
    if not isinstance(images, Tensor) or images.dim() != 4:
        kind = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(f"images: expected a tensor (N, C, H, W), prepared as the network takes it, not {kind}.")
    if normalize not in ("minmax", None):
        raise ConfigError(f"normalize={normalize!r} is unknown. Choose 'minmax' or None.")
    if isinstance(size, str) and size != "input":
        raise ConfigError(f"size={size!r} is unknown. Choose 'input', (height, width) or None.")
    methods = make_methods(model, [method] if isinstance(method, str) else method, layer, method_options)
    gradients = any(item.uses_gradients for item in methods.values())
    heat_size = (images.shape[-2], images.shape[-1]) if isinstance(size, str) else size
    with observe(model, images, layer, gradients=gradients, task=task) as forward:
        chosen = check_targets(targets, forward.logits, forward.classes)
        raw = {name: item.raw_maps(forward, chosen) for name, item in methods.items()}
    if normalize is None:
        heats = raw if heat_size is None else {name: upsample(maps, heat_size) for name, maps in raw.items()}
    else:
        heats = {name: methods[name].heat(maps, heat_size) for name, maps in raw.items()}
        for name, heat in heats.items():
            _report_constant(name, heat)
    return heats[method] if isinstance(method, str) else heats


def make_methods(
    model: nn.Module, names: Sequence[str], layer: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Method]:
    """Methods by name for one network; every one gets those of the options that it has.

    Raises:
        ConfigError: a name is unknown, or no method has an option.

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
    return {
        name: kind(model, layer, **{key: value for key, value in (options or {}).items() if key in accepted[name]})
        for name, kind in classes.items()
    }


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
