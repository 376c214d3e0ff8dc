"""ONNX classifiers of anybody: read as layers that train, and compared with onnxruntime before they are given.

The operators are mapped by camify's own table (``onnx_graph.operators``) onto layers that it can store as data. A kept
converter was weighed: onnx2torch (2024, operators up to version 16) fails on what exporters write today, and
onnx2pytorch interprets the graph, so that its networks can neither be traced nor stored without its code.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from ..checkpoint.certificate import TOLERANCE
from ..console import shown
from ..errors import ConversionError
from ..graphs.fx_modules import without_echo
from ..preprocessing import Preprocessing
from .layer_graph import LayerGraph
from .normalizing_prefix import fold_normalization
from .onnx_graph.following import follow
from .onnx_graph.fusing import fuse
from .onnx_graph.interface import ImageInput, chosen_output, class_outputs, ending_of, image_input
from .onnx_graph.operators import OPERATORS
from .onnx_graph.proof import is_same_prepared, noise_images, proof
from .onnx_graph.reading import ForeignOnnx, read_onnx, require_onnx
from .onnx_graph.runtime import runtime_network, session_of
from .onnx_graph.steps import NotMapped, OnnxSteps, Step
from .source import Source

__all__ = ["load_onnx", "split_output"]

_OPEN_SIDES = (224, 256, 299, 32, 28, 64, 96, 128, 160, 192, 240, 227, 384, 331, 448, 512)
"""Tried in turn where a file leaves height and width open."""
_NAMES = ("class_names", "names", "classes", "labels", "id2label")
_LONGEST_NAMES = 10**7  # characters
_NHWC = (0, 2, 3, 1)
_HALF_TOLERANCE = 8 * torch.finfo(torch.float16).eps  # onnxruntime rounds every step


@dataclass(frozen=True)
class _Classifier:
    """A file, and what of it is an image classifier.

    Attributes:
        text: as it was named.
        foreign: the file.
        image: its input.
        logits: name of the value that the logits are.
        ending: the activation behind them, or None.
        notes: what was read, chosen and left out.
    """

    text: str
    foreign: ForeignOnnx
    image: ImageInput
    logits: str
    ending: nn.Module | None
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
    image = image_input(foreign)
    output, notes = chosen_output(foreign, class_outputs(foreign, wanted))
    logits, ending = ending_of(foreign, output)
    classifier = _Classifier(text, foreign, image, logits, ending, (*_reading_notes(foreign, image), *notes))
    try:
        network, sides, classes = _mapped(classifier)
        error, proven = proof(network, session_of(foreign, logits), image, logits, sides, path)
    except NotMapped as reason:
        return _forward_only(classifier, str(reason))
    if not error <= (_HALF_TOLERANCE if foreign.is_half else TOLERANCE):
        difference = f"the layers made of it give other logits than onnxruntime (difference {error:.1e} of the largest)"
        return _forward_only(classifier, difference)
    return _source(classifier, network, sides, classes, proven)


def _source(
    classifier: _Classifier, network: fx.GraphModule, sides: tuple[int, int], classes: int, proven: str
) -> Source:  # fmt: skip
    """The network without the normalization that it begins with, and what is known about it."""
    image, notes = classifier.image, list(classifier.notes)
    folded, preprocessing, note = fold_normalization(network, image.channels, sides)
    if preprocessing is not None and is_same_prepared(network, folded, preprocessing, image, sides):
        network = folded
        notes.append(note)
    elif image.is_bytes:
        preprocessing, note = _of_bytes(image, sides)
        notes.append(note)
    elif image.channels == 3 and "Ultralytics" in classifier.foreign.properties.get("author", ""):
        preprocessing = Preprocessing.stated("0..1", Preprocessing.assumed(sides))
        notes.append("images in 0..1, as Ultralytics trains its classifiers, are assumed")
    else:
        preprocessing = None
    notes.append(proven)
    names = _class_names(classifier.foreign, classes, notes)
    return Source(
        _with_ending(network, classifier.ending), classifier.text, names, tuple(notes), preprocessing,
        input_size=sides, channels=image.channels,
    )  # fmt: skip


def _of_bytes(image: ImageInput, sides: tuple[int, int]) -> tuple[Preprocessing, str]:
    std = (1 / 255,) * image.channels
    return Preprocessing(sides, (0.0,) * image.channels, std), "images in 0..255, as the file takes bytes"


# ---------------------------------------------------------------- the network


def _mapped(classifier: _Classifier) -> tuple[fx.GraphModule, tuple[int, int], int]:
    """The file's network in layers, up to the logits; the height and width it was followed at; its classes.

    Raises:
        NotMapped: a step is not known, or at no usual size do the steps fit each other.
    """
    first: NotMapped | None = None
    known = classifier.image.sides
    for sides in [known] if known is not None else [(side, side) for side in _OPEN_SIDES]:
        try:
            network, classes = _mapped_at(classifier, sides)
        except NotMapped as error:  # noqa: PERF203 - another size may do
            first = first or error
            if "is not known" in str(error):
                break
        else:
            return network, sides, classes
    raise first or NotMapped("it cannot be followed")


def _mapped_at(classifier: _Classifier, sides: tuple[int, int]) -> tuple[fx.GraphModule, int]:
    foreign, image = classifier.foreign, classifier.image
    graph = LayerGraph(str(foreign.path), (image.batch or 1, image.channels, *sides))
    steps = OnnxSteps(graph, open_sides=image.sides is None)
    values = {image.name: Step(graph.image, _NHWC if image.channels_last else None)}
    follow(steps, foreign.model.graph, values, OPERATORS, foreign.opset, [classifier.logits])
    logits = values.get(classifier.logits)
    if not isinstance(logits, Step):
        raise NotMapped(f"the output {shown(classifier.logits)[:80]} does not depend on the image")
    node = steps.plain(logits)
    shape = graph.shape(node)
    if len(shape) > 2 and len(shape) - shape[1:].count(1) <= 2:
        node, shape = graph.call(torch.flatten, node, 1), (shape[0], max(shape[1:]))
    if len(shape) != 2 or logits.batch != 0 or shape[1] < 1:
        raise ConversionError(
            f"{foreign.path}: the output {shown(classifier.logits)[:80]} is {tuple(shape)}; an image classifier gives"
            " (N, K), a number for each class. Another value of the file is named by FILE.onnx@NAME."
        )
    return graph.network(fuse(graph, node)), shape[1]


def _with_ending(network: fx.GraphModule, ending: nn.Module | None) -> fx.GraphModule:
    if ending is not None:
        output = network.graph.output_node()
        network.add_submodule("activation", ending)
        with network.graph.inserting_before(output):
            output.args = (network.graph.call_module("activation", output.args),)
        network.recompile()
    return without_echo(network.eval())


# ---------------------------------------------------------------- forward only


def _forward_only(classifier: _Classifier, reason: str) -> Source:
    """The file run by onnxruntime in two parts, to the last map and from there.

    Raises:
        ConversionError: it holds no map, or does not run.
    """
    foreign, image = classifier.foreign, classifier.image
    sides = image.sides or (_OPEN_SIDES[0], _OPEN_SIDES[0])
    shape = (image.channels, *sides)
    parts = runtime_network(foreign, image.name, image.given, classifier.logits, shape, image.batch, reason)
    classes = len(parts["head"](parts["features"](noise_images(image, image.batch or 1, sides)))[0])
    if classifier.ending is not None:
        parts["activation"] = classifier.ending
    notes = [*classifier.notes, f"{reason}: the file is run by onnxruntime, forward only"]
    names = _class_names(foreign, classes, notes)
    preprocessing = None
    if image.is_bytes:
        preprocessing, note = _of_bytes(image, sides)
        notes.append(note)
    return Source(
        nn.Sequential(OrderedDict(parts)).eval(), classifier.text, names, tuple(notes), preprocessing,
        input_size=sides, channels=image.channels, no_gradients=reason,
    )  # fmt: skip


# ---------------------------------------------------------------- what the file says of itself


def _reading_notes(foreign: ForeignOnnx, image: ImageInput) -> list[str]:
    by = f", {shown(foreign.producer)[:60]}" if foreign.producer else ""
    notes = [f"read from ONNX (operators of version {foreign.opset}{by})"]
    if image.channels_last:
        notes.append("the file takes images (N, H, W, C), the network made of it (N, C, H, W)")
    if foreign.is_half:
        notes.append("weights in half precision become single precision")
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
