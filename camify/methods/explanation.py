"""explain: heat maps of images by name of the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import normalize, upsample
from .cam import CAM

__all__ = ["METHODS", "explain"]

METHODS: dict[str, Callable[..., Any]] = {"cam": CAM}


@overload
def explain(
    model: nn.Module, images: Tensor, *, method: str = ..., targets: int | Tensor | None = ..., layer: str | None = ...,
    normalize: str | None = ..., size: str | tuple[int, int] | None = ..., **method_options: Any,
) -> Tensor: ...  # fmt: skip
@overload
def explain(
    model: nn.Module, images: Tensor, *, method: Sequence[str], targets: int | Tensor | None = ...,
    layer: str | None = ..., normalize: str | None = ..., size: str | tuple[int, int] | None = ...,
    **method_options: Any,
) -> dict[str, Tensor]: ...  # fmt: skip
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    method: str | Sequence[str] = "cam",
    targets: int | Tensor | None = None,
    layer: str | None = None,
    normalize: str | None = "minmax",
    size: str | tuple[int, int] | None = "input",
    **method_options: Any,
) -> Tensor | dict[str, Tensor]:
    """Heat maps (N, H, W) in [0, 1] of images (N, 3, H, W).

    Raw map -> upsampled (bilinear, half-pixel) -> normalised once, in this order.

    Args:
        model: the network.
        images: (N, 3, H, W), prepared as the network expects.
        method: ``"cam"``, or a list of names: then a dict by name comes back.
        targets: None (top-1), one class, or one class per image (N,).
        layer: where to look; None is the last spatial map.
        normalize: ``"minmax"`` (each map by its own extremes) or None for raw values.
        size: ``"input"``, (height, width), or None for map resolution.
        **method_options: passed to the method.

    Raises:
        ConfigError: a name is unknown or targets do not match the images.
        ConversionError: the method needs a CAM-ready network.
    """
    if not isinstance(method, str):
        return {
            name: explain(
                model, images, method=name, targets=targets, layer=layer, normalize=normalize, size=size,
                **method_options,
            )
            for name in method
        }  # fmt: skip
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is unknown. Choose one of {', '.join(METHODS)}.")
    if normalize not in ("minmax", None):
        raise ConfigError(f"normalize={normalize!r} is unknown. Choose 'minmax' or None.")
    if isinstance(size, str) and size != "input":
        raise ConfigError(f"size={size!r} is unknown. Choose 'input', (height, width) or None.")
    maps: Tensor = METHODS[method](model, layer, **method_options)(images, targets)
    if size is not None:
        maps = upsample(maps, (images.shape[-2], images.shape[-1]) if isinstance(size, str) else size)
    return _minmax(maps) if normalize else maps


_minmax = normalize
