"""A Keras model as a network of torch's layers: its calls, one after the other, and the images that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from ...console import shown
from ...errors import CamifyError, CheckpointError, ConversionError
from ...preprocessing import LARGEST_SIDE, MOST_CHANNELS
from ..layer_graph import LayerGraph
from .activations import activation_kind
from .activations import is_known as is_known_activation
from .archive import KerasFile
from .config import Call, KerasLayer, KerasModel, Place, places_in
from .layers import IDLE, LAYERS, MERGES, SIZES
from .operations import OPERATIONS, is_operation, operation_name
from .steps import KerasSteps
from .values import CHANNELS_LAST, Value, plain, value_of

__all__ = ["KerasNetwork"]

_BATCH = 2
_MOST_CALLS = 50_000
_PIXELWISE = ("Rescaling", "Normalization", "Identity", *IDLE)
_DROPOUTS = ("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise")
_ADVICE = (
    "Rebuild the model with layers of Keras, copy the weights and save it again; or export it to ONNX:"
    ' model.export("model.onnx", format="onnx").'
)
_Key = tuple[str, int]


class KerasNetwork:
    """A model put together of torch's layers.

    Args:
        model: as the file describes it.
        file: its weights.
        default_size: height and width of the images where the model takes every size.

    Attributes:
        network: takes images (N, C, H, W), gives (N, K).
        size: height and width of the images that it was put together for.
        channels: C.
        notes: what was left out.

    Raises:
        ConversionError: it has layers that are not read, several inputs, or is no classifier.
        CheckpointError: the file is damaged or contradicts itself.
    """

    network: fx.GraphModule

    def __init__(self, model: KerasModel, file: KerasFile, default_size: tuple[int, int]) -> None:
        self.model, self.source = model, file.source
        self.notes: list[str] = []
        self._calls = 0
        _require_known(model, self.source)
        shape, self._is_last = self._input_shape()
        self._resizers = _first_resizers(model)
        self.size, self.channels = self._images(shape, default_size)
        self.graph = LayerGraph(self.source, (_BATCH, self.channels, *self.size))
        self.steps = KerasSteps(self.graph, file)
        image = Value(self.graph.image, CHANNELS_LAST if self._is_last else (0, 1, 2, 3))
        if len(shape) == 3:
            image = value_of(self.graph.method("squeeze", self.graph.image, 1), 3)
        outputs = self._run(model, [image])
        self.network = self.graph.network(self._logits(outputs).node)
        self._say_what_is_left_out()

    # ------------------------------------------------------------ images

    def _input_shape(self) -> tuple[tuple[Any, ...], bool]:
        """The shape of the model's input, N included, and whether the channels come last."""
        names = self.model.inputs
        if len(names) != 1 or names[0] not in self.model.layers:
            raise ConversionError(
                f"{self.source}: the model takes {len(names)} inputs ({shown(', '.join(names))[:200]}); camify takes"
                " classifiers of one image."
            )
        shape = _shape_of(self.model.layers[names[0]])
        inner = [_shape_of(one.layers[one.inputs[0]]) for one in _inner_models(self.model)]
        shapes = [one for one in (shape, *inner) if one is not None and len(one) in (3, 4)]
        if shape is not None and len(shape) not in (3, 4):
            raise ConversionError(
                f"{self.source}: the model takes {shape}, which are no images; camify takes image classifiers."
            )
        if not shapes:
            raise ConversionError(
                f"{self.source}: the file does not say which images the model takes. Build it on some,"
                " model.build((None, 224, 224, 3)), and save it again."
            )
        formats = [layer.config.get("data_format") for layer in self.model.all_layers()]
        is_last = next((one for one in formats if one in ("channels_last", "channels_first")), "") != "channels_first"
        whole = next((one for one in shapes if None not in one[1:]), shapes[0])
        return (whole if shape is None or None in shape[1:] else shape), is_last

    def _images(self, shape: Sequence[Any], default_size: tuple[int, int]) -> tuple[tuple[int, int], int]:
        sides = [*shape[1:], 1] if len(shape) == 3 else list(shape[1:])
        if not self._is_last and len(shape) == 4:
            sides = [*sides[1:], sides[0]]
        height, width, channels = sides
        height, width = height or default_size[0], width or default_size[1]
        if self._resizers:
            last = self._resizers[-1].config
            height, width = last.get("height"), last.get("width")
        channels = channels or 3
        numbers = all(isinstance(side, int) and side >= 1 for side in (height, width, channels))
        if not numbers or max(height, width) > LARGEST_SIDE or channels > MOST_CHANNELS:
            raise CheckpointError(
                f"{self.source}: the model takes images {height} x {width} with {channels} channels; at most"
                f" {LARGEST_SIDE} pixels a side and {MOST_CHANNELS} channels are read."
            )
        return (height, width), channels

    def _logits(self, outputs: Sequence[Value]) -> Value:
        """The one output that has a number for every class."""
        fitting = []
        for place, value in zip(self.model.outputs, outputs, strict=True):
            shape = self.steps.shape(value)
            if len(shape) == 4 and shape[1] == shape[2] == 1 and len(outputs) == 1:
                value = value_of(self.graph.method("flatten", value.node, 1), 2)
            if len(value.axes) == 2:
                fitting.append((place, plain(self.graph, value)))
        if len(fitting) == 1:
            rest = [place.layer for place in self.model.outputs if place is not fitting[0][0]]
            if rest:
                self.notes.append(f"of several outputs {fitting[0][0].layer} is used, {', '.join(rest)} left out")
            return fitting[0][1]
        shapes = [
            f"{place.layer} {tuple(self.steps.shape(value)[1:])}"
            for place, value in zip(self.model.outputs, outputs, strict=True)
        ]
        raise ConversionError(
            f"{self.source}: the model gives {shown(', '.join(shapes))[:300]}; camify takes classifiers with one output"
            " of a number per class. Make a model of that output, keras.Model(model.input, OUTPUT), and save it."
        )

    def _say_what_is_left_out(self) -> None:
        for why, names in self.steps.left_out.items():
            more = "" if len(names) <= 4 else f" and {len(names) - 4} more"
            self.notes.append(f"{', '.join(names[:4])}{more} left out: {why}")

    # ------------------------------------------------------------ calls

    def _run(self, model: KerasModel, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a model, its calls one after the other as far as they are needed."""
        if len(inputs) != len(model.inputs):
            raise ConversionError(f"{self.source}: the model {model.name} is called on {len(inputs)} tensors.")
        values: dict[_Key, list[Value]] = {(name, 0): [value] for name, value in zip(model.inputs, inputs, strict=True)}
        for layer, index in _order(model, self.source):
            self._calls += 1
            if self._calls > _MOST_CALLS:
                raise CheckpointError(f"{self.source}: more than {_MOST_CALLS} calls of layers are not read.")
            values[layer.name, index] = self._called(layer, layer.calls[index], values)
        return [_at(values, place) for place in model.outputs]

    def _called(self, layer: KerasLayer, call: Call, values: Mapping[_Key, list[Value]]) -> list[Value]:
        args = [_resolved(value, values) for value in call.args]
        options = {name: _resolved(value, values) for name, value in call.options.items()}
        try:
            if layer.model is not None:
                return self._run(layer.model, _tensors(args, options))
            return [self._apply(layer, args, options)]
        except CamifyError:
            raise
        except Exception as error:  # the options are the file's
            reason = " ".join(str(error).split())[:300]
            detail = reason if type(error) is ValueError else f"{type(error).__name__}: {reason}"
            raise CheckpointError(
                f"{self.source}: layer {shown(layer.title)[:200]} ({layer.kind}) cannot be read: {detail}."
            ) from error

    def _apply(self, layer: KerasLayer, args: list[Any], options: dict[str, Any]) -> Value:
        if is_operation(layer):
            return OPERATIONS[operation_name(layer)](self.steps, layer, args, options)
        tensors = _tensors(args, options)
        if options.get("training") is True:
            if "BatchNormalization" in layer.kind:
                raise ValueError("normalizes by each batch (training=True), so that images change each other")
            if layer.kind in _DROPOUTS:
                self.steps.leave_out(layer, "Keras runs it in evaluation too (training=True); here it rests")
        if layer.kind in MERGES:
            return MERGES[layer.kind](self.steps, layer, tensors)
        (value,) = tensors
        if layer in self._resizers:
            height, width = self.size
            self.steps.leave_out(layer, f"whole images are resized to {height} x {width} instead")
            return value
        return LAYERS[layer.kind](self.steps, layer, value)


def _shape_of(layer: KerasLayer) -> tuple[Any, ...] | None:
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
    return tuple(shape) if isinstance(shape, list | tuple) else None


def _inner_models(model: KerasModel) -> Iterator[KerasModel]:
    for layer in model.all_layers():
        inner = layer.model
        if inner is not None and inner.inputs and inner.inputs[0] in inner.layers:
            yield inner


def _first_resizers(model: KerasModel) -> list[KerasLayer]:
    """The layers that resize or crop the images before anything looks at more than single pixels."""
    resizers = []
    for layer in model.all_layers():
        if layer.kind in SIZES:
            resizers.append(layer)
        elif not (layer.kind in (*_PIXELWISE, "InputLayer") or is_operation(layer) or layer.model is not None):
            break
    return resizers


def _require_known(model: KerasModel, source: str) -> None:
    """Refuse what cannot be read, all at once."""
    unknown = []
    for layer in model.all_layers():
        if layer.model is not None or layer.kind == "InputLayer":
            continue
        if is_operation(layer):
            known, what = operation_name(layer) in OPERATIONS, str(layer.config.get("function") or layer.kind)
        else:
            known, what = layer.kind in LAYERS or layer.kind in MERGES, layer.kind
            spec = layer.config.get("activation")
            if known and spec is not None and not is_known_activation(spec):
                known, what = False, f"{layer.kind} with the activation {activation_kind(spec)}"
        if not known:
            unknown.append(f"{layer.title} ({what})")
    if unknown:
        listed = ", ".join(shown(one)[:120] for one in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        code = " (Lambda and layers of one's own are Python code, which is not run)"
        raise ConversionError(f"{source}: layers that camify cannot read: {listed}{more}{code}. {_ADVICE}")


def _order(model: KerasModel, source: str) -> list[tuple[KerasLayer, int]]:
    """The calls that the outputs need, each behind those that it needs itself."""
    done: set[_Key] = {(name, 0) for name in model.inputs}
    open_: set[_Key] = set()
    order: list[tuple[KerasLayer, int]] = []
    stack: list[tuple[_Key, bool]] = [((place.layer, place.call), False) for place in reversed(model.outputs)]
    while stack:
        key, needed_are_done = stack.pop()
        if key in done:
            continue
        name, index = key
        if name not in model.layers or not 0 <= index < len(model.layers[name].calls):
            raise CheckpointError(f"{source}: the model calls {shown(name)[:80]!r} in a place that it does not have.")
        if needed_are_done:
            done.add(key)
            open_.discard(key)
            order.append((model.layers[name], index))
            continue
        if key in open_:
            raise CheckpointError(f"{source}: the layer {shown(name)[:80]!r} needs its own output.")
        open_.add(key)
        stack.append((key, True))
        call = model.layers[name].calls[index]
        stack += [((place.layer, place.call), False) for place in places_in([call.args, call.options])]
    return order


def _at(values: Mapping[_Key, list[Value]], place: Place) -> Value:
    outputs = values[place.layer, place.call]
    if not 0 <= place.output < len(outputs):
        raise ValueError(f"output {place.output} of {place.layer}")
    return outputs[place.output]


def _resolved(value: Any, values: Mapping[_Key, list[Value]]) -> Any:
    if isinstance(value, Place):
        return _at(values, value)
    if isinstance(value, list):
        return [_resolved(item, values) for item in value]
    return {key: _resolved(item, values) for key, item in value.items()} if isinstance(value, dict) else value


def _tensors(args: Sequence[Any], options: Mapping[str, Any]) -> list[Value]:
    """The tensors that a layer is called on."""
    given = args[0] if args else options.get("inputs", options.get("x"))
    if isinstance(given, dict):
        given = list(given.values())
    tensors = [given] if isinstance(given, Value) else given
    if not isinstance(tensors, list) or not all(isinstance(value, Value) for value in tensors):
        raise ValueError("is called on what is no tensor")
    return tensors
