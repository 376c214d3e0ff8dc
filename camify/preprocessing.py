"""How an image becomes a network's input: one typed value, carried by the network, asked by everybody."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from .console import warn
from .errors import CheckpointError, ConfigError
from .image_files import LEAST_BITS, MOST_BITS, read_image, read_with_range

__all__ = [
    "AUGMENTATIONS",
    "INPUT_FORMATS",
    "LARGEST_SIDE",
    "NORMALIZATIONS",
    "Preprocessing",
    "read_image",
    "sides_of",
    "warn_of_other_scale",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATIONS = ("crop_flip", "flip", "none")
INPUT_FORMATS = ("rgb", "bgr", "grayscale", "channels")
NORMALIZATIONS: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "0..1": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "0..255": {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
    "tf": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "caffe": {
        "mean": (103.939 / 255, 116.779 / 255, 123.68 / 255), "std": (1 / 255, 1 / 255, 1 / 255), "input_format": "bgr",
    },
}  # fmt: skip
"""By name what networks are usually trained with: ``"tf"`` is -1..1, ``"caffe"`` BGR in 0..255 less the mean of
ImageNet; these and ``"imagenet"`` are the modes of ``keras.applications`` (there ``"torch"``)."""
_SMALLEST = 8
_OTHER_SCALE = 10  # times as far as a picture's values reach
_SMALLEST_STD = 1 / 256  # 1/255 makes inputs of 0..255
LARGEST_SIDE, MOST_CHANNELS = 8192, 4096
"""Of an input, in pixels: more than any network takes, and not more than a machine can hold."""

_TOLD: WeakSet[nn.Module] = WeakSet()
"""Networks whose images did not look prepared, which was said."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: resized without keeping the aspect, scaled to [0, 1], normalized.

    The whole picture stays in view, as in the protocol of Choe et al. 2020 ("Evaluating Weakly Supervised
    Object Localization Methods Right"), so that boxes anywhere in it can be found.

    Attributes:
        size: side of a square input, or (height, width), pixels.
        mean: per channel of the input, of values in [0, 1].
        std: likewise.
        input_format: what the channels are: ``"rgb"``, ``"bgr"``, ``"grayscale"`` (one), or ``"channels"``: any number
            that no image file has (multispectral); None takes what fits the length of ``mean``.
        bits: how many bits gray files of 16 or 32 bits use, 8 to 32: 12 of many X-rays and depth maps; None takes all
            that such a file has. Files of 8 bits are read as they are.

    Raises:
        ConfigError: a value cannot work; says which and the likely cause.

    Example:
        >>> Preprocessing((96, 128), mean=(0.5,), std=(0.25,)).input_format
        'grayscale'
    """

    size: int | tuple[int, int] = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input_format: str = field(default="")
    bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", _plain_bits(self.bits))
        object.__setattr__(self, "size", _plain_size(self.size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _plain_numbers(name, getattr(self, name)))
        input_format = self.input_format or {1: "grayscale", 3: "rgb"}.get(self.channels, "channels")
        object.__setattr__(self, "input_format", input_format)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                f"preprocessing: mean has {len(self.mean)} values, std {len(self.std)}. Give one of each per channel."
            )
        if self.channels > MOST_CHANNELS:
            raise ConfigError(f"preprocessing: mean has {self.channels} values; at most {MOST_CHANNELS} are read.")
        channels = {"rgb": 3, "bgr": 3, "grayscale": 1}.get(input_format, self.channels)
        if input_format not in INPUT_FORMATS or channels != self.channels:
            raise ConfigError(
                f"preprocessing: input_format={input_format!r} with {self.channels} values of mean. Choose one of"
                f" {', '.join(INPUT_FORMATS)}; rgb and bgr have three channels, grayscale has one."
            )

    @classmethod
    def stated(cls, value: str | Mapping[str, Any] | Preprocessing, base: Preprocessing) -> Preprocessing:
        """What a user states: a name of ``NORMALIZATIONS``, or some of the fields; the others are those of ``base``.

        One number for ``mean`` or ``std`` is that of all channels.

        Raises:
            ConfigError: there is no such name or field, or a value cannot work.
        """
        if isinstance(value, Preprocessing):
            return value
        if isinstance(value, str):
            if value not in NORMALIZATIONS:
                raise ConfigError(
                    f"preprocessing {value[:80]!r}: no such name. Choose {', '.join(NORMALIZATIONS)}, or give the"
                    " numbers: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}."
                )
            value = {"input_format": "", **NORMALIZATIONS[value]}
            if base.channels == 1 and not value["input_format"]:
                value |= {name: (sum(value[name]) / 3,) for name in ("mean", "std")}
        known = [one.name for one in fields(cls)]
        unknown = next((key for key in value if key not in known), None)
        if unknown is not None:
            raise ConfigError(f"preprocessing: no field {str(unknown)[:80]!r}. Fields are {', '.join(known)}.")
        given = dict(value)
        for key in ("mean", "std"):
            if isinstance(given.get(key), int | float):
                given[key] = (given[key],) * base.channels  # one number for all
        if "mean" in given and "input_format" not in given and len(_as_tuple(given["mean"])) != base.channels:
            given["input_format"] = ""
        return cls(**{**{name: getattr(base, name) for name in known}, **given})

    # ------------------------------------------------------------ shape

    @property
    def height(self) -> int:
        """Of the input, pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Of the input, pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def channels(self) -> int:
        """Of the input."""
        return len(self.mean)

    @classmethod
    def assumed(cls, size: int | tuple[int, int] = 224, channels: int = 3) -> Preprocessing:
        """What is taken where nothing is known: ImageNet's mean and deviation, their averages for one channel.

        Of other numbers of channels mean 0 and deviation 1.
        """
        if channels == len(IMAGENET_MEAN):
            return cls(size)
        if channels == 1:
            return cls(size, (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,))
        return cls(size, (0.0,) * channels, (1.0,) * channels)

    # ------------------------------------------------------------ images

    def evaluation(self) -> v2.Transform:
        """Transform of a sample for validation: no chance in it."""
        return v2.Compose([v2.Resize((self.height, self.width), antialias=True), *self._to_input()])

    def training(self, augment: str) -> v2.Transform:
        """Transform of a sample for training.

        Args:
            augment: ``"crop_flip"`` (resize to 8/7, random crop, mirror), ``"flip"`` or ``"none"``.
        """
        if augment not in AUGMENTATIONS:
            raise ConfigError(f"augment={augment!r} is unknown. Choose one of {', '.join(AUGMENTATIONS)}.")
        if augment == "none":
            return self.evaluation()
        flip = v2.RandomHorizontalFlip()
        if augment == "flip":
            return v2.Compose([v2.Resize((self.height, self.width), antialias=True), flip, *self._to_input()])
        crop = [v2.Resize(list(self.resized(augment)), antialias=True), v2.RandomCrop((self.height, self.width)), flip]
        return v2.Compose([*crop, *self._to_input()])

    def resized(self, augment: str) -> tuple[int, int]:
        """(height, width) to which ``training`` resizes whole images: 256 for 224 before a crop, as in the protocol."""
        if augment != "crop_flip":
            return self.height, self.width
        return round(self.height * 8 / 7), round(self.width * 8 / 7)

    def _to_input(self) -> list[v2.Transform]:
        if self.input_format == "channels":
            raise ConfigError(
                f"preprocessing: image files have one or three channels, the network takes {self.channels}."
                " Give it tensors, in batches of your own data set."
            )
        steps: list[v2.Transform] = [v2.Grayscale()] if self.input_format == "grayscale" else []
        if self.input_format == "bgr":
            steps.append(v2.Lambda(lambda image: image.flip(-3), tv_tensors.Image))
        return [*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]

    def read(self, path: str | Path) -> Tensor:
        """One image file as input (C, H, W); warns where ``bits`` would have to say what its values mean.

        Raises:
            DataError: the file is missing or not a readable image.
        """
        picture, gray_range = read_with_range(path, self.bits)
        if gray_range is not None and gray_range.is_absurd:
            warn(
                f"{path}: {gray_range}, so it comes out {gray_range.shade}. Give bits={gray_range.used_bits} if"
                f" {2**gray_range.used_bits - 1} is white, bits=16 to take it as it is.",
                stacklevel=2,
            )
        image: Tensor = self.evaluation()(picture)
        return image.as_subclass(Tensor)

    def restore(self, images: Tensor) -> Tensor:
        """Inputs (..., C, H, W) as pictures (..., 3, H, W) in [0, 1] again; of other channels the first three."""
        shape = (self.channels, 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).reshape(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).reshape(shape)
        pictures = (images * std + mean).clamp(0, 1)
        if self.input_format == "bgr":
            return pictures.flip(-3)
        return as_three_channels(pictures)

    def other_scale(self, images_NCHW: Tensor) -> str | None:
        """In words how inputs lie on another scale than this one's; None where they may well be prepared so.

        Pixels of 0..255 or 0..1 that nobody has normalized are what this is for; noise and strong contrasts pass.

        Example:
            >>> Preprocessing().other_scale(torch.full((1, 3, 8, 8), 255.0))
            'their values reach 255, and as the network takes them they lie between -2.12 and 2.64'
        """
        if not images_NCHW.numel():
            return None
        least, most = (float(value) for value in torch.aminmax(images_NCHW.detach()))
        low = min(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        high = max((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        expected = f"and as the network takes them they lie between {low:.3g} and {high:.3g}"
        if max(-least, most) > _OTHER_SCALE * max(-low, high):
            return f"their values reach {max(least, most, key=abs):.3g}, {expected}"
        in_unit_range = least >= 0 and most <= 1 and least < most
        if in_unit_range and (low < -0.5 or high > _OTHER_SCALE):
            return f"all their values lie between 0 and 1, {expected}"
        return None

    def describe(self) -> str:
        """In a few words what a network takes."""
        size, numbers = f"{self.height} x {self.width} px", (_shown(self.mean), _shown(self.std))
        gray = "" if self.bits is None else f", gray files of {self.bits} bits"
        return f"{size}, {self.input_format}, mean {numbers[0]}, deviation {numbers[1]}{gray}"

    # ------------------------------------------------------------ agreement

    def differences(self, other: Preprocessing) -> list[str]:
        """The fields in which two differ, each with both values: this one's first; bits only where both say some."""
        return [
            f"{field.name} {_shown(getattr(self, field.name))} and {_shown(getattr(other, field.name))}"
            for field in fields(self)
            if not _same(getattr(self, field.name), getattr(other, field.name))
            and not (field.name == "bits" and None in (self.bits, other.bits))
        ]

    # ------------------------------------------------------------ as data

    def to_dict(self) -> dict[str, Any]:
        """JSON values; they travel in the checkpoint."""
        size = self.size if isinstance(self.size, int) else list(self.size)
        lists = {"mean": list(self.mean), "std": list(self.std)}
        bits = {} if self.bits is None else {"bits": self.bits}
        return {"size": size, **lists, "input_format": self.input_format, "aspect": "not kept", "range": "0..1", **bits}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of a checkpoint.

        Raises:
            CheckpointError: a field is missing or has a value that cannot work.
        """
        try:
            mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
            size = data["size"]
            size = tuple(int(side) for side in size) if isinstance(size, list | tuple) else int(size)
            return cls(size, mean, std, str(data.get("input_format") or ""), data.get("bits"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"preprocessing: a field is missing or wrong ({error}).") from error

    @classmethod
    def of(cls, value: Preprocessing | Mapping[str, Any] | None) -> Preprocessing | None:
        """A preprocessing as it is, or of a dict of its fields; None of None.

        Raises:
            CheckpointError: as ``from_dict``.
        """
        return value if value is None or isinstance(value, Preprocessing) else cls.from_dict(value)

    def keys(self) -> list[str]:
        """Names of the fields of ``to_dict``: older code reads a network's preprocessing as a dict."""
        return list(self.to_dict())

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]


def as_three_channels(pictures: Tensor) -> Tensor:
    """Pictures (..., C, H, W) as (..., 3, H, W): the first three channels, of fewer the first one as gray."""
    if pictures.shape[-3] >= 3:
        return pictures[..., :3, :, :]
    return pictures[..., :1, :, :].expand(*pictures.shape[:-3], 3, *pictures.shape[-2:])


def agreed_preprocessing(
    given: Mapping[str, Any],
    expected: Preprocessing | None,
    default: Preprocessing,
    *,
    override: bool = False,
    where: str = "data",
) -> Preprocessing:
    """What data use: what the network carries, where it says something, else what was given, else a default.

    Args:
        given: ``size``, ``mean``, ``std``, ``bits``, as far as the user gave them.
        expected: what the network carries, or None.
        default: of what neither says.
        override: the user's values go before the network's.
        where: who was given them, for the message.

    Raises:
        ConfigError: the user's values contradict the network's; shows both.
    """
    known = {name: value for name, value in given.items() if value is not None}
    base = expected or default
    if "mean" in known and len(tuple(known["mean"])) != base.channels:
        known["input_format"] = ""
    settled = Preprocessing(**{**{one.name: getattr(base, one.name) for one in fields(Preprocessing)}, **known})
    refuse_contradiction(settled, expected, override=override, where=where)
    return settled


def refuse_contradiction(
    used: Preprocessing, expected: Preprocessing | None, *, override: bool = False, where: str = "data"
) -> None:
    """Refuse data that are prepared otherwise than the network expects.

    Raises:
        ConfigError: shows both values, and how to overrule.
    """
    differences = [] if expected is None or override else used.differences(expected)
    if differences:
        raise ConfigError(
            f"The {where} and the network are at odds: {'; '.join(differences)} (the network's). Leave the option out"
            " to take the network's, or give override_preprocessing=True to go before it."
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(f'{item:.4g}' for item in value)})"
    return str(value)


def warn_of_other_scale(
    network: nn.Module, images_NCHW: Tensor, preprocessing: Preprocessing | None, *, stacklevel: int = 1
) -> None:
    """Warn, once for each network, of prepared images that do not look prepared for it.

    Args:
        network: that takes them.
        images_NCHW: its input.
        preprocessing: the network's; of None nothing is said.
        stacklevel: of the warning.
    """
    difference = None if preprocessing is None or network in _TOLD else preprocessing.other_scale(images_NCHW)
    if difference is not None:
        _TOLD.add(network)
        advice = "Give pictures (uint8, files) where these are prepared, or normalize them as the network expects."
        warn(f"images: {difference}. {advice}", stacklevel=stacklevel + 1)


def sides_of(size: Any) -> tuple[int, int] | None:
    """Height and width of one whole number or of two, of 1 to ``LARGEST_SIDE`` pixels; None of anything else."""
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(1 <= side <= LARGEST_SIDE for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _plain_size(size: Any) -> int | tuple[int, int]:
    sides = (size,) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) not in (1, 2) or not whole or not _SMALLEST <= min(sides) <= max(sides) <= LARGEST_SIDE:
        raise ConfigError(
            f"preprocessing: size={str(size)[:80]}: must be a whole number, or two of them (height, width), of"
            f" {_SMALLEST} to {LARGEST_SIDE} pixels."
        )
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _plain_bits(bits: Any) -> int | None:
    if bits is None:
        return None
    if not isinstance(bits, int) or isinstance(bits, bool) or not LEAST_BITS <= bits <= MOST_BITS:
        raise ConfigError(
            f"preprocessing: bits={str(bits)[:80]}: must be a whole number from {LEAST_BITS} to {MOST_BITS}."
        )
    return bits


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (values,)


def _plain_numbers(name: str, values: Sequence[float] | float) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in _as_tuple(values))
    except (TypeError, ValueError):
        numbers = (math.nan,)
    least = 0.0 if name == "mean" else _SMALLEST_STD
    if not all(math.isfinite(value) and least <= value <= 1 for value in numbers):
        cause = ""
        if name == "std" and all(0 < value < least for value in numbers):
            scaled = ", ".join(f"{value * 255:.4g}" for value in numbers)
            cause = f" These look divided by 255 once too often: times 255 they are ({scaled})."
        elif all(math.isfinite(value) and 0 < value <= 255 for value in numbers):
            scaled = ", ".join(f"{value / 255:.4g}" for value in numbers)
            cause = f" These look like values of 0..255: divide them by 255, which gives ({scaled})."
        raise ConfigError(
            f"preprocessing: {name}={values}: must be finite numbers in [0, 1], of images in [0, 1]"
            f"{', of at least 1/256' if name == 'std' else ''}.{cause}"
        )
    return numbers
