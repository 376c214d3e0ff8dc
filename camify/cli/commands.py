"""The camify command: networks inspected, converted, explained, compared, measured, exported and checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from matplotlib import colormaps
from rich.table import Table

from ..checkpoint.folder import MANIFEST
from ..checkpoint.folder import OWN_FILES as CHECKPOINT_FILES
from ..console import console, plain_text, shell_quoted
from ..conversion import HEADS, INPUT_FORMATS, RECIPES, convert, fit_head, inspect
from ..errors import ConfigError, ConversionError, DataError
from ..evaluation.class_names import read_class_names
from ..evaluation.comparison import compare_files
from ..evaluation.evaluation import evaluate_in_ranks
from ..evaluation.evaluation_report import EVALUATION, OWN_FILES
from ..evaluation.explain_files import ExplainOptions, Summary, explain_files
from ..evaluation.explained_folder import RESULTS
from ..evaluation.images import find_files, image_batches
from ..evaluation.network import ExplainedNetwork, explained_network, usable_device
from ..files import free_folder, require_writable, write_whole
from ..methods import METHODS, PRECISIONS
from ..methods.feature_split import LogitsOf
from ..model import CAMNet
from ..preprocessing import NORMALIZATIONS
from ..ranks import Ranks, started
from ..reports.html import is_own_page
from ..reports.run_folder import read_run
from ..reports.run_page import render_page
from ..reports.runs_page import render_runs
from ..sources import Source, resolve
from ..task import Classes, Task, class_index
from .app import COMMANDS as APP_COMMANDS
from .app import add_commands as add_app_commands
from .data import COMMANDS as DATA_COMMANDS
from .data import add_box_options, box_files
from .data import add_commands as add_data_commands
from .export import COMMANDS, add_commands
from .failures import camify_error_in, one_line_errors
from .option_types import Count, Number, Seed, Share, Sides
from .parser_messages import in_one_line

__all__ = ["main"]

_SOURCE = (
    "torchvision/NAME, torchvision/NAME@none, torchvision/NAME@FILE.pth, the same with timm/, FILE.pth, FILE.onnx,"
    " FILE.keras, FILE.h5, camify/tiny_vgg, a checkpoint folder, the folder or .ckpt of a run, a file of camify export,"
    " a folder of transformers, or hf:USER/NAME"
)
_CLASS_NAMES = "text file, a line for each class of the network, in order, or JSON; default: what the source knows"
_BITS = "that gray files of 16 or 32 bits use: 12 of many X-rays; default: what the network says, else all"
_INPUT_SIZE = "side of the input; default: what the weights expect"
_UNLABELED = "image files or folders, without labels: the new classifier is fitted to what the old head answers on them"
_PREPROCESSING = (
    f"what the network expects, where its source does not say: {', '.join(NORMALIZATIONS)}, or numbers: {{mean: 0.5,"
    " std: 0.5}"
)
_TASKS = tuple(task.value for task in Task)
_TASK = "what the logits mean; default: what the network says"
TRAINING = ("fit", "validate", "test", "predict")
"""The commands of the training command line."""
_MOST_ROWS = 20  # of the table of results; all are in the folder


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise the error for ``main`` to print."""
        raise ConfigError(str(camify_error_in(ex) or in_one_line(message))) from ex


def main(args: Sequence[str] | None = None) -> None:
    """Run the camify command; wrong input gives a clear message and exit code 2, no traceback.

    ``fit``, ``validate``, ``test`` and ``predict`` are those of ``train.py``, which knows Lightning; nothing else does.
    """
    words = sys.argv[1:] if args is None else list(args)
    if words and words[0] in TRAINING:
        from .train import main as train  # slow to import, and the other commands do not need it

        train(None if args is None else words)
        return
    set_parsing_settings(import_path_denylist=["*"], instantiate_subclass_spec_in_any=False)  # options name no classes
    with one_line_errors(), started() as ranks, one_line_errors(ranks.rank):
        with ranks.agree():
            config = _parser().parse_args(words)
            command = config.subcommand
            if ranks.world_size > 1 and command not in _SHARED:
                raise ConfigError(
                    f"camify {command} works in one process: run it without torchrun. {' and '.join(_SHARED)} share"
                    " their images among several."
                )
        if command in _SHARED:
            _SHARED[command](config[command], ranks)
        else:
            _COMMANDS[command](config[command])


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="camify",
        version=version("camify"),
        description="Image classifiers become CAM-ready: inspected, converted, explained. `camify fit`, `validate`,"
        " `test` and `predict` do what train.py does; `camify fit --help` lists their options.",
    )
    commands = parser.add_subcommands(dest="subcommand")

    command = _Parser(description="Say what a classifier is, whether it is CAM-ready, and what conversion would do.")
    command.add_argument("source", type=str, help=_SOURCE)
    command.add_argument("--input_size", type=Sides, default=None, help=_INPUT_SIZE)
    commands.add_subcommand("inspect", command)

    command = _Parser(description="Convert a classifier and save it as a CAM-ready checkpoint folder.")
    command.add_argument("source", type=str, help=_SOURCE)
    command.add_argument("out", type=str, help="folder to write")
    command.add_argument("--recipe", choices=tuple(RECIPES), default=None, help="a published network")
    command.add_argument("--head", choices=HEADS, default=None, help="default: gap, or the recipe's")
    command.add_argument("--num_classes", type=Count | None, default=None, help="default: the legacy network's")
    command.add_argument("--input_size", type=Sides, default=None, help=_INPUT_SIZE)
    command.add_argument(
        "--pool", choices=("gap", "gmp", "lse", "tap"), default=None, help="default: gap, or the recipe's"
    )
    command.add_argument("--map_stride", type=Count | None, default=None, help="pixels per cell of a finer map")
    command.add_argument("--seed", type=Seed | None, default=None, help="for the new layers")
    command.add_argument("--class_names", type=str | None, default=None, help=_CLASS_NAMES)
    command.add_argument("--input_format", choices=INPUT_FORMATS, default="rgb", help="what the legacy network takes")
    _add_preprocessing(command)
    command.add_argument("--images", type=str, nargs="+", default=[], help=_UNLABELED)
    command.add_argument("--overwrite", type=bool, default=False, help="replace a checkpoint folder that exists")
    commands.add_subcommand("convert", command)

    command = _Parser(
        description="Draw the heat maps of a network for image files: pictures, raw maps, boxes, figures."
    )
    command.add_argument("images", nargs="+", help="image files, or folders of them")
    command.add_argument("--model", type=str, required=True, help=_SOURCE)
    command.add_argument("--out", type=str, required=True, help="folder to write; a run that was interrupted goes on")
    _add_network_options(command)
    command.add_argument("--targets", type=str, nargs="+", default=[], help="classes by name or number")
    command.add_argument("--topk", type=Count, default=1, help="without --targets: how many of the most probable")
    command.add_argument(
        "--layer", type=str | None, default=None, help="module by name, or several: a,b; default: the last map's"
    )
    command.add_argument("--threshold", type=Share | None, default=None, help="of boxes; default: the network's rule")
    command.add_argument("--colormap", type=str, default="inferno", help="of matplotlib")
    command.add_argument("--picture", choices=("png", "jpg"), default="png")
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="bf16 is faster, not exact")
    add_box_options(command)
    command.add_argument("--overwrite", type=bool, default=False, help="begin anew, and replace files that exist")
    commands.add_subcommand("explain", command)

    command = _Parser(description="Write the page of a run anew, or put several runs side by side.")
    command.add_argument("runs", nargs="+", help="run folders, as `camify fit` leaves them")
    command.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="page to write; default: RUN/report.html, or comparison.html for several",
    )
    command.add_argument("--overwrite", type=bool, default=False, help="replace a page that exists")
    commands.add_subcommand("report", command)

    command = _Parser(description="Compare explanation methods and networks: figures, agreement, cost, scenarios.")
    command.add_argument("images", nargs="*", help="image files, or folders of them; boxes.csv beside them is read")
    command.add_argument("--model", type=str, action="append", default=None, help=f"repeatable: {_SOURCE}")
    command.add_argument("--method", type=str, nargs="+", default=None, help=f"of {', '.join(METHODS)}, or your own")
    command.add_argument("--target", type=str | None, default=None, help="a class; default: the first model's top-1")
    command.add_argument("--task", choices=_TASKS, default=None, help=_TASK)
    command.add_argument("--check_images", type=bool, default=True, help="decode every image before the work starts")
    command.add_argument("--bits", type=Count | None, default=None, help=_BITS)
    _add_preprocessing(command)
    command.add_argument("--out", type=str, default="comparison", help="folder to write")
    command.add_argument("--demo", action="store_true", help="generated images and the embedded network; no download")
    command.add_argument("--figures", type=Number, default=24, help="images that are drawn; all are measured")
    command.add_argument("--overwrite", type=bool, default=False, help="replace an earlier comparison")
    commands.add_subcommand("compare", command)

    command = _Parser(description="Measure a network and its maps on labeled images, with baselines and intervals.")
    command.add_argument("--model", type=str, required=True, help=_SOURCE)
    command.add_argument("--data", type=str, required=True, help="folder: SPLIT/CLASS/* or CLASS/*, and boxes.csv")
    _add_network_options(command)
    command.add_argument("--check_images", type=bool, default=True, help="decode every image before the work starts")
    command.add_argument("--split", type=str | None, default=None, help="default: val where there is one")
    command.add_argument("--limit", type=Count | None, default=None, help="so many images, drawn; default: all")
    command.add_argument("--faithfulness", type=Number, default=32, help="images for stability, faithfulness; 0: none")
    command.add_argument("--mosaics", type=Number, default=64, help="at most so many for grid pointing; 0: none")
    command.add_argument("--threshold", type=Share | None, default=None, help="of the maps' boxes; default: the best")
    command.add_argument("--seed", type=Seed, default=0, help="of all draws")
    command.add_argument("--output", type=str, default="evaluation", help="folder to write")
    command.add_argument("--overwrite", type=bool, default=False, help="replace an earlier evaluation")
    commands.add_subcommand("evaluate", command)

    add_commands(commands, _Parser)
    add_data_commands(commands, _Parser)
    add_app_commands(commands, _Parser, _SOURCE)
    return parser


def _add_network_options(command: ArgumentParser) -> None:
    """What explain and evaluate ask alike."""
    command.add_argument("--method", type=str, nargs="+", default=["cam"], help=f"of {', '.join(METHODS)}, or your own")
    command.add_argument("--class_names", type=str | None, default=None, help=_CLASS_NAMES)
    command.add_argument("--task", choices=_TASKS, default=None, help=_TASK)
    command.add_argument("--options", type=dict[str, Any], default={}, help="of the methods: {gaussian: true}")
    command.add_argument("--bits", type=Count | None, default=None, help=_BITS)
    _add_preprocessing(command)
    command.add_argument("--batch_size", type=Count, default=16)
    command.add_argument("--workers", type=Number, default=1, help="processes that decode images")
    command.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")


def _add_preprocessing(command: ArgumentParser) -> None:
    command.add_argument("--preprocessing", type=str | dict[str, Any] | None, default=None, help=_PREPROCESSING)


def _inspect(options: Namespace) -> None:
    inspection = inspect(options.source, input_size=options.input_size)
    if inspection.verdict == "unsupported":
        raise ConversionError(f"{options.source}: {inspection.reason}")
    screen = console()
    screen.print(inspection.table())
    if inspection.num_classes is None:
        fit = f"camify fit --model.model {shell_quoted(options.source)} --data ImageFolderDataModule"
        screen.print(f"Next: {fit} --data.init_args.root IMAGES", soft_wrap=True)
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
    report = fit_head(net, (batch.images for batch in batches if batch.paths), teacher=LogitsOf.of(source.model))
    screen.print(str(report))


def _explain(options: Namespace, ranks: Ranks) -> None:
    search = ranks.first(lambda: find_files(options.images, outside=options.out))
    files = search.paths
    with ranks.agree():
        network, wanted = _explained(options, ranks)
    screen = console(quiet=not ranks.is_first)
    for note in [*network.notes, *search.left_out.notes()]:
        screen.print(f"{note[0].upper()}{note[1:]}.", soft_wrap=True)
    if "scorecam" in options.method:
        screen.print(
            "Score-CAM runs the network once for every channel of the map, image and class: with a thousand channels"
            " that takes a minute or more an image on a CPU.",
            soft_wrap=True,
        )
    table = Table(box=None, padding=(0, 2))
    for column in ("image", "class", "probability", "logit", "picture"):
        table.add_column(column, overflow="fold")

    def report(result: dict[str, Any]) -> None:
        for entry in result["classes"] if table.row_count < _MOST_ROWS else []:
            figures = (f"{entry['probability']:.3f}", f"{entry['logit']:.2f}")
            table.add_row(
                plain_text(Path(result["image"]).name), plain_text(entry["class"]), *figures, result["picture"]
            )

    done = explain_files(
        network, files, Path(options.out), wanted, batch_size=options.batch_size, workers=options.workers,
        overwrite=options.overwrite, report=report, boxes=box_files(options), inputs=[*map(Path, options.images)],
        ranks=ranks,
    )  # fmt: skip
    if ranks.is_first:
        screen.print(table)
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
        bits=options.bits, preprocessing=options.preprocessing,
    )  # fmt: skip
    if options.class_names is not None:
        names = read_class_names(options.class_names, network.class_counts)
        network.classes = Classes(network.classes.task, tuple(names))
    return network, ExplainOptions(
        targets=tuple(class_index(target, network.titles, "--targets") for target in options.targets),
        topk=options.topk,
        threshold=options.threshold,
        colormap=colormap,
        picture=options.picture,
        precision=options.precision,
    )


def _say_explained(done: Summary, options: Namespace, count: int) -> None:
    screen = console()
    before = f" ({done.before} were done before)" if done.before else ""
    screen.print(f"{done.results} of {count} images explained{before}: {options.out}", soft_wrap=True)
    rules = "; ".join(f"{name}: {rule}" for name, rule in done.box_rules.items())
    given = "" if options.threshold is None else ", threshold as given"
    screen.print(f"Boxes{given}: {rules}", soft_wrap=True)
    notes = [*done.notes, *(f"boxes for other tools: {path}" for path in done.box_files)]
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
        _say_unreadable(done, Path(options.out, RESULTS))
        sys.exit(1)


def _say_unreadable(done: Summary, results: Path) -> None:
    reasons = "; ".join(list(done.unreadable.values())[:5])
    rest = f"; ... All are in {results}" if len(done.unreadable) > 5 else ""
    message = f"{len(done.unreadable)} could not be read: {reasons}{rest}"
    if not done.results and not done.before:
        raise DataError(message)
    console().print(message, soft_wrap=True)


def _compare(options: Namespace) -> None:
    folder = compare_files(
        options.images, options.model or [], options.method, out=options.out, target=options.target,
        demo=options.demo, figures=options.figures, overwrite=options.overwrite, task=options.task,
        check_images=options.check_images, bits=options.bits, preprocessing=options.preprocessing,
    )  # fmt: skip
    console().print(f"Compared: {folder / 'compare.html'}, compare.md, compare.json", soft_wrap=True)


def _evaluate(options: Namespace, ranks: Ranks) -> None:
    ranks.first(lambda: _free_output(options))
    with ranks.agree():
        device = usable_device(options.device, ranks)
        names = None if options.class_names is None else read_class_names(options.class_names)
    result = evaluate_in_ranks(
        ranks, options.model, options.data, methods=options.method, class_names=names, split=options.split,
        limit=options.limit, batch_size=options.batch_size, seed=options.seed, faithfulness=options.faithfulness,
        mosaics=options.mosaics, threshold=options.threshold, device=device, workers=options.workers,
        options=options.options, task=options.task, check_images=options.check_images, bits=options.bits,
        preprocessing=options.preprocessing,
    )  # fmt: skip
    if result is not None:
        folder = result.save(options.output, overwrite=options.overwrite)
        written = f"Written: {folder / 'evaluation.md'}, evaluation.json, images.csv"
        console().print(f"{result}\n{written}", soft_wrap=True)


def _free_output(options: Namespace) -> None:
    free_folder(Path(options.output), EVALUATION, OWN_FILES, "--output", overwrite=options.overwrite)


def _report(options: Namespace) -> None:
    alone = len(options.runs) == 1
    out = Path(options.out or (Path(options.runs[0], "report.html") if alone else "comparison.html"))
    if out.exists() and not options.overwrite and not (alone and options.out is None):
        raise ConfigError(f"{out}: exists. Choose another --out, or add --overwrite true.")
    if out.exists() and out.is_file() and not is_own_page(out):
        raise ConfigError(f"{out}: is not a page of camify. It was not touched; choose another --out.")
    require_writable(out, "--out")
    reports = [read_run(folder) for folder in options.runs]
    write_whole(out, render_page(reports[0]) if alone else render_runs(reports))
    console().print(f"Report: {out}", soft_wrap=True)


def _colormap(name: str) -> str:
    if name not in colormaps:
        raise ConfigError(f"--colormap {name!r}: matplotlib has none of that name. Try inferno, viridis or jet.")
    return name


_COMMANDS = {
    "inspect": _inspect,
    "convert": _convert,
    "compare": _compare,
    "report": _report,
    **COMMANDS,
    **DATA_COMMANDS,
    **APP_COMMANDS,
}
_SHARED = {"explain": _explain, "evaluate": _evaluate}
"""Commands whose work several processes share."""
