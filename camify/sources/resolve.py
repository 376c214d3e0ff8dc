"""Every network that is given as text is loaded here: every form of a source, each with the function that loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..checkpoint.hub import is_repository
from ..console import shell_quoted
from ..errors import CheckpointError, ConfigError, ConversionError
from ..eval_mode import plain_tensors
from ..model import CAMNet
from .demo_network import is_demo, load_demo
from .exported_files import is_exported, is_onnx, load_exported, load_onnx_file
from .foreign_formats import foreign_error
from .keras_models import is_keras, load_keras
from .run_folders import (
    is_folder,
    is_hub_name,
    is_lightning,
    is_prefixed_hub_name,
    load_folder,
    load_from_hub,
    load_lightning,
)
from .source import Source
from .timm_models import is_timm, load_timm
from .torchvision_models import is_torchvision, is_weights_file, load_torchvision, load_weights_file

__all__ = ["LOADERS", "Loader", "find_loader", "load", "resolve", "resolve_cam_ready", "source_of"]


class Loader(NamedTuple):
    """One kind of source.

    Attributes:
        forms: as messages name it.
        matches: whether a text is of this kind; reads no file.
        load: the text, and whether weights are wanted -> the source.
        legacy: it is never a CAM-ready network, so that ``camify.load`` need not load it to say so.
    """

    forms: str
    matches: Callable[[str], bool]
    load: Callable[[str, bool], Source]
    legacy: bool = False


LOADERS: list[Loader] = [  # the first that matches takes the text: what lies on the disk comes before every name
    Loader("a FILE.keras or FILE.h5", is_keras, load_keras, legacy=True),
    Loader("a checkpoint folder, the folder of a run or of transformers", is_folder, load_folder),
    Loader("FILE.onnx, FILE.onnx@OUTPUT", is_onnx, load_onnx_file),
    Loader("FILE.pt2 of camify export", is_exported, load_exported),
    Loader("FILE.ckpt of a run", is_lightning, load_lightning),
    Loader("FILE.pth, .pt, .bin, .safetensors", is_weights_file, load_weights_file, legacy=True),
    Loader(
        "torchvision/NAME, torchvision/NAME@none (random), torchvision/NAME@IMAGENET1K_V1, torchvision/NAME@FILE.pth",
        is_torchvision,
        load_torchvision,
        legacy=True,
    ),
    Loader("timm/NAME, timm/NAME.TAG, timm/NAME@none, timm/NAME@FILE.safetensors", is_timm, load_timm, legacy=True),
    Loader("camify/tiny_vgg, camify/tiny_vgg@demo, camify/tiny_vgg@FILE", is_demo, load_demo, legacy=True),
    Loader("hf:USER/NAME", is_prefixed_hub_name, load_from_hub),
    Loader("USER/NAME of the Hugging Face Hub", is_hub_name, load_from_hub),
]


@plain_tensors()
def resolve(source: str, *, weights: bool = True) -> Source:
    """The network that a source string names.

    Args:
        source: ``"torchvision/vgg16"`` (pretrained), ``"torchvision/vgg16@none"`` (random weights),
            ``"...@NAME"`` (a member of the weights enum), ``"...@FILE"`` (weights: .pth, .pt, .ckpt,
            .bin or .safetensors), the same with ``timm/`` (``"timm/resnet18.a1_in1k"`` names a tag of timm's),
            a bare FILE whose tensors fit exactly one of torchvision's classifiers, or its features,
            ``"camify/tiny_vgg"``, a folder written by ``save_pretrained`` (camify's, or that of an image classifier of
            transformers), one that timm wrote for the Hub, the folder of a run (its ``export/``, else
            ``best.ckpt``, else ``last.ckpt``), a ``.ckpt`` of a run, a ``.pt2`` file of ``camify.export``, an
            ``.onnx`` file (camify's or anybody's), a ``.keras`` or ``.h5`` file of Keras, ``"hf:USER/NAME"``, or
            ``"USER/NAME"`` where no folder ``USER`` exists.
        weights: False downloads nothing: a library's name gives the architecture with random weights, a repository of
            the Hub is taken from its cache. What lies here, such as a FILE, is read all the same: it says what it is.

    Raises:
        ConversionError: nothing has that name.
        CheckpointError: the weights are missing, damaged or do not fit.

    Example:
        >>> resolve("torchvision/alexnet@none").name
        'torchvision/alexnet'
    """
    loader = find_loader(source)
    if loader is None:
        if (foreign := foreign_error(Path(source))) is not None:
            raise foreign
        forms = ", ".join(loader.forms for loader in LOADERS)
        raise ConversionError(f"source {source!r}: no such network or folder. Known forms: {forms}.")
    return loader.load(source, weights)


def source_of(model: nn.Module | str | Source) -> Source:
    """What was given as a network, with what is known about it.

    Raises:
        CamifyError: it is no network, and nothing has that name.
    """
    if isinstance(model, Source):
        return model
    return resolve(model) if isinstance(model, str) else Source.of(model)


def find_loader(source: str) -> Loader | None:
    """The row of ``LOADERS`` that takes a text, or None."""
    return next((loader for loader in LOADERS if loader.matches(source)), None)


@plain_tensors()
def resolve_cam_ready(source: str) -> Source:
    """The source, where it is CAM-ready; a legacy network's weights are not fetched to find out that it is not.

    Raises:
        CheckpointError: it is a legacy network, or none at all.
    """
    loader = find_loader(source)
    if loader is None:  # its error knows of folders whose writing was interrupted
        return Source.of(CAMNet.from_pretrained(source), source)
    if loader.legacy:
        raise CheckpointError(
            f"{source}: names a legacy network, not a CAM-ready one. Convert it first: camify convert"
            f" {shell_quoted(source)} FOLDER"
        )
    loaded = loader.load(source, True)
    _ = loaded.cam_net
    return loaded


@plain_tensors()
def load(folder: str | Path, *, revision: str | None = None) -> CAMNet:
    """The CAM-ready network of a source, in eval mode, on the CPU; its identity is checked again.

    Needs neither the legacy network's code nor Lightning, and runs no foreign code.

    Args:
        folder: a checkpoint folder, the folder of a run, its ``.ckpt``, a file of ``camify.export`` (a network without
            layers, whose maps are the file's), ``user/name`` or ``hf:user/name`` of the Hugging Face Hub.
        revision: of a repository of the Hub: branch, tag or commit.

    Raises:
        CheckpointError: the source is missing, damaged, contradicts itself, or names a legacy network.

    Example:
        >>> model = camify.load("checkpoints/demo/export")  # doctest: +SKIP
    """
    if not isinstance(folder, str | Path):
        raise ConfigError(f"load takes the name of a folder, a file or a repository, not a {type(folder).__name__}.")
    if isinstance(folder, Path) and not folder.exists():  # a Path never names a repository
        return CAMNet.from_pretrained(folder)
    if revision is not None and is_repository(folder):
        return CAMNet.from_pretrained(folder, revision=revision)
    return resolve_cam_ready(str(folder)).cam_net
