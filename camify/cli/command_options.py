"""What several commands ask alike: their parser, the options that they share, and how those are described."""

from __future__ import annotations

from typing import Any

import torch
from jsonargparse import ArgumentParser

from ..errors import ConfigError
from ..methods import AUGMENTATIONS, METHODS
from ..preprocessing import NORMALIZATIONS
from ..task import Task
from .failures import camify_error_in
from .option_types import Count, Number
from .parser_messages import plainly

__all__ = [
    "CLASS_NAMES", "INPUT_SIZE", "SOURCE", "UNLABELED", "CommandParser", "add_augment", "add_network_options",
    "add_preprocessing", "add_source_options",
]  # fmt: skip

SOURCE = (
    "torchvision/NAME, torchvision/NAME@none, torchvision/NAME@FILE.pth, the same with timm/, FILE.pth, FILE.onnx,"
    " FILE.keras, FILE.h5, camify/tiny_vgg, a checkpoint folder, the folder or .ckpt of a run, a file of camify export,"
    " a folder of transformers, or hf:USER/NAME"
)
CLASS_NAMES = "text file, a line for each class of the network, in order, or JSON; default: what the source knows"
BITS = "that gray files of 16 or 32 bits use: 12 of many X-rays; default: what the network says, else all"
INPUT_SIZE = "side of the input; default: what the weights expect"
UNLABELED = "image files or folders, without labels: the new classifier is fitted to what the old head answers on them"
PREPROCESSING = (
    f"what the network expects, where its source does not say: {', '.join(NORMALIZATIONS)}, or numbers: {{mean: 0.5,"
    " std: 0.5}"
)
TASKS = tuple(task.value for task in Task)
TASK = "what the logits mean; default: what the network says"


class CommandParser(ArgumentParser):
    """A parser whose errors are camify's, in one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise the error for ``main`` to print."""
        own = camify_error_in(ex)
        if own is not None:
            raise ConfigError(str(own)) from ex
        raise ConfigError(plainly(message, self)) from ex


def add_network_options(command: ArgumentParser) -> None:
    """What explain and evaluate ask alike."""
    command.add_argument("--method", type=str, nargs="+", default=["cam"], help=f"of {', '.join(METHODS)}, or your own")
    command.add_argument("--options", type=dict[str, Any], default={}, help="of the methods: {gaussian: true}")
    add_augment(command)
    add_source_options(command)
    command.add_argument("--batch_size", type=Count, default=16)
    command.add_argument("--workers", type=Number, default=1, help="processes that decode images")
    command.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")


def add_source_options(command: ArgumentParser) -> None:
    """What a network's source may not say, or says otherwise."""
    command.add_argument("--class_names", type=str | None, default=None, help=CLASS_NAMES)
    command.add_argument("--task", choices=TASKS, default=None, help=TASK)
    command.add_argument("--bits", type=Count | None, default=None, help=BITS)
    add_preprocessing(command)


def add_augment(command: ArgumentParser) -> None:
    """The augmentations of methods."""
    command.add_argument(
        "--augment", choices=tuple(AUGMENTATIONS), nargs="+", default=[],
        help="maps: the mean over the image mirrored, moved, in other sizes; 1, 4, 2 forwards more",
    )  # fmt: skip


def add_preprocessing(command: ArgumentParser) -> None:
    """What the network expects, where its source does not say."""
    command.add_argument("--preprocessing", type=str | dict[str, Any] | None, default=None, help=PREPROCESSING)
