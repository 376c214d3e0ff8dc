"""What a ``preprocessor_config.json`` of transformers says of the images that its network takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..preprocessing import Preprocessing, sides_of

__all__ = ["preprocessing_of"]

_LEVELS = 255  # of a byte


def preprocessing_of(config: Mapping[str, Any], channels: int, notes: list[str]) -> Preprocessing | None:
    """How its image processor prepares images, as far as camify does so; None where the file does not say enough.

    camify resizes the whole picture to the network's input; a processor that crops it shows the network less of it, at
    a larger scale. The notes are told.

    Args:
        config: the content of the file.
        channels: that the network takes.
        notes: are told what is not the same.

    Raises:
        CheckpointError: a field is damaged; names it.

    Example:
        >>> config = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "image_mean": [0.5] * 3,
        ...           "image_std": [0.5] * 3}
        >>> preprocessing_of(config, 3, notes := []).size
        224
        >>> notes
        ['its image processor resizes to 256 and cuts out the middle; camify resizes the whole picture to 224 x 224']
    """
    size = _input_size(config, notes)
    if size is None or config.get("include_top"):
        notes.append("its preprocessor_config.json does not say how images become its input")
        return None
    mean, std = (_numbers(config, field) for field in ("image_mean", "image_std"))
    normalizes = config.get("do_normalize", True)
    if normalizes and (mean is None or std is None):
        notes.append("its preprocessor_config.json names no mean and deviation")
        return None
    if not normalizes or mean is None or std is None:
        mean, std = [0.0], [1.0]
    scale = (
        _number(config.get("rescale_factor", 1 / _LEVELS), "rescale_factor") if config.get("do_rescale", True) else 1
    )
    scale *= _LEVELS  # of values in [0, 1]
    offset = 1.0 if config.get("rescale_offset") else 0.0
    mean, std = [(value + offset) / scale for value in mean], [value / scale for value in std]
    if len(mean) == len(std) == 1:
        mean, std = mean * channels, std * channels
    turned = config.get("do_flip_channel_order", False) and channels == 3
    try:
        return Preprocessing(size, tuple(mean), tuple(std), input_format="bgr" if turned else "")
    except ConfigError as error:
        notes.append(f"what its preprocessor_config.json says cannot be right ({error})")
        return None


def _input_size(config: Mapping[str, Any], notes: list[str]) -> tuple[int, int] | None:
    """Height and width of what the processor gives, pixels."""
    resized, cropped = (_sides(config.get(field), field) for field in ("size", "crop_size"))
    crops = bool(config.get("do_center_crop", "crop_size" in config)) and cropped is not None
    size = cropped if crops else resized
    if size is None:
        return None
    text = f"camify resizes the whole picture to {size[0]} x {size[1]}"
    keeps_aspect = isinstance(config.get("size"), Mapping) and "shortest_edge" in config["size"]
    share = config.get("crop_pct")
    if crops and resized is not None and config.get("do_resize", True):
        before = f"{resized[0]}" if keeps_aspect else f"{resized[0]} x {resized[1]}"
        notes.append(f"its image processor resizes to {before} and cuts out the middle; {text}")
    elif isinstance(share, float) and share < 1:
        notes.append(f"its image processor cuts out the middle {share:.0%} of each side; {text}")
    elif keeps_aspect:
        notes.append(f"its image processor keeps the aspect of the picture; {text}")
    return size


def _sides(value: Any, field: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", [value.get("height"), value.get("width")])
    sides = sides_of(value)
    if sides is None:
        raise CheckpointError(f"preprocessor_config.json: field {field} is {str(value)[:60]}, no size in pixels.")
    return sides


def _numbers(config: Mapping[str, Any], field: str) -> list[float] | None:
    values = config.get(field)
    if values is None:
        return None
    return [_number(value, field) for value in (values if isinstance(values, list) else [values])]


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= abs(value) < 1e6:
        raise CheckpointError(f"preprocessor_config.json: field {field} holds {str(value)[:60]}, no number.")
    return float(value)
