"""The commands that work on images: explain, compare and evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from matplotlib import colormaps
from rich.table import Table

from ..console import console, fixed, plain_text, print_error
from ..errors import ConfigError, DataError
from ..evaluation.class_names import read_class_names
from ..evaluation.comparison import compare_files
from ..evaluation.evaluation import evaluate_in_ranks
from ..evaluation.evaluation_report import EVALUATION, OWN_FILES
from ..evaluation.explain_files import ExplainOptions, Summary, explain_files
from ..evaluation.explained_folder import RESULTS
from ..evaluation.images import find_files
from ..evaluation.network import ExplainedNetwork, explained_network, usable_device
from ..evaluation.onnx_features import AUTO, ENGINES
from ..files import COMPARISON, free_folder, require_writable
from ..methods import METHODS, PRECISIONS
from ..ranks import Ranks
from ..sources import resolve
from ..task import class_index
from .command_options import (
    SOURCE,
    CommandParser,
    add_augment,
    add_network_options,
    add_source_options,
)  # fmt: skip
from .data import add_box_options, box_files
from .option_types import Count, Number, PictureSize, Seed, Share
from .output import add_command, answer, answer_lines
from .terminal_picture import show_pictures

__all__ = ["COMMANDS", "SHARED", "add_commands"]

_CHANNELS = 512  # of the last maps of VGG16 and ResNet-18
_MOST_ROWS = 20  # of the table of results; all are in the folder


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    command = CommandParser(
        description="Draw the heat maps of a network for image files: pictures, raw maps, boxes, figures."
    )
    command.add_argument("images", nargs="+", help="image files, or folders of them")
    command.add_argument("--model", type=str, required=True, help=SOURCE)
    command.add_argument("--out", type=str, required=True, help="folder to write; a run that was interrupted goes on")
    add_network_options(command)
    command.add_argument("--targets", type=str, nargs="+", default=[], help="classes by name or number")
    command.add_argument("--topk", type=Count, default=1, help="without --targets: how many of the most probable")
    command.add_argument(
        "--layer", type=str | None, default=None, help="module by name, or several: a,b; default: the last map's"
    )
    command.add_argument("--threshold", type=Share | None, default=None, help="of boxes; default: the network's rule")
    command.add_argument("--colormap", type=str, default="inferno", help="of matplotlib")
    command.add_argument("--picture", choices=("png", "jpg"), default="png")
    command.add_argument(
        "--size", type=PictureSize, default=224, help="longer side of a picture, pixels; original: its own, no captions"
    )
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="bf16 is faster, not exact")
    command.add_argument(
        "--engine", choices=ENGINES, default=AUTO, help="of the features; auto: of many images the faster one"
    )
    add_box_options(command)
    command.add_argument("--show", type=Number, default=1, help="pictures to show in a terminal that can draw them")
    command.add_argument("--overwrite", type=bool, default=False, help="begin anew, and replace files that exist")
    add_command(commands, "explain", command)

    command = CommandParser(
        description="Compare explanation methods and networks: figures, agreement, cost, scenarios."
    )
    command.add_argument("images", nargs="*", help="image files, or folders of them; boxes.csv beside them is read")
    command.add_argument("--model", type=str, action="append", default=None, help=f"repeatable: {SOURCE}")
    command.add_argument("--method", type=str, nargs="+", default=None, help=f"of {', '.join(METHODS)}, or your own")
    add_augment(command)
    command.add_argument("--target", type=str | None, default=None, help="a class; default: the first model's top-1")
    add_source_options(command)
    command.add_argument("--check_images", type=bool, default=True, help="decode every image before the work starts")
    command.add_argument("--out", type=str, default="comparison", help="folder to write")
    command.add_argument("--demo", action="store_true", help="generated images and the embedded network; no download")
    command.add_argument("--figures", type=Number, default=24, help="images that are drawn; all are measured")
    command.add_argument("--overwrite", type=bool, default=False, help="replace an earlier comparison")
    add_command(commands, "compare", command)

    command = CommandParser(
        description="Measure a network and its maps on labeled images, with baselines and intervals."
    )
    command.add_argument("--model", type=str, required=True, help=SOURCE)
    command.add_argument("--legacy", type=str | None, default=None, help="the network before conversion, set beside")
    command.add_argument("--data", type=str, required=True, help="folder: SPLIT/CLASS/* or CLASS/*, and boxes.csv")
    add_network_options(command)
    command.add_argument("--check_images", type=bool, default=True, help="decode every image before the work starts")
    command.add_argument("--split", type=str | None, default=None, help="default: val where there is one")
    command.add_argument("--limit", type=Count | None, default=None, help="so many images, drawn; default: all")
    command.add_argument("--faithfulness", type=Number, default=32, help="images for stability, faithfulness; 0: none")
    command.add_argument("--mosaics", type=Number, default=64, help="at most so many for grid pointing; 0: none")
    command.add_argument(
        "--sanity", type=Number, nargs="?", const=16, default=0, help="images for sanity checks; without a number: 16"
    )
    command.add_argument("--threshold", type=Share | None, default=None, help="of the maps' boxes; default: the best")
    command.add_argument("--pictures", type=Number, default=96, help="images in the page, mistakes first; 0: none")
    command.add_argument("--seed", type=Seed, default=0, help="of all draws")
    command.add_argument("--out", "--output", type=str, default="evaluation", help="folder to write")
    command.add_argument("--overwrite", type=bool, default=False, help="replace an earlier evaluation")
    add_command(commands, "evaluate", command)


def _explain(options: Namespace, ranks: Ranks) -> None:
    search = ranks.first(lambda: find_files(options.images, outside=options.out))
    files = search.paths
    with ranks.agree():
        network, wanted = _explained(options, ranks)
    screen = console(quiet=not ranks.is_first)
    for note in [*network.notes, *search.left_out.notes()]:
        screen.print(f"{note[0].upper()}{note[1:]}.", soft_wrap=True)
    slow = {name: method.all_forwards(_CHANNELS) for name, method in network.methods.items()}
    slow = {name: count for name, count in slow.items() if count > _CHANNELS}
    if slow:
        listed = ", ".join(f"{name} {count:,} times" for name, count in slow.items())
        screen.print(
            f"Slow: the network is run again for each class of an image (by rise once for all), where its map has"
            f" {_CHANNELS} channels by {listed}. A thousand times take a minute or more on a CPU.",
            soft_wrap=True,
        )
    table = Table(box=None, padding=(0, 2))
    for column in ("image", "class", "probability", "logit", "picture"):
        table.add_column(column, overflow="fold")

    pictures = list[str]()

    def report(result: dict[str, Any]) -> None:
        if len(pictures) < options.show:
            pictures.append(result["picture"])
        for entry in result["classes"] if table.row_count < _MOST_ROWS else []:
            figures = (f"{entry['probability']:.3f}", fixed(entry["logit"], 2))
            table.add_row(
                plain_text(Path(result["image"]).name), plain_text(entry["class"]), *figures, result["picture"]
            )

    done = explain_files(
        network, files, Path(options.out), wanted, batch_size=options.batch_size, workers=options.workers,
        engine=options.engine, overwrite=options.overwrite, report=report, boxes=box_files(options),
        inputs=[*map(Path, options.images)], ranks=ranks,
    )  # fmt: skip
    if ranks.is_first:
        screen.print(table)
        if not (options.quiet or options.json):
            show_pictures([Path(options.out, name) for name in pictures])
        answer_lines(options, Path(options.out, RESULTS))
        _say_explained(done, options, len(files))


def _explained(options: Namespace, ranks: Ranks) -> tuple[ExplainedNetwork, ExplainOptions]:
    """The network with its methods on its device, and what is drawn; nothing is written."""
    require_writable(Path(options.out), "--out", folder=True)
    device, colormap = usable_device(options.device, ranks), _colormap(options.colormap)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that are drawn are the same again when the run goes on
        source = resolve(options.model).explained_by(options.method)
    source.model.to(device)
    layers = [name.strip() for name in (options.layer or "").split(",")]
    layer = layers if len(layers) > 1 else options.layer
    network = explained_network(
        source, options.model, options.method, layer=layer, options=options.options, task=options.task,
        bits=options.bits, preprocessing=options.preprocessing, augmentations=options.augment,
    )  # fmt: skip
    network.name_classes(options.class_names)
    return network, ExplainOptions(
        targets=tuple(class_index(target, network.titles, "--targets") for target in options.targets),
        topk=options.topk,
        threshold=options.threshold,
        colormap=colormap,
        picture=options.picture,
        precision=options.precision,
        size=options.size,
    )


def _say_explained(done: Summary, options: Namespace, count: int) -> None:
    screen = console()
    before = f" ({done.before} were done before)" if done.before else ""
    screen.print(f"{done.results} of {count} images explained{before}: {options.out}", soft_wrap=True)
    rules = "; ".join(f"{name}: {rule}" for name, rule in done.box_rules.items())
    given = "" if options.threshold is None else ", threshold as given"
    screen.print(f"Boxes{given}: {rules}", soft_wrap=True)
    engine = [f"Features by {done.engine}: {done.engine_reason}"] if done.engine_reason else []
    notes = [*engine, *done.notes, *(f"boxes for other tools: {path}" for path in done.box_files)]
    if done.precision_error is not None:
        probability, heat = done.precision_error
        notes.insert(
            0,
            f"{options.precision} against fp32, on the first images: probabilities within {probability:.1e}, maps"
            f" within {heat:.1%} of their peaks",
        )
    for note in notes:
        screen.print(f"{note}.", soft_wrap=True)
    if done.unreadable:
        _say_unreadable(done, options)
        sys.exit(1)


def _say_unreadable(done: Summary, options: Namespace) -> None:
    results = Path(options.out, RESULTS)
    reasons = "; ".join(reason.rstrip(".") for reason in list(done.unreadable.values())[:5])
    rest = f"; ... All are in {results}" if len(done.unreadable) > 5 else ""
    message = f"{len(done.unreadable)} could not be read: {reasons}{rest}"
    if not done.results and not done.before:
        raise DataError(message)
    if options.quiet or options.json:
        print_error(message)
    console().print(message, soft_wrap=True)


def _compare(options: Namespace) -> None:
    folder = compare_files(
        options.images, options.model or [], options.method, out=options.out, target=options.target,
        demo=options.demo, figures=options.figures, overwrite=options.overwrite, task=options.task,
        check_images=options.check_images, bits=options.bits, preprocessing=options.preprocessing,
        augmentations=options.augment, class_names=options.class_names,
    )  # fmt: skip
    console().print(f"Compared: {folder / 'compare.html'}, compare.md, compare.json", soft_wrap=True)
    answer(options, json.loads((folder / COMPARISON).read_text(encoding="utf-8")))


def _evaluate(options: Namespace, ranks: Ranks) -> None:
    ranks.first(lambda: _free_out(options))
    with ranks.agree():
        device = usable_device(options.device, ranks)
        names = None if options.class_names is None else read_class_names(options.class_names)
    result = evaluate_in_ranks(
        ranks, options.model, options.data, methods=options.method, class_names=names, split=options.split,
        limit=options.limit, batch_size=options.batch_size, seed=options.seed, faithfulness=options.faithfulness,
        mosaics=options.mosaics, threshold=options.threshold, device=device, workers=options.workers,
        options=options.options, task=options.task, check_images=options.check_images, bits=options.bits,
        preprocessing=options.preprocessing, pictures=options.pictures, legacy=options.legacy, sanity=options.sanity,
        augmentations=options.augment,
    )  # fmt: skip
    if result is not None:
        folder = result.save(options.out, overwrite=options.overwrite)
        written = f"Written: {folder / 'evaluation.html'}, evaluation.md, evaluation.json, images.csv"
        console().print(f"{result}\n{written}", soft_wrap=True)
        answer(options, result.to_dict())


def _free_out(options: Namespace) -> None:
    free_folder(Path(options.out), EVALUATION, OWN_FILES, "--out", overwrite=options.overwrite)


def _colormap(name: str) -> str:
    if name not in colormaps:
        raise ConfigError(f"--colormap {name!r}: matplotlib has none of that name. Try inferno, viridis or jet.")
    return name


COMMANDS = {"compare": _compare}
SHARED = {"explain": _explain, "evaluate": _evaluate}
"""Commands whose work several processes share."""
