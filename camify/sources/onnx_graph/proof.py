"""A foreign ONNX file's network compared with onnxruntime, before it is given to anybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint.certificate import TOLERANCE
from ...errors import CheckpointError
from ...preprocessing import Preprocessing
from .interface import ImageInput
from .steps import NotMapped

__all__ = ["is_same_prepared", "noise_images", "proof"]


def noise_images(image: ImageInput, count: int, sides: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) of fixed seed; whole numbers where the file takes bytes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, image.channels, *sides, generator=generator)
    return (pixels * 255).round() if image.is_bytes else pixels * 2 - 0.5


def proof(
    network: nn.Module, session: Any, image: ImageInput, output: str, sides: tuple[int, int], path: object
) -> tuple[float, str]:
    """The largest difference between a network's logits and a file's, relative to the largest; and what was run.

    Both see two images, the file also one alone; and images of another size where it leaves that open. Of a file with
    a fixed number of images the network sees one more, which is the first again.

    Args:
        network: images (N, C, H, W) -> logits (N, K).
        session: of onnxruntime, which gives ``output``.
        image: what the file takes.
        output: of the logits in the file.
        sides: height and width of its images, pixels.
        path: of the file.

    Raises:
        CheckpointError: onnxruntime does not run the file.
        NotMapped: the network does not run.
    """
    errors: list[float] = []
    places: list[str] = []
    refusal: Exception | None = None
    for counts, size in _trials(image, sides):
        images = noise_images(image, max(counts), size)
        references = {}
        for count in counts:
            try:
                (values,) = session.run([output], {image.name: image.given(images[:count])})
            except Exception as error:  # noqa: BLE001, PERF203 - onnxruntime raises its own kinds
                refusal = error.with_traceback(None)  # of another size or number than the file is made for
            else:
                references[count] = torch.from_numpy(values.astype("float32")).reshape(count, -1)
        if not references:
            continue
        if image.batch is not None:
            images = torch.cat([images, images[:1]])
            references = {count: torch.cat([values, values[:1]]) for count, values in references.items()}
        logits = _logits(network, images)
        errors += [_error(logits, reference, path) for reference in references.values()]
        places += [f"{count} of {size[0]} x {size[1]} px" for count in references]
    if not places:
        reason = " ".join(str(refusal).split())[:200]
        raise CheckpointError(f"{path}: onnxruntime does not run it ({reason}).") from refusal
    if image.batch is not None:
        places.append(f"the network also {image.batch + 1} at once")
    largest = max(errors)
    return largest, f"logits equal onnxruntime's within {largest:.1e} of the largest (images: {', '.join(places)})"


def _trials(image: ImageInput, sides: tuple[int, int]) -> Iterator[tuple[tuple[int, ...], tuple[int, int]]]:
    """Numbers of images, and their size: two of each where the file leaves them open."""
    yield (1, 2) if image.batch is None else (image.batch,), sides
    if image.sides is None:
        yield (image.batch or 1,), (sides[0] + 32, sides[1])


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    try:
        logits: Tensor = network(images)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        count, _, height, width = images.shape
        raise NotMapped(f"as layers it does not run on {count} images of {height} x {width} ({reason})") from error
    return logits


def _error(logits: Tensor, reference: Tensor, path: object) -> float:
    if not bool(reference.isfinite().all()):
        raise CheckpointError(f"{path}: gives NaN or infinite logits. Are its weights damaged?")
    logits = logits[: len(reference)]
    if logits.shape != reference.shape:
        raise NotMapped(f"as layers it gives {tuple(logits.shape)} instead of {tuple(reference.shape)}")
    scale = reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((logits - reference).abs().max() / scale)


@torch.no_grad()
def is_same_prepared(
    before: nn.Module, after: nn.Module, preprocessing: Preprocessing, image: ImageInput, sides: tuple[int, int]
) -> bool:
    """Whether a network gives for prepared pictures what the one does that normalizes them itself."""
    pictures = torch.rand(1, image.channels, *sides, generator=torch.Generator().manual_seed(1))
    ordered = pictures.flip(1) if preprocessing.input_format == "bgr" else pictures
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    logits: Tensor = after((ordered - mean) / std)
    scale = TOLERANCE * logits.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return any(bool((before(pictures * largest) - logits).abs().max() <= scale) for largest in (255, 1))
