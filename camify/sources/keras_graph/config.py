"""How a Keras file describes its layers and their calls, of Keras 2 and 3, as plain values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from ...checkpoint.bounds import MOST_STEPS
from ...errors import CheckpointError, ConversionError

__all__ = ["MODEL_KINDS", "Call", "KerasLayer", "KerasModel", "Place", "parse_model", "places_in"]

MODEL_KINDS = ("Functional", "Model", "Sequential")
_DEEPEST = 16  # models in models
_CONSTANT = "_CONSTANT_VALUE"
_INPUT = "InputLayer"


class Place(NamedTuple):
    """A tensor: which of the outputs of which call of which layer."""

    layer: str
    call: int
    output: int


class Call(NamedTuple):
    """What a layer is called with: values, lists of them, and a ``Place`` where another layer's tensor stands."""

    args: list[Any]
    options: dict[str, Any]


@dataclass(eq=False)
class KerasLayer:
    """A layer, an operation or a model in a model.

    Attributes:
        kind: its class, without a package.
        name: in its model.
        config: its options.
        calls: of it.
        path: to its weights in ``model.weights.h5``.
        outer: name of the layer of the outermost model in which it lies, or its own.
        title: its name with those of the models around it.
        model: its layers, where it is a model.
        is_operation: it is a function that was called on tensors.
    """

    kind: str
    name: str
    config: dict[str, Any]
    calls: list[Call]
    path: tuple[str, ...]
    outer: str
    title: str
    model: KerasModel | None = None
    is_operation: bool = False


@dataclass(eq=False)
class KerasModel:
    """Layers by name, and where the inputs and outputs stand.

    Attributes:
        name: as the file has it.
        layers: by name.
        inputs: names of its input layers.
        outputs: the tensors that it gives.
    """

    name: str
    layers: dict[str, KerasLayer] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[Place] = field(default_factory=list)

    def all_layers(self) -> Iterator[KerasLayer]:
        """Its layers and those of the models in it."""
        for layer in self.layers.values():
            yield layer
            if layer.model is not None:
                yield from layer.model.all_layers()


def parse_model(data: Mapping[str, Any], source: str) -> KerasModel:
    """The model that a file describes.

    Raises:
        ConversionError: it is code: a class of the user's.
        CheckpointError: the description is malformed.
    """
    kind = str(data.get("class_name"))[:80]
    if kind not in MODEL_KINDS:
        raise ConversionError(
            f"{source}: the model is a {kind}, a class of Python code that the file does not hold. Build the same model"
            ' from keras.Model(inputs, outputs), or export it to ONNX (model.export("model.onnx", format="onnx")).'
        )
    try:
        return _Parser(source).model(data, (), "", "", 0)
    except (CheckpointError, ConversionError):
        raise
    except Exception as error:  # the values of a damaged or hostile file
        raise CheckpointError(
            f"{source}: the model's description is malformed ({type(error).__name__}: {str(error)[:200]}). Save the"
            " model again."
        ) from error


def places_in(value: Any) -> Iterator[Place]:
    """Every place in the arguments of a call."""
    if isinstance(value, Place):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from places_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from places_in(item)


class _Parser:
    def __init__(self, source: str) -> None:
        self.source, self.count = source, 0

    def model(self, data: Mapping[str, Any], path: tuple[str, ...], outer: str, title: str, depth: int) -> KerasModel:
        if depth > _DEEPEST:
            raise CheckpointError(f"{self.source}: models in models, more than {_DEEPEST} deep, are not read.")
        config = data["config"]
        entries = config if isinstance(config, list) else config["layers"]  # a list: Sequential of early Keras 2
        name = "" if isinstance(config, list) else str(config.get("name", ""))
        self.count += len(entries)
        if self.count > MOST_STEPS:
            raise CheckpointError(f"{self.source}: more than {MOST_STEPS} layers are not read.")
        model, used = KerasModel(name), dict[str, int]()
        for entry in entries:
            layer = self.layer(entry, path, outer, title, depth, used)
            if layer.name in model.layers:
                raise CheckpointError(f"{self.source}: two layers are named {layer.name[:80]!r}.")
            model.layers[layer.name] = layer
        if data["class_name"] == "Sequential":
            self.chain(model, data, config)
            return model
        for entry in entries:
            layer = model.layers[_name_of(entry)]
            layer.calls = [self.call(node, model.layers) for node in entry["inbound_nodes"]]
        model.inputs = [place.layer for place in _listed(config["input_layers"])]
        model.outputs = _listed(config["output_layers"])
        self.number(model)
        return model

    def layer(
        self, entry: Mapping[str, Any], path: tuple[str, ...], outer: str, title: str, depth: int, used: dict[str, int]
    ) -> KerasLayer:
        kind, name = str(entry["class_name"]).rpartition(">")[2], _name_of(entry)
        config = entry["config"]
        own = _numbered(_snake_case(kind), used)
        where = (*path, "layers", own)
        full = ".".join(part for part in (title, name.replace(".", "_")) if part)
        layer = KerasLayer(kind, name, config if isinstance(config, dict) else {}, [], where, outer or name, full)
        if kind in MODEL_KINDS:
            layer.model = self.model(entry, where, outer or name, full, depth + 1)
        module = str(entry.get("module") or "")
        layer.is_operation = ".ops." in module or (not module and not {"trainable", "dtype"} & set(layer.config))
        return layer

    def chain(self, model: KerasModel, data: Mapping[str, Any], config: Any) -> None:
        """The calls of a Sequential: each layer takes what the one before it gave."""
        layers = list(model.layers.values())
        if not layers or layers[0].kind != _INPUT:
            shape = config.get("build_input_shape") if isinstance(config, dict) else None
            shape = shape or (data.get("build_config") or {}).get("input_shape")
            first = layers[0].config if layers else {}
            shape = first.get("batch_input_shape") or first.get("batch_shape") or shape
            start = KerasLayer(_INPUT, "", {"batch_shape": shape}, [], (), "", "")
            model.layers = {"": start, **model.layers}
            layers = [start, *layers]
        for before, layer in pairwise(layers):
            layer.calls = [Call([Place(before.name, 0, 0)], {})]
        model.inputs, model.outputs = [layers[0].name], [Place(layers[-1].name, 0, 0)]

    def number(self, model: KerasModel) -> None:
        """Keras counts the calls of a model from 1 where the model had an input of its own: from 0 here."""
        calls = [call for layer in model.layers.values() for call in layer.calls]
        used: dict[str, set[int]] = {}
        for place in (*places_in([list(call) for call in calls]), *model.outputs):
            used.setdefault(place.layer, set()).add(place.call)
        shifted = {
            name
            for name, numbers in used.items()
            if name in model.layers
            and model.layers[name].calls
            and 0 not in numbers
            and max(numbers) >= len(model.layers[name].calls)
        }

        def moved(value: Any) -> Any:
            if isinstance(value, Place):
                return value._replace(call=value.call - 1) if value.layer in shifted else value
            if isinstance(value, list):
                return [moved(item) for item in value]
            return {key: moved(item) for key, item in value.items()} if isinstance(value, dict) else value

        if shifted:
            for layer in model.layers.values():
                layer.calls = [Call(moved(call.args), moved(call.options)) for call in layer.calls]
            model.outputs = moved(model.outputs)

    # ------------------------------------------------------------ calls

    def call(self, node: Any, layers: Mapping[str, KerasLayer]) -> Call:
        if isinstance(node, dict):  # Keras 3
            return Call(_plain(node.get("args", []), _keras3), _plain(node.get("kwargs", {}), _keras3))
        entries = [node] if isinstance(node[0], str) else node

        def place(value: Any) -> Any:
            is_place = isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str)
            if is_place and value[0] == _CONSTANT:
                return value[2]
            if is_place and value[0] in layers and isinstance(value[1], int) and isinstance(value[2], int):
                return Place(value[0], value[1], value[2])
            return value

        args = [place(entry[:3]) for entry in entries]
        options = next((entry[3] for entry in entries if len(entry) > 3 and isinstance(entry[3], dict)), {})
        if not isinstance(node[0], str) and len(args) > 1:
            args = [args]
        return Call(args, _plain(options, place))


def _plain(value: Any, known: Callable[[Any], Any]) -> Any:
    value = known(value)
    if isinstance(value, Place):
        return value
    if isinstance(value, list):
        return [_plain(item, known) for item in value]
    return {key: _plain(item, known) for key, item in value.items()} if isinstance(value, dict) else value


def _keras3(value: Any) -> Any:
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        name, call, output = value["config"]["keras_history"]
        return Place(str(name), int(call), int(output))
    if isinstance(value, dict) and value.get("class_name") in ("__tensor__", "__numpy__"):
        return value["config"]["value"]
    return value


def _listed(value: Any) -> list[Place]:
    """The places of inputs and outputs: one, a list, a dict, or a list of lists."""
    if isinstance(value, dict):
        return [place for item in value.values() for place in _listed(item)]
    if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
        return [Place(value[0], value[1], int(value[2]))]
    return [place for item in value for place in _listed(item)]


def _name_of(entry: Mapping[str, Any]) -> str:
    config = entry["config"]
    inner = config.get("name") if isinstance(config, dict) else None
    return str(entry.get("name") or inner or entry["class_name"])[:500]


def _numbered(name: str, used: dict[str, int]) -> str:
    used[name] = used.get(name, -1) + 1
    return f"{name}_{used[name]}" if used[name] else name


def _snake_case(name: str) -> str:
    """As Keras writes a class in the paths of its weights: ``BatchNormalization`` -> ``batch_normalization``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
