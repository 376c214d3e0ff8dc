"""Classifiers that Keras saved, as sources: read as data, no code of Keras or of the file runs."""

from __future__ import annotations

import re
from pathlib import Path

import torchvision

from ..errors import CamifyError, CheckpointError
from ..preprocessing import Preprocessing
from .keras_graph.archive import KerasFile
from .keras_graph.config import KerasModel, parse_model
from .keras_graph.network import KerasNetwork
from .normalizing_prefix import fold_normalization
from .source import Source

__all__ = ["is_keras", "load_keras"]

_SUFFIXES = (".keras", ".h5", ".hdf5")
_MODES = (  # of preprocess_input, by the names that keras.applications gives its networks
    (r"(vgg1[69]|resnet(50|101|152))", "caffe"),
    (r"(mobilenet|mobilenetv2|resnet\d+v2|xception|inception_v3|inception_resnet_v2|nasnet)", "tf"),
    (r"densenet\d*", "imagenet"),
)
_NAMES = re.compile(
    r"(vgg1[69]|resnet\d+(v2)?|mobilenet(v2)?(?=_\d)|mobilenet(v3)?(small|large)?|xception|inception_v3"
    r"|inception_resnet_v2|nasnet(_mobile|_large)?|densenet\d*|efficientnet(v2)?-?\w+|convnext_\w+)"
    r"(_\d.*)?",
    re.IGNORECASE,
)
_SIZES = {"xception": 299, "inception_v3": 299, "inception_resnet_v2": 299, "nasnet_large": 331}
_CLASSES, _TOP = 1000, "predictions"


def is_keras(text: str) -> bool:
    """Whether a text names a file of Keras, or the folder of an unzipped one."""
    path = Path(text)
    if path.is_dir():
        return (path / "model.weights.h5").is_file()
    return path.suffix.lower() in _SUFFIXES and ("@" not in text or path.is_file())


def load_keras(text: str, weights: bool) -> Source:  # noqa: ARG001 - the file is the network
    """The classifier in a ``.keras`` archive or an ``.h5`` file of Keras 2 or 3.

    Its normalization, where it begins with one, is the preprocessing; else that of ``preprocess_input`` where the
    network has the name of one of ``keras.applications``, and the source says so.

    Raises:
        ConversionError: h5py is not installed; the file holds weights alone, layers that are code, or no classifier.
        CheckpointError: it is missing, damaged or contradicts itself.
    """
    path = Path(text)
    file = KerasFile(path)
    try:
        model = parse_model(file.config, file.source)
        name = known_name(model)
        side = _SIZES.get(name or "", 224)
        built = KerasNetwork(model, file, (side, side))
    except CamifyError:
        raise
    except Exception as error:  # the values are the file's: they can contradict each other in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(
            f"{text}: the model's description contradicts itself ({reason}). Save the model again."
        ) from error
    finally:
        file.close()
    size = built.size[0] if built.size[0] == built.size[1] else built.size
    network, preprocessing, sentence = fold_normalization(built.network, built.channels, size)
    notes = [*built.notes, *([sentence] if sentence else [])]
    if preprocessing is None and name is not None and built.channels == 3:
        preprocessing = _of_name(name, size)
        if preprocessing is not None:
            notes.append(
                f"preprocessing of keras.applications (preprocess_input) assumed, by the network's name {name}"
                f" ({preprocessing.describe()}): state the preprocessing if it was trained otherwise"
            )
    return Source(
        network,
        text,
        _class_names(model, name),
        tuple(notes),
        preprocessing=preprocessing,
        input_size=built.size,
        channels=built.channels,
    )


def known_name(model: KerasModel) -> str | None:
    """The name of the network of ``keras.applications`` that a model is, or that it has in itself; in small letters."""
    names = [model.name, *(layer.name for layer in model.all_layers() if layer.model is not None)]
    for name in names:
        match = _NAMES.fullmatch(name)
        if match is not None:
            return match[1].lower()
    return None


def _of_name(name: str, size: int | tuple[int, int]) -> Preprocessing | None:
    for pattern, mode in _MODES:
        if re.fullmatch(pattern, name.removesuffix("_mobile").removesuffix("_large")):
            return Preprocessing.stated(mode, Preprocessing.assumed(size))
    return None


def _class_names(model: KerasModel, name: str | None) -> list[str] | None:
    """ImageNet's, of a whole network of ``keras.applications``: the file has none."""
    last = model.outputs[0].layer if len(model.outputs) == 1 else ""
    layer = model.layers.get(last)
    is_whole = name is not None and _NAMES.fullmatch(model.name) is not None and last.lower().startswith(_TOP)
    if not is_whole or layer is None or layer.config.get("units", _CLASSES) != _CLASSES:
        return None
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
