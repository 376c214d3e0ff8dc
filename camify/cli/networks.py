"""The commands inspect and convert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ..checkpoint.folder import MANIFEST
from ..checkpoint.folder import OWN_FILES as CHECKPOINT_FILES
from ..console import console, shell_quoted
from ..conversion import HEADS, INPUT_FORMATS, RECIPES, convert, fit_head, inspect
from ..errors import ConfigError, ConversionError
from ..evaluation.class_names import read_class_names
from ..evaluation.images import find_files, image_batches
from ..files import free_folder
from ..methods.feature_split import LogitsOf
from ..model import CAMNet
from ..progress import tracked
from ..sources import Source, resolve
from .command_options import CLASS_NAMES, INPUT_SIZE, SOURCE, UNLABELED, CommandParser, add_preprocessing
from .option_types import Count, Seed, Sides
from .output import add_command, answer

__all__ = ["COMMANDS", "add_commands"]


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    command = CommandParser(
        description="Say what a classifier is, whether it is CAM-ready, and what conversion would do."
    )
    command.add_argument("source", type=str, help=SOURCE)
    command.add_argument("--input_size", type=Sides, default=None, help=INPUT_SIZE)
    add_command(commands, "inspect", command)

    command = CommandParser(description="Convert a classifier and save it as a CAM-ready checkpoint folder.")
    command.add_argument("source", type=str, help=SOURCE)
    command.add_argument("out", type=str, help="folder to write")
    command.add_argument("--recipe", choices=tuple(RECIPES), default=None, help="a published network")
    command.add_argument("--head", choices=HEADS, default=None, help="default: gap, or the recipe's")
    command.add_argument("--num_classes", type=Count | None, default=None, help="default: the legacy network's")
    command.add_argument("--input_size", type=Sides, default=None, help=INPUT_SIZE)
    command.add_argument(
        "--pool", choices=("gap", "gmp", "lse", "tap"), default=None, help="default: gap, or the recipe's"
    )
    command.add_argument("--map_stride", type=Count | None, default=None, help="pixels per cell of a finer map")
    command.add_argument("--seed", type=Seed | None, default=None, help="for the new layers")
    command.add_argument("--class_names", type=str | None, default=None, help=CLASS_NAMES)
    command.add_argument("--input_format", choices=INPUT_FORMATS, default="rgb", help="what the legacy network takes")
    add_preprocessing(command)
    command.add_argument("--images", type=str, nargs="+", default=[], help=UNLABELED)
    command.add_argument("--overwrite", type=bool, default=False, help="replace a checkpoint folder that exists")
    add_command(commands, "convert", command)


def _inspect(options: Namespace) -> None:
    inspection = inspect(options.source, input_size=options.input_size)
    if inspection.verdict == "unsupported":
        raise ConversionError(f"{options.source}: {inspection.reason}")
    screen = console()
    answer(options, {"source": options.source, **asdict(inspection), "cam_ready": inspection.cam_ready})
    screen.print(inspection.table())
    if inspection.num_classes is None:
        screen.print(f"Next: camify fit --model {shell_quoted(options.source)} --data IMAGES", soft_wrap=True)
    elif not inspection.cam_ready:
        screen.print(f"Next: camify convert {shell_quoted(options.source)} OUT", soft_wrap=True)


def _convert(options: Namespace) -> None:
    free_folder(Path(options.out), MANIFEST, CHECKPOINT_FILES, "OUT", overwrite=options.overwrite)
    source = resolve(options.source)
    names = None if options.class_names is None else read_class_names(options.class_names)
    source = source.prepared(options.preprocessing)
    size = options.input_size or source.size
    net = convert(
        source,
        recipe=options.recipe,
        input_format=options.input_format,
        head=options.head,
        num_classes=options.num_classes,
        input_size=size,
        pool=options.pool,
        map_stride=options.map_stride,
        seed=options.seed,
        class_names=names if source.headless else None,  # which has no classes of its own
        legacy_class_names=None if source.headless else names,
    )
    known = net.preprocessing
    channels = 1 if options.input_format == "grayscale" else source.channels
    net.preprocessing = replace(known or replace(source, channels=channels).assumed_preprocessing, size=size)
    screen = console()
    if options.images:
        _fit_to_old_head(net, source, options.images)
    folder = net.save_pretrained(options.out)
    if net.certificate is not None:
        screen.print(net.certificate.table())
    if known is None:
        screen.print(
            f"Assumed: ImageNet's normalization at {size} px; {options.source} does not say what it was trained with."
            " If that was another, convert it again with --preprocessing.",
            soft_wrap=True,
        )
    screen.print(f"Saved to {folder}; load it with camify.load({str(folder)!r}).", soft_wrap=True)
    certificate = None if net.certificate is None else net.certificate.to_dict()
    answer(options, {"folder": str(folder), "assumed_preprocessing": known is None, "certificate": certificate})


def _fit_to_old_head(net: CAMNet, source: Source, images: Sequence[str]) -> None:
    """Fit a new classifier to the logits of the old head on unlabeled image files.

    Raises:
        ConfigError: nothing new is there to fit, or there are other classes.
    """
    if "classifier" not in net.untrained:
        raise ConfigError("--images: this head is the old one; nothing is left to fit. Choose --head gap or direct.")
    source.require_head("--images: fitting to the old head")
    search = find_files(images)
    screen = console()
    for note in search.left_out.notes():
        screen.print(f"Images: {note}.", soft_wrap=True)
    batches = image_batches(search.paths, net.preprocessing or source.assumed_preprocessing, batch_size=16, workers=1)
    passes = tracked(batches, "fitting, batch", len(batches))
    report = fit_head(net, (batch.images for batch in passes if batch.paths), teacher=LogitsOf.of(source.model))
    screen.print(str(report))


COMMANDS = {"inspect": _inspect, "convert": _convert}
