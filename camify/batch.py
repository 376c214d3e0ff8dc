"""A batch as camify uses it, made of whatever a loader gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import DataError

__all__ = ["Batch"]

_IMAGES = ("image", "images", "pixel_values", "img", "inputs", "x")
_LABELS = ("label", "labels", "target", "targets", "y")
_FORMS = (
    f"Known forms: a dict with {_IMAGES[0]} (or {', '.join(_IMAGES[1:])}) and {_LABELS[0]} (or"
    f" {', '.join(_LABELS[1:])}); a tuple (images, labels, ...); for predicting images alone."
)


@dataclass
class Batch:
    """Images with what is known of them.

    Attributes:
        images: (N, C, H, W) float, as the network takes them; of cached features (N, C, h, w) those.
        labels: as the data give them; None where there are none.
        boxes: N tensors (n, 4), xyxy pixels, exclusive, n may be 0; None where the data have none.
        masks: (N, H, W) bool of the objects; None where the data have none.
        paths: files of the images; None where they are not known.
        teacher: (N, K) logits of a teacher that were computed before.
        size: (height, width) of the images where ``images`` are cached features, else None.
        original_sizes: (height, width) of every image before it was resized as a whole; None where they are not known.
    """

    images: Tensor
    labels: Tensor | None = None
    boxes: list[Tensor] | None = None
    masks: Tensor | None = None
    paths: list[str] | None = None
    teacher: Tensor | None = None
    size: tuple[int, int] | None = None
    original_sizes: list[tuple[int, int]] | None = None

    @classmethod
    def of(cls, given: Any) -> Batch:
        """A batch of a dict (camify's, Hugging Face's keys), of (images, labels, anything), or of images alone.

        Raises:
            DataError: it is none of these; says what it is and what is expected.
        """
        if isinstance(given, Batch):
            return given
        if isinstance(given, Mapping):
            return cls._of_mapping(given)
        if _is_array(given):
            return cls(_images(given, given))
        if isinstance(given, tuple | list) and given and _is_array(given[0]):
            images = _images(given[0], given)
            return cls(images, None if len(given) < 2 else _labels(given[1], images, given))
        raise DataError(f"A batch is {_described(given)}. {_FORMS}")

    @classmethod
    def _of_mapping(cls, given: Mapping[str, Any]) -> Batch:
        if "features" in given:
            images, size = given["features"], tuple(int(side) for side in given["size"][0])
        else:
            key = next((key for key in _IMAGES if key in given), None)
            if key is None:
                raise DataError(f"A batch is {_described(given)}. {_FORMS}")
            images, size = _images(given[key], given), None
        key = next((key for key in _LABELS if given.get(key) is not None), None)
        mask = given.get("mask")
        paths: Any = given.get("path")
        return cls(
            images,
            None if key is None else _labels(given[key], images, given),
            given.get("boxes"),
            mask if mask is None or getattr(mask, "dtype", None) is torch.bool else mask > 0,
            paths.tolist() if hasattr(paths, "tolist") else paths,
            given.get("teacher"),
            None if size is None else (size[0], size[1]),
            given.get("original_size"),
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return self.size or (self.images.shape[-2], self.images.shape[-1])

    def to(self, device: torch.device, *, images: torch.dtype | None = None) -> Batch:
        """The batch on a device; the images in a precision, all else as it is."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            return [moved(item) for item in value] if isinstance(value, list) else value

        batch = Batch(**{name: moved(value) for name, value in vars(self).items()})
        batch.images = batch.images.to(images or batch.images.dtype)
        return batch


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value).__name__ == "ndarray"


def _images(value: Any, given: Any) -> Tensor:
    value = torch.as_tensor(value) if _is_array(value) else value
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        raise DataError(
            f"A batch is {_described(given)}: its images must be a float tensor (N, C, H, W), prepared as the network"
            f" takes them. {_FORMS}"
        )
    return value


def _labels(value: Any, images: Tensor, given: Any) -> Tensor:
    plain = isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)
    labels = torch.as_tensor(value) if plain or type(value).__module__ == "numpy" else value
    if not isinstance(labels, Tensor) or labels.dim() not in (1, 2) or len(labels) != len(images):
        names = isinstance(value, list | tuple) and any(isinstance(item, str) for item in value)
        hint = " These are names: give their places in class_names." if names else ""
        raise DataError(
            f"A batch is {_described(given)}: its labels must be one number per image (N,), or one per image and class"
            f" (N, K).{hint} {_FORMS}"
        )
    return labels


def _described(given: Any) -> str:
    def kind(value: Any) -> str:
        if _is_array(value):
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        return type(value).__name__

    if isinstance(given, Mapping):
        return f"a dict with {', '.join(f'{key}: {kind(value)}' for key, value in given.items()) or 'no keys'}"
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {', '.join(map(kind, given)) or 'nothing'}"
    return f"a {kind(given)}"
