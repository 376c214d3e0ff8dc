"""ONNX classifiers of anybody: read as layers that train, and compared with onnxruntime before they are given.

The operators are mapped by camify's own table (``onnx_operators``) onto layers that it can store as data. A kept
converter was weighed: onnx2torch (2024, operators up to version 16) fails on what exporters write today, and
onnx2pytorch interprets the graph, so that its networks can neither be traced nor stored without its code.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..checkpoint.certificate import TOLERANCE
from ..console import shown
from ..errors import CheckpointError, ConversionError
from ..graphs.fx_modules import without_echo
from ..preprocessing import LARGEST_SIDE, MOST_CHANNELS, Preprocessing
from .layer_graph import LayerGraph
from .normalizing_prefix import fold_normalization
from .onnx_graph.following import follow
from .onnx_graph.fusing import fuse
from .onnx_graph.operators import OPERATORS
from .onnx_graph.reading import ForeignOnnx, read_onnx, require_onnx
from .onnx_graph.runtime import runtime_network, session_of
from .onnx_graph.steps import NotMapped, OnnxSteps, Step
from .source import Source

__all__ = ["load_onnx", "split_output"]

_OPEN_SIDES = (224, 256, 299, 32, 28, 64, 96, 128, 160, 192, 240, 227, 384, 331, 448, 512)
"""Tried in turn where a file leaves height and width open."""
_NAMES = ("class_names", "names", "classes", "labels", "id2label")
_LONGEST_NAMES = 10**7  # characters
_ENDINGS = {"Softmax": nn.Softmax, "LogSoftmax": nn.LogSoftmax, "Sigmoid": nn.Sigmoid}
_IDLE_ENDINGS = ("Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class _Image:
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


@dataclass(frozen=True)
class _Mapped:
    """The network of a file.

    Attributes:
        network: images -> logits.
        ending: the activation behind the logits, or None.
        logits_name: of the value that the logits are in the file.
        sides: height and width for which it was followed.
        classes: number of logits.
        notes: what was chosen and left out.
    """

    network: fx.GraphModule
    ending: nn.Module | None
    logits_name: str
    sides: tuple[int, int]
    classes: int
    notes: tuple[str, ...]


def split_output(text: str) -> tuple[Path, str | None]:
    """The file and, behind an ``@``, the output that is wanted of it."""
    if "@" in text and not Path(text).is_file():
        file, _, output = text.rpartition("@")
        return Path(file), output
    return Path(text), None


def load_onnx(text: str, weights: bool) -> Source:  # noqa: ARG001 - the file is the network
    """``FILE.onnx``, or ``FILE.onnx@OUTPUT`` where it has several outputs: the classifier in layers that train.

    Where a step is not known, the network is run by onnxruntime, forward only (see ``Source.no_gradients``).

    Raises:
        CheckpointError: the file is missing, damaged or does not run.
        ConversionError: it is no image classifier; says what it takes and gives.
    """
    path, wanted = split_output(text)
    require_onnx(path)
    foreign = read_onnx(path)
    image = _image_of(foreign)
    outputs = _outputs(foreign, wanted)
    try:
        mapped = _mapped(foreign, image, outputs)
        error, proof = _proof(foreign, image, mapped)
    except NotMapped as reason:
        return _forward_only(text, foreign, image, outputs, str(reason))
    if error > TOLERANCE:
        difference = f"the layers made of it give other logits than onnxruntime (difference {error:.1e} of the largest)"
        return _forward_only(text, foreign, image, outputs, difference)
    network, preprocessing, note = fold_normalization(mapped.network, image.channels, mapped.sides)
    if preprocessing is not None and not _is_same(mapped.network, network, preprocessing, image, mapped.sides):
        network, preprocessing, note = mapped.network, None, ""
    if preprocessing is None and image.is_bytes:
        preprocessing = Preprocessing.stated("0..255", Preprocessing.assumed(mapped.sides, image.channels))
        note = "images in 0..255, as the file takes bytes"
    notes = [*_reading_notes(foreign, image), *mapped.notes, *([note] if note else []), proof]
    names = _class_names(foreign, mapped.classes, notes)
    return Source(
        _with_ending(network, mapped.ending), text, names, tuple(notes), preprocessing,
        input_size=mapped.sides, channels=image.channels,
    )  # fmt: skip


# ---------------------------------------------------------------- what it takes and gives


def _image_of(foreign: ForeignOnnx) -> _Image:
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
    return _Image(value.name, dims[0], channels, sides, channels_last, tensor.elem_type)


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


def _outputs(foreign: ForeignOnnx, wanted: str | None) -> list[str]:
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


# ---------------------------------------------------------------- the network


def _mapped(foreign: ForeignOnnx, image: _Image, outputs: Sequence[str]) -> _Mapped:
    """The file's network in layers.

    Raises:
        NotMapped: a step is not known, or at no usual size do the steps fit each other.
    """
    first: NotMapped | None = None
    for sides in [image.sides] if image.sides is not None else [(side, side) for side in _OPEN_SIDES]:
        try:
            return _mapped_at(foreign, image, outputs, sides)
        except NotMapped as error:  # noqa: PERF203 - another size may do
            first = first or error
            if "is not known" in str(error):
                break
    raise first or NotMapped("it cannot be followed")


def _mapped_at(foreign: ForeignOnnx, image: _Image, outputs: Sequence[str], sides: tuple[int, int]) -> _Mapped:
    graph = LayerGraph(str(foreign.path), (image.batch or 1, image.channels, *sides))
    steps = OnnxSteps(graph, open_sides=image.sides is None)
    perm = (0, 2, 3, 1) if image.channels_last else None
    values: dict[str, Any] = {image.name: Step(graph.image, perm)}
    output, notes = _chosen_output(foreign, outputs)
    logits_name, ending = _ending(foreign, output)
    follow(steps, foreign.model.graph, values, OPERATORS, foreign.opset, [logits_name])
    logits = values.get(logits_name)
    if not isinstance(logits, Step):
        raise NotMapped(f"the output {shown(output)[:80]} does not depend on the image")
    node = steps.plain(logits)
    shape = graph.shape(node)
    if len(shape) > 2 and len(shape) - shape[1:].count(1) <= 2:
        node, shape = graph.call(torch.flatten, node, 1), (shape[0], max(shape[1:]))
    if len(shape) != 2 or logits.batch != 0 or shape[1] < 1:
        raise ConversionError(
            f"{foreign.path}: the output {shown(output)[:80]} is {tuple(shape)}; an image classifier gives (N, K), a"
            " number for each class. Another value of the file is named by FILE.onnx@NAME."
        )
    return _Mapped(graph.network(fuse(graph, node)), ending, logits_name, sides, shape[1], tuple(notes))


def _chosen_output(foreign: ForeignOnnx, outputs: Sequence[str]) -> tuple[str, list[str]]:
    """One of several outputs: probabilities before the logits that they are made of.

    Raises:
        ConversionError: several could be the classes; names them.
    """
    every = [output.name for output in foreign.model.graph.output]
    if len(outputs) > 1:
        inner = {name: _ending(foreign, name)[0] for name in outputs}
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


def _ending(foreign: ForeignOnnx, output: str) -> tuple[str, nn.Module | None]:
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


def _with_ending(network: fx.GraphModule, ending: nn.Module | None) -> fx.GraphModule:
    if ending is not None:
        output = network.graph.output_node()
        network.add_submodule("activation", ending)
        with network.graph.inserting_before(output):
            output.args = (network.graph.call_module("activation", output.args),)
        network.recompile()
    return without_echo(network.eval())


# ---------------------------------------------------------------- the proof


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = network(images)
    return result


def _noise(image: _Image, count: int, sides: tuple[int, int]) -> Tensor:
    """Images in the range that the file seems to take; of fixed seed."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, image.channels, *sides, generator=generator)
    return (pixels * 255).round() if image.is_bytes else pixels * 2 - 0.5


def _proof(foreign: ForeignOnnx, image: _Image, mapped: _Mapped) -> tuple[float, str]:
    """The largest difference between the network's logits and onnxruntime's, relative to the largest; what was run.

    Raises:
        CheckpointError: onnxruntime does not run the file.
        NotMapped: the network does not run on other numbers of images.
    """
    session = session_of(foreign, mapped.logits_name)
    errors: list[float] = []
    places: list[str] = []
    refusal: Exception | None = None
    for count, sides in _trials(image, mapped.sides):
        images = _noise(image, count, sides)
        try:
            (expected,) = session.run([mapped.logits_name], {image.name: image.given(images)})
        except Exception as error:  # noqa: BLE001 - onnxruntime's own kinds
            refusal = error  # of another size or number than the file is made for
            continue
        reference = torch.from_numpy(expected.astype("float32")).reshape(len(images), -1)
        try:
            logits = _run(mapped.network, images)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise NotMapped(
                f"as layers it does not run on {count} images of {sides[0]} x {sides[1]} ({reason})"
            ) from error
        if not bool(reference.isfinite().all()):
            raise CheckpointError(f"{foreign.path}: gives NaN or infinite logits. Are its weights damaged?")
        if logits.shape != reference.shape:
            raise NotMapped(f"as layers it gives {tuple(logits.shape)} instead of {tuple(reference.shape)}")
        scale = reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(float((logits - reference).abs().max() / scale))
        places.append(f"{count} of {sides[0]} x {sides[1]} px")
    if not places:
        reason = " ".join(str(refusal).split())[:200]
        raise CheckpointError(f"{foreign.path}: onnxruntime does not run it ({reason}).") from refusal
    if image.batch is not None:
        errors.append(_error_of_more(mapped.network, image, mapped.sides))
        places.append(f"{image.batch + 1} as one by one")
    largest = max(errors)
    return largest, f"logits equal onnxruntime's within {largest:.1e} of the largest (images: {', '.join(places)})"


def _trials(image: _Image, sides: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Numbers of images and sizes to compare at: two of each where the file leaves them open."""
    yield image.batch or 1, sides
    if image.batch is None:
        yield 2, sides
    if image.sides is None:
        yield 1, (sides[0] + 32, sides[1])


def _error_of_more(network: nn.Module, image: _Image, sides: tuple[int, int]) -> float:
    """Of a file with a fixed batch: how far more images at once differ from the same ones in its own batches."""
    count = (image.batch or 1) + 1
    images = _noise(image, count, sides)
    try:
        together, alone = _run(network, images), torch.cat([_run(network, one[None]) for one in images])
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise NotMapped(f"its batch of {image.batch} cannot be made another ({reason})") from error
    return float((together - alone).abs().max() / alone.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def _is_same(before: nn.Module, after: nn.Module, preprocessing: Preprocessing, image: _Image, size: Any) -> bool:
    """Whether the network on prepared pictures gives what the one does that normalizes them itself."""
    pictures = torch.rand(1, image.channels, *size, generator=torch.Generator().manual_seed(1))
    ordered = pictures.flip(1) if preprocessing.input_format == "bgr" else pictures
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    logits = _run(after, (ordered - mean) / std)
    scale = TOLERANCE * logits.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return any(bool((_run(before, pictures * largest) - logits).abs().max() <= scale) for largest in (255, 1))


# ---------------------------------------------------------------- what it says of itself


def _reading_notes(foreign: ForeignOnnx, image: _Image) -> list[str]:
    by = f", {shown(foreign.producer)[:60]}" if foreign.producer else ""
    notes = [f"read from ONNX (operators of version {foreign.opset}{by})"]
    if image.channels_last:
        notes.append("the file takes images (N, H, W, C), the network made of it (N, C, H, W)")
    if image.batch is not None:
        notes.append(f"the file takes {image.batch} image{'s' * (image.batch > 1)} at once, the network any number")
    return notes


def _class_names(foreign: ForeignOnnx, classes: int, notes: list[str]) -> list[str] | None:
    """The classes that the file's metadata names, where there is one name for each."""
    for key in _NAMES:
        text = foreign.properties.get(key)
        if not text or len(text) > _LONGEST_NAMES:
            continue
        names = _listed(text)
        if names is not None and len(names) in ((1, 2) if classes == 1 else (classes,)):
            notes.append(f"class names read from {key} of the file's metadata")
            return names
        notes.append(f"{key} of the file's metadata names no {classes} classes: left out")
    return None


def _listed(text: str) -> list[str] | None:
    """Names in order: a JSON list, or an object from numbers to names; also as Python writes a dict of them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        pairs = re.findall(r"(\d+):\s*(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")", text)
        value = {number: one or other for number, one, other in pairs} or None
    if isinstance(value, dict):
        by_number = {int(key): name for key, name in value.items() if str(key).isdecimal()}
        if by_number.keys() != set(range(len(value))):
            return None
        value = [by_number[number] for number in range(len(value))]
    usable = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return list(value) if usable else None


# ---------------------------------------------------------------- forward only


def _forward_only(text: str, foreign: ForeignOnnx, image: _Image, outputs: Sequence[str], reason: str) -> Source:
    """The file run by onnxruntime in two parts, to the last map and from there.

    Raises:
        ConversionError: it holds no map, or does not run.
    """
    output, more = _chosen_output(foreign, outputs)
    logits_name, ending = _ending(foreign, output)
    sides = image.sides or (_OPEN_SIDES[0], _OPEN_SIDES[0])
    parts = runtime_network(
        foreign, image.name, image.given, logits_name, (image.channels, *sides), image.batch, reason
    )
    network = nn.Sequential(OrderedDict(parts if ending is None else parts | {"activation": ending}))
    notes = [*_reading_notes(foreign, image), *more, f"{reason}: the file is run by onnxruntime, forward only"]
    logits = len(_run(parts["head"], _run(parts["features"], _noise(image, 1, sides)))[0])
    names = _class_names(foreign, logits, notes)
    preprocessing = None
    if image.is_bytes:
        preprocessing = Preprocessing.stated("0..255", Preprocessing.assumed(sides, image.channels))
    return Source(
        network.eval(), text, names, tuple(notes), preprocessing, input_size=sides, channels=image.channels,
        no_gradients=reason,
    )  # fmt: skip
