"""What a foreign ONNX file takes and gives: the image, and the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...console import shown
from ...errors import ConversionError
from ...preprocessing import LARGEST_SIDE, MOST_CHANNELS
from .reading import ForeignOnnx

__all__ = ["ImageInput", "chosen_output", "class_outputs", "ending_of", "image_input"]

_ENDINGS = {"Softmax": nn.Softmax, "LogSoftmax": nn.LogSoftmax, "Sigmoid": nn.Sigmoid}
_IDLE_ENDINGS = ("Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class ImageInput:
    """What the file takes.

    Attributes:
        name: of the input.
        batch: fixed number of images, or None.
        channels: of the images.
        sides: height and width; None where the file leaves them open.
        channels_last: images are (N, H, W, C).
        kind: type of its numbers, of ``onnx.TensorProto``.
    """

    name: str
    batch: int | None
    channels: int
    sides: tuple[int, int] | None
    channels_last: bool
    kind: int

    @property
    def is_bytes(self) -> bool:
        """Whether it takes whole numbers in 0..255."""
        return self.kind == 2

    def given(self, images: Tensor) -> Any:
        """Images (N, C, H, W) as an array that the file takes."""
        from onnx import helper

        images = images.permute(0, 2, 3, 1).contiguous() if self.channels_last else images.contiguous()
        return images.numpy().astype(helper.tensor_dtype_to_np_dtype(self.kind))


def image_input(foreign: ForeignOnnx) -> ImageInput:
    """The input that is the image.

    Raises:
        ConversionError: there is none, or several inputs.
    """
    constants = {tensor.name for tensor in foreign.model.graph.initializer}
    inputs = [value for value in foreign.model.graph.input if value.name not in constants]
    described = ", ".join(f"{shown(value.name)[:40]} {_shape_text(value)}" for value in inputs[:4]) or "nothing"
    if len(inputs) != 1:
        raise ConversionError(f"{foreign.path}: takes {described}; an image classifier takes one batch of images.")
    (value,) = inputs
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    first = _first_convolution(foreign)
    if not dims and first is not None:  # a file without shapes
        dims = [None, first[0], None, None]
    if len(dims) != 4 or tensor.elem_type not in (1, 2, 10, 11):
        raise ConversionError(f"{foreign.path}: takes {described}; images are (N, C, H, W) or (N, H, W, C) of numbers.")
    channels_last = _takes_channels_last(foreign, value.name, dims)
    channels = dims[3] if channels_last else dims[1]
    height, width = (dims[1], dims[2]) if channels_last else (dims[2], dims[3])
    channels = channels or (None if first is None else first[0])
    if channels is None or channels > MOST_CHANNELS or max(height or 1, width or 1) > LARGEST_SIDE:
        raise ConversionError(f"{foreign.path}: takes {described}, of which the channels or the size are not usable.")
    sides = None if height is None or width is None else (height, width)
    return ImageInput(value.name, dims[0], channels, sides, channels_last, tensor.elem_type)


def _first_convolution(foreign: ForeignOnnx) -> tuple[int, str] | None:
    """The channels that the first convolution takes, and its name."""
    weights = {tensor.name: tensor.dims for tensor in foreign.model.graph.initializer}
    for node in foreign.model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 1 and len(weights.get(node.input[1], ())) == 4:
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            return int(weights[node.input[1]][1]) * groups, node.name
    return None


def _takes_channels_last(foreign: ForeignOnnx, name: str, dims: Sequence[int | None]) -> bool:
    """Whether images are (N, H, W, C): told by the sizes, else by what is done with them first."""
    colors = (1, 3, 4)
    if (dims[3] in colors) != (dims[1] in colors):
        return dims[3] in colors
    users = [node for node in foreign.model.graph.node if name in node.input]
    for node in users:
        perms = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        if node.op_type == "Transpose" and perms:
            return perms[0] == [0, 3, 1, 2]
    return False


def _shape_text(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"({', '.join(str(dim.dim_value) if dim.dim_value else shown(dim.dim_param or '?')[:20] for dim in dims)})"


def class_outputs(foreign: ForeignOnnx, wanted: str | None) -> list[str]:
    """The outputs that can be the classes: floats, (N, K) or (N, K, 1, 1).

    Raises:
        ConversionError: there is none; names what there is.
    """
    graph = foreign.model.graph
    if wanted is not None:
        given = {name for node in graph.node for name in node.output}
        if wanted not in given:
            some = ", ".join(shown(output.name)[:60] for output in graph.output[:8])
            raise ConversionError(f"{foreign.path}: has no value {shown(wanted)[:80]!r}. Its outputs are {some}.")
        return [wanted]
    fitting = []
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        cells = [dim.dim_value for dim in dims[2:]]
        is_float = output.type.tensor_type.elem_type in (0, 1, 10, 11)
        if is_float and (not dims or len(dims) == 2 or (len(dims) == 4 and all(side in (0, 1) for side in cells))):
            fitting.append(output.name)
    if not fitting:
        some = ", ".join(f"{shown(output.name)[:40]} {_shape_text(output)}" for output in graph.output[:8])
        raise ConversionError(
            f"{foreign.path}: gives {some}; an image classifier gives (N, K), a number for each class. Is it a"
            " detector or a segmentation network? Another value of the file is named by FILE.onnx@NAME."
        )
    return fitting


def chosen_output(foreign: ForeignOnnx, outputs: Sequence[str]) -> tuple[str, list[str]]:
    """One of several outputs: probabilities before the logits that they are made of.

    Raises:
        ConversionError: several could be the classes; names them.
    """
    every = [output.name for output in foreign.model.graph.output]
    if len(outputs) > 1:
        inner = {name: ending_of(foreign, name)[0] for name in outputs}
        chosen = [name for name in outputs if inner[name] != name and inner[name] in outputs] or [
            name for name in outputs if inner[name] != name
        ]
        others = {inner[name] for name in chosen} | set(chosen)
        if len(chosen) != 1 or not set(outputs) <= others:
            names = ", ".join(shown(name)[:60] for name in outputs[:8])
            raise ConversionError(
                f"{foreign.path}: several outputs could be the classes: {names}. Name the one: FILE.onnx@NAME."
            )
        outputs = chosen
    left_out = [name for name in every if name != outputs[0]]
    notes = [f"of its outputs {shown(outputs[0])[:60]} is taken, {', '.join(left_out)[:120]} left out"]
    return outputs[0], notes if left_out and outputs[0] in every else []


def ending_of(foreign: ForeignOnnx, output: str) -> tuple[str, nn.Module | None]:
    """The value behind which only an activation over the classes comes, and that activation."""
    givers = {name: node for node in foreign.model.graph.node for name in node.output}
    name, ending, logits = output, None, output
    while (node := givers.get(name)) is not None and node.input:
        if node.domain not in ("", "ai.onnx"):
            break
        if node.op_type in _ENDINGS and ending is None:
            kind = _ENDINGS[node.op_type]
            ending = kind() if kind is nn.Sigmoid else kind(dim=1)
            logits = node.input[0]
        elif node.op_type not in _IDLE_ENDINGS or ending is not None:
            break
        name = node.input[0]
    return logits, ending
