"""What a foreign network takes and returns, looked at before it is used: images in, a row of logits for each out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import CamifyError, ConversionError, NotFiniteError

__all__ = [
    "BATCH_NOTE",
    "MixedImagesError",
    "Spread",
    "cannot_run",
    "chance_note",
    "lacks_memory",
    "logits_of",
    "require_gradients",
    "require_image_input",
    "require_logits",
    "running",
    "spread",
]

_EXPECTED = "expected one tensor of logits (N, classes)"
_SAME = 1e-5  # of the largest logit: what rounding may change from one forward to the next
_ALIKE = 1e-3  # likewise, where the images stand in another order
_LISTED = 6  # outputs in a message
_OTHER_INPUTS: dict[type[nn.Module], str] = {  # by the first layer of a network
    nn.Conv3d: "volumes or videos (N, C, D, H, W)",
    nn.Conv1d: "signals (N, C, L)",
    nn.Embedding: "numbers of words (N, L)",
}


def require_logits(output: Any, images: Tensor | int, *, finite: bool = True) -> Tensor:
    """The logits (N, K) that a network returned for N images: the one check of every foreign network's output.

    Args:
        output: what it returned.
        images: (N, C, H, W), or their number N alone.
        finite: whether to look for NaN and infinity, which waits for the device.

    Raises:
        ConversionError: it is no tensor of numbers (N, K); says what it is, and what to do.
        NotFiniteError: it holds NaN or infinity.

    Example:
        >>> require_logits(torch.zeros(8, 5), torch.zeros(2, 3, 64, 64))
        Traceback (most recent call last):
        ...
        camify.errors.ConversionError: The network returns 4 rows of logits for 1 image: it takes another input size \
than 64x64. Give input_size, or images of the size that it takes.
    """
    count = images if isinstance(images, int) else len(images)
    if not isinstance(output, Tensor):
        raise ConversionError(_several(output, count))
    if output.dim() != 2 or not output.shape[1]:
        raise ConversionError(f"The network returns {tuple(output.shape)}; {_EXPECTED}. {_reshaped(output, count)}")
    if len(output) != count:
        times = len(output) // count if count and len(output) % count == 0 else 0
        rows, for_images = (times, 1) if times else (len(output), count)
        size = "" if isinstance(images, int) else f" than {'x'.join(map(str, images.shape[2:]))}"
        joined = "" if times else ", or joins the images of a batch"
        turned = " Or does it return (classes, N)?" if output.shape[1] == count > 1 else ""
        raise ConversionError(
            f"The network returns {_number(rows, 'row')} of logits for {_number(for_images, 'image')}: it takes another"
            f" input size{size}{joined}. Give input_size, or images of the size that it takes.{turned}"
        )
    if not output.is_floating_point():
        raise ConversionError(
            f"The network returns {_described(output)}: class numbers or scores, not logits; {_EXPECTED}, which are"
            " floating-point numbers. Wrap it in a module whose forward returns what comes before them."
        )
    if finite and not bool(output.isfinite().all()):
        whole = isinstance(images, int) or bool(images.isfinite().all())
        why = "Are the weights damaged?" if whole else "The images hold some: mend or remove them."
        raise NotFiniteError(f"The network gives NaN or infinite logits. {why}")
    return output


def logits_of(model: nn.Module, images: Tensor, *, finite: bool = True) -> Tensor:
    """The logits (N, K) of one forward of a foreign network; see ``require_logits``.

    Raises:
        ConversionError: it cannot run on the images, or returns something else.
    """
    require_image_input(model)
    with running(model, images):
        output = model(images.clone())  # it may begin with a step in place
    return require_logits(output, images, finite=finite)


# ---------------------------------------------------------------- what it takes


def require_image_input(model: nn.Module) -> None:
    """Refuse a network that takes something else than one batch of images.

    Raises:
        ConversionError: names the inputs of its forward.
    """
    forward = model.forward
    if getattr(forward, "__name__", "") == "_forward_unimplemented":
        raise ConversionError(f"The network ({type(model).__name__}) has no forward: it cannot be run.")
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # of code that is not Python's
        return
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    first_is_free = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) == 1 or (not needed and (first_is_free or any(parameters))):
        return
    names = f" ({', '.join(needed)})" if needed else ""
    raise ConversionError(
        f"The network's forward takes {len(needed) or 'no'} input{'s' * (len(needed) != 1)}{names}; camify gives it"
        " one, the images (N, C, H, W). Wrap it in a module whose forward takes the images alone and adds the others."
    )


def require_gradients(model: nn.Module) -> None:
    """Refuse a network whose values PyTorch neither derives by nor writes to, outside of ``inference_mode``.

    Raises:
        ConversionError: some were made inside of it.
    """
    if any(value.is_inference() for value in chain(model.parameters(), model.buffers())):
        raise ConversionError(
            "The network was made inside torch.inference_mode: there are no gradients through its weights, and they"
            " cannot be changed. Make it outside, or take copy.deepcopy(model) outside."
        )


class running:  # noqa: N801 - used as `contextlib.suppress` is
    """What a network raises while it runs on images comes out as one sentence; lack of memory as it is.

    No generator: ``contextlib`` of Python 3.12 and newer holds what one replaces in a circle, and so the network.

    Raises:
        ConversionError: see ``cannot_run``.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._model, self._images = model, images

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CamifyError) and not lacks_memory(error):
            raise cannot_run(self._model, self._images, error) from error


def lacks_memory(error: Exception) -> bool:
    """Whether a network raised an error for lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search(r"allocate|CUDNN_STATUS", str(error)))


def cannot_run(model: nn.Module, images: Tensor, error: Exception, place: str = "") -> ConversionError:
    """The error of a network that does not run on images (N, C, H, W).

    Args:
        model: the network.
        images: that it was given.
        error: what it raised.
        place: the step that raised it, where that is known.
    """
    reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
    text = f"The network cannot run on input {tuple(images.shape)}{f'; at {place}' if place else ''}: {reason}."
    first = next((layer for layer in model.modules() if isinstance(layer, (*_OTHER_INPUTS, nn.Conv2d))), None)
    inputs = next((inputs for kind, inputs in _OTHER_INPUTS.items() if isinstance(first, kind)), None)
    if inputs is None and re.search(r"expected 5|\b5-?D\b", reason):
        inputs = _OTHER_INPUTS[nn.Conv3d]
    if inputs is not None:
        return ConversionError(f"{text} It takes {inputs}; camify takes networks of images (N, C, H, W).")
    channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if "channel" in reason and channels not in (None, images.shape[1]):
        return ConversionError(f"{text} Give images of {channels} channels, as example where noise is used.")
    size = "x".join(map(str, images.shape[2:]))
    return ConversionError(f"{text} Give input_size (now {size}) or example.")


# ---------------------------------------------------------------- the same each time


class MixedImagesError(ConversionError):
    """A network's answer to an image depends on the others of its batch."""


class Spread(NamedTuple):
    """How the logits of one image differ.

    Attributes:
        chance: the largest difference between two forwards of the same images; 0 of most networks.
        by_batch: whether they depend on which other images are beside it.
    """

    chance: float = 0.0
    by_batch: bool = False


@torch.no_grad()
def spread(model: nn.Module, images: Tensor, logits_NK: Tensor | None = None) -> Spread:
    """Whether a network in eval mode gives the same logits for the same image, whenever and beside whatever others.

    One forward more, of the last image at every place, where all is well.

    Args:
        model: the network.
        images: (N, C, H, W), at least two.
        logits_NK: that were found for them; None runs it once more.

    Raises:
        MixedImagesError: the logits of an image depend on where in the batch it stands.
        ConversionError: they are not those given.
    """
    alone = logits_of(model, images[-1:].repeat(len(images), 1, 1, 1))
    first = logits_of(model, images) if logits_NK is None else logits_NK
    if _near(alone, first[-1:].expand_as(first), _SAME):
        return Spread()
    own, again = logits_of(model, images), logits_of(model, images)
    if not _near(own, again, _SAME):
        return Spread(chance=float((own - again).abs().max()))
    turned = logits_of(model, images.flip(0)).flip(0)
    if not _near(turned, own, _ALIKE):
        raise MixedImagesError(
            "The network's logits of an image depend on its place among the others of the batch: it mixes images"
            " (a view or reshape that does not keep the first axis?). Mend its forward; x.flatten(1) keeps them apart."
        )
    if not _near(first, own, _ALIKE):
        raise ConversionError(
            "The steps that torch.fx writes down give other logits than the network's own forward: it depends on more"
            " than the image, such as a counter. Take that out of forward."
        )
    return Spread(by_batch=not _near(alone, own[-1:].expand_as(own), _ALIKE))


BATCH_NOTE = (
    "The network's logits of an image depend on which others are in its batch: a batch norm that takes the batch's own"
    " mean (track_running_stats=False), a softmax over axis 0, or an `if` about the whole batch? Its answers, and maps,"
    " are those of one batch."
)


def chance_note(difference: float) -> str:
    """What is said of a network that gives other outputs for the same image."""
    return (
        f"The network gives other outputs for the same image (largest difference {difference:.2g}): a dropout that is"
        " always on (F.dropout without training=self.training), or chance in its forward?"
    )


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    scale = float(other.abs().max())
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance * scale


# ---------------------------------------------------------------- in words


def _several(output: Any, count: int) -> str:
    """What a network returned instead of a tensor, and how to wrap it."""
    if output is None:
        return f"The network returns None; {_EXPECTED}. Does its forward end without a return?"
    outputs = _outputs(output)
    listed = ", ".join(f"{name}: {_described(value)}" for name, value in outputs[:_LISTED])
    more = ", ..." if len(outputs) > _LISTED else ""
    kind = type(output).__name__.removeprefix("immutable_")  # torch.fx's own of a list or dict
    what = f"{kind} of {_number(len(outputs), 'output')} ({listed}{more})" if outputs else kind
    fitting = [name for name, value in outputs if _could_be_logits(value, count)]
    chosen = next((name for name in fitting if name == "logits"), fitting[0] if len(fitting) == 1 else None)
    returns = "the logits alone" if chosen is None else f"the logits alone, network(x){_access(output, chosen)}"
    return f"The network returns {what}; {_EXPECTED}. Wrap it in a module whose forward returns {returns}."


def _outputs(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, Sequence) and not isinstance(output, str | bytes):
        return list(enumerate(output))
    if is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return [(name, value) for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)]


def _access(output: Any, name: Any) -> str:
    plain = isinstance(output, Mapping) or (isinstance(output, Sequence) and not hasattr(output, "_fields"))
    return f"[{name!r}]" if plain else f".{name}"


def _could_be_logits(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2 and len(value) == count


def _reshaped(output: Tensor, count: int) -> str:
    """How to make logits of a tensor of another shape."""
    if output.dim() > 2 and output.shape[0] == count and output.shape[2:].numel() == 1:
        returns = "network(x).flatten(1)"
    elif output.dim() == 1 and len(output) == count > 1:
        returns = "network(x)[:, None], one logit an image"
    elif output.dim() == 1 and count == 1:
        returns = "logits also of one image: squeeze() takes its axis away, flatten(1) does not"
    else:
        returns = "the logits alone"
    return f"Wrap it in a module whose forward returns {returns}."


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{str(value.dtype).removeprefix('torch.')} {shape}"


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
