"""The images that a user gives, in any of the usual forms, as a network's input: looked at before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from ..console import shown, warn
from ..errors import ConfigError, DataError
from ..image_files import read_image, upright_rgb
from ..preprocessing import Preprocessing, warn_of_other_scale

__all__ = ["network_input"]

_KINDS = (
    "a float tensor or array (N, C, H, W), prepared as the network takes it, or pictures: uint8 tensors or arrays, PIL"
    " images, image files, or a list of these"
)
_DEFAULT_SIDE = 224
_TOLD: WeakSet[nn.Module] = WeakSet()
"""Networks of which it was said what is assumed of their input."""


def network_input(
    model: nn.Module, images: Any, preprocessing: Preprocessing | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Images as a batch (N, C, H, W) in the network's precision, on its device.

    Floating-point numbers are taken as they are. Pictures (uint8, PIL images, files) are prepared: by the network's
    preprocessing; where that is not known, by what timm says of the network, else by ImageNet's mean and deviation, at
    their own size where they are all alike and at most 224 pixels a side, else at 224 x 224. What is assumed is said
    once for each network, as a warning.

    Args:
        model: whose input they become.
        images: (N, C, H, W) or one image (C, H, W), float; or uint8, also with the channels last, as arrays have them;
            a PIL image, a file, or a list of any of these.
        preprocessing: the network's, where it is known; None takes what it carries.
        size: height and width that it takes, where the preprocessing is not known; None: any.

    Raises:
        ConfigError: they are none of these; says what they are.
        DataError: a file cannot be read, or there are no images.
    """
    carried = getattr(model, "preprocessing", None)
    preprocessing = preprocessing or (carried if isinstance(carried, Preprocessing) else None)
    if _is_prepared(images):
        batch = _as_batch(_tensor(images), model, preprocessing)
        warn_of_other_scale(model, batch, preprocessing, stacklevel=4)
    else:
        pictures = _pictures(images)
        if not pictures:
            raise DataError("images: there are none.")
        batch = _prepared(pictures, preprocessing or _assumed(model, pictures, size))
    if not len(batch):
        raise DataError("images: there are none.")
    like = next((p for p in model.parameters() if p.is_floating_point()), batch)
    return batch.to(like.device, like.dtype)


# ---------------------------------------------------------------- prepared already


def _is_prepared(images: Any) -> bool:
    """Whether images are floating-point numbers, or a list of such tensors or arrays."""
    if isinstance(images, list | tuple):
        return bool(images) and all(_is_prepared(item) for item in images)
    if isinstance(images, Tensor):
        return images.is_floating_point()
    return isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating)


def _tensor(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        if images.is_meta or images.layout != torch.strided:
            kind = "without values (meta)" if images.is_meta else f"of layout {images.layout}"
            raise ConfigError(f"images: a tensor {kind}. Give a plain one (N, C, H, W).")
        return images
    if isinstance(images, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(images.astype(np.float32 if images.itemsize < 8 else np.float64)))
    tensors = [_tensor(item) for item in images]
    shapes = list(dict.fromkeys(tuple(item.shape) for item in tensors))
    if len(shapes) > 1:
        raise ConfigError(f"images: a list of different shapes ({', '.join(map(str, shapes[:4]))}). Give equal ones.")
    if len(shapes[0]) == 4:
        return torch.cat(tensors)
    return torch.stack(tensors)


def _as_batch(images: Tensor, model: nn.Module, preprocessing: Preprocessing | None) -> Tensor:
    """Floating-point images (N, C, H, W); one image (C, H, W) is a batch of one."""
    if images.dim() == 4:
        return images
    shape, channels = tuple(images.shape), _channels(model, preprocessing)
    if images.dim() == 3 and channels in (None, shape[0]):
        return images[None]
    hint = f" The network takes {channels} channels." if images.dim() == 3 else ""
    if images.dim() == 3 and shape[2] == channels:
        hint = " The channels stand last: give them first, or uint8 pixels (H, W, C), which are prepared."
    raise ConfigError(f"images: expected {_KINDS}; not {shape}.{hint}")


def _channels(model: nn.Module, preprocessing: Preprocessing | None) -> int | None:
    """How many channels the network takes: as is known, else those of its first convolution."""
    if preprocessing is not None:
        return preprocessing.channels
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)


# ---------------------------------------------------------------- pictures


def _pictures(images: Any, nested: bool = False) -> list[Tensor]:
    """Pictures (C, H, W) uint8 of one or three channels."""
    if isinstance(images, list | tuple) and not nested:
        return [picture for item in images for picture in _pictures(item, nested=True)]
    if isinstance(images, str | Path):
        return [read_image(images).as_subclass(Tensor)]
    if isinstance(images, Image.Image):
        try:
            return [TF.pil_to_tensor(upright_rgb(images))]
        except (ValueError, OSError) as error:
            raise DataError(f"images: a PIL image of mode {images.mode} cannot be read ({error}).") from error
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8:
            raise _unknown(f"an array {images.dtype} {images.shape}", number=True)
        return _pixels(torch.from_numpy(np.ascontiguousarray(images)), last=True)
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.is_meta or images.layout != torch.strided:
            kind = str(images.dtype).removeprefix("torch.")
            raise _unknown(f"a tensor {kind} {tuple(images.shape)}", number=images.layout == torch.strided)
        return _pixels(images.cpu(), last=False)
    raise _unknown(f"{type(images).__name__}{'' if images is None else ' ' + shown(repr(images))[:60]}")


def _unknown(kind: str, *, number: bool = False) -> ConfigError:
    pixels = " Pixels are uint8 (0 to 255); prepared images are floating-point numbers." if number else ""
    return ConfigError(f"images: expected {_KINDS}; not {kind}.{pixels}")


def _pixels(values: Tensor, *, last: bool) -> list[Tensor]:
    """The pictures of a uint8 tensor; ``last``: where both could be, the channels stand last, as arrays have them."""
    if values.dim() == 2:
        return [values[None]]
    if values.dim() in (3, 4):
        first_fits, last_fits = values.shape[-3] in (1, 3), values.shape[-1] in (1, 3, 4)
        if last_fits and (last or not first_fits):
            values = values.movedim(-1, -3)
            values = values[..., :3, :, :]  # below transparency the colors show, as of files
        elif not first_fits:
            raise ConfigError(
                f"images: uint8 {tuple(values.shape)}: pictures have 1 or 3 channels, (N, C, H, W) or (N, H, W, C). Of"
                " other numbers of channels give floating-point numbers, prepared as the network takes them."
            )
        return list(values) if values.dim() == 4 else [values]
    raise ConfigError(f"images: expected {_KINDS}; not uint8 {tuple(values.shape)}.")


def _prepared(pictures: Sequence[Tensor], preprocessing: Preprocessing) -> Tensor:
    """Pictures as input (N, C, H, W): equal sizes at once."""
    transform, batch = preprocessing.evaluation(), []
    for picture in pictures:
        colors = picture.expand(3, -1, -1)
        batch.append(transform(TF.to_image(colors)).as_subclass(Tensor))
    return torch.stack(batch)


def _assumed(model: nn.Module, pictures: Sequence[Tensor], size: tuple[int, int] | None) -> Preprocessing:
    """What is assumed of the input of a network that says nothing; said once."""
    sizes = {(picture.shape[-2], picture.shape[-1]) for picture in pictures}
    (height, width) = sizes.pop() if len(sizes) == 1 else (_DEFAULT_SIDE, _DEFAULT_SIDE)
    small = min(height, width) >= 8 and max(height, width) <= _DEFAULT_SIDE
    used = _of_timm(model)
    why = "as timm says of it" if used is not None else "ImageNet's"
    if used is None:
        channels = _channels(model, None) or 3
        if channels not in (1, 3):
            raise ConfigError(
                f"images: pictures have 1 or 3 channels, the network takes {channels}. Give floating-point numbers"
                f" (N, {channels}, H, W), prepared as it takes them."
            )
        used = Preprocessing.assumed(size or ((height, width) if small else _DEFAULT_SIDE), channels)
    if model not in _TOLD:
        _TOLD.add(model)
        warn(
            f"images: the network does not say how a picture becomes its input; assumed is {used.describe()} ({why})."
            " Give prepared tensors where that is wrong.",
            stacklevel=5,
        )
    return used


def _of_timm(model: nn.Module) -> Preprocessing | None:
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or not all(config.get(key) for key in ("input_size", "mean", "std")):
        return None
    return Preprocessing(tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"]))
