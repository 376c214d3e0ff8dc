"""What every metric asks of its input, said in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError

__all__ = [
    "check_boxes", "check_class_scores", "check_labels", "check_map_boxes", "check_maps", "check_masks",
    "check_objects", "check_scores", "check_shares",
]  # fmt: skip


def check_maps(name: str, maps: Tensor, count: int | None = None, *, unit: bool = True) -> None:
    """Maps are (N, H, W), finite and, where ``unit``, in [0, 1]; N is ``count`` where that is given.

    Raises:
        DataError: they are not.
    """
    if maps.dim() != 3 or 0 in maps.shape[1:] or (count is not None and len(maps) != count):
        wanted = "N" if count is None else count
        raise DataError(f"{name}: maps {tuple(maps.shape)} must be (N, H, W), N = {wanted}, H and W above 0.")
    # NaN carries over to the extremes, and makes every comparison false.
    low, high = (float(maps.amin()), float(maps.amax())) if len(maps) else (0.0, 0.0)
    if unit and not (low >= 0 and high <= 1):
        raise DataError(f"{name}: maps must lie in [0, 1], without NaN. Use camify.maps.normalize.")
    if not unit and not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{name}: maps hold NaN or infinity. Find the image that causes it before measuring.")


def check_boxes(name: str, boxes: Sequence[Tensor], height: int, width: int) -> None:
    """Every image's boxes are (n, 4), n may be 0, with x0 < x1 and y0 < y1, and each touches the image.

    Raises:
        DataError: they are not; the message says the number of the image within the batch.
    """
    non_empty = [image_boxes for image_boxes in boxes if len(image_boxes)]
    if not non_empty:
        return
    if all(image_boxes.shape[1:] == (4,) for image_boxes in non_empty) and _touch(torch.cat(non_empty), height, width):
        return
    for index, image_boxes in enumerate(boxes):
        if len(image_boxes) == 0:
            continue
        if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
            raise DataError(f"{name}: boxes of image {index} are {tuple(image_boxes.shape)}, not (n, 4).")
        if not bool((image_boxes[:, 2:] > image_boxes[:, :2]).all()):
            raise DataError(f"{name}: boxes of image {index} need x0 < x1 and y0 < y1: {image_boxes.tolist()}")
        if not _touch(image_boxes, height, width):
            raise DataError(
                f"{name}: a box of image {index} lies outside its {width} x {height} px: {image_boxes.tolist()}. "
                "Give boxes in the pixels of the maps."
            )


def check_map_boxes(name: str, maps: Tensor, boxes: Sequence[Tensor]) -> None:
    """What ``check_maps`` and ``check_boxes`` ask of maps (N, H, W) in [0, 1] and N images' boxes."""
    check_maps(name, maps, len(boxes))
    check_boxes(name, boxes, *maps.shape[1:])


def check_objects(name: str, maps: Tensor, objects: Sequence[Tensor] | Tensor) -> None:
    """Finite maps (N, H, W), and of each its objects: masks (N, H, W) bool, or boxes; else DataError."""
    check_maps(name, maps, len(objects), unit=False)
    if not isinstance(objects, Tensor):
        check_boxes(name, objects, *maps.shape[1:])
    elif objects.shape != maps.shape or objects.dtype != torch.bool:
        raise DataError(f"{name}: masks {tuple(objects.shape)} must be bool and {tuple(maps.shape)}.")


def check_masks(name: str, maps: Tensor, masks: Tensor, what: str = "masks") -> None:
    """Masks of the maps' shape, bool or of 0 and 1; else DataError."""
    if masks.shape != maps.shape:
        raise DataError(f"{name}: {what} {tuple(masks.shape)} are not {tuple(maps.shape)}.")
    if masks.dtype != torch.bool and not bool(((masks == 0) | (masks == 1)).all()):
        raise DataError(f"{name}: {what} must be bool or hold 0 and 1 only. Compare with > 0.")


def _touch(boxes: Tensor, height: int, width: int) -> bool:
    """Whether each of the boxes (n, 4) is one, and touches the image."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return bool(((high > low) & (high > 0) & (low < low.new_tensor((width, height)))).all())


def check_labels(name: str, labels: Tensor, count: int, num_classes: int, what: str = "labels") -> None:
    """Labels, or what else they are called, are ``count`` whole numbers in 0 ... num_classes - 1.

    Raises:
        DataError: they are not.
    """
    if labels.shape != (count,) or labels.is_floating_point():
        raise DataError(f"{name}: {what} {tuple(labels.shape)} of {labels.dtype} must be {count} whole numbers.")
    if not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise DataError(f"{name}: {what} must lie in 0 ... {num_classes - 1}, not {labels.tolist()}.")


def check_shares(name: str, what: str, values: Tensor, shape: tuple[int | None, ...]) -> None:
    """Numbers in [0, 1] of a shape, None for any length of an axis.

    Raises:
        DataError: they are not.
    """
    fits = values.dim() == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"{name}: {what} are of shape {tuple(values.shape)}, not ({wanted}).")
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise DataError(f"{name}: {what} must be probabilities, in [0, 1] and without NaN. Apply softmax or sigmoid.")


def check_class_scores(name: str, scores: Tensor, labels: Tensor, count: int) -> None:
    """Scores (count, K) without NaN and labels (count,) of their classes; else DataError."""
    if scores.dim() != 2 or len(scores) != count or bool(scores.isnan().any()):
        raise DataError(f"{name}: scores {tuple(scores.shape)} must be ({count}, K), no NaN.")
    check_labels(name, labels, count, scores.shape[1])


def check_scores(name: str, scores: Tensor, masked_scores: Tensor) -> None:
    """Probabilities (N,) of images and of the masked images, as ``check_shares`` asks them."""
    check_shares(name, "scores", scores, (None,))
    check_shares(name, "masked_scores", masked_scores, tuple(scores.shape))
