"""The camify command: networks inspected, converted, explained, compared, exported and checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from matplotlib import colormaps
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from .checkpoint import MANIFEST
from .data import Preprocessing
from .errors import CamifyError, ConfigError, ConversionError, DataError
from .explaining import PRECISIONS, ExplainOptions, explain_files, image_files
from .explaining.classes import class_index, count_classes, numbered
from .explaining.compare import compare_files
from .exporting import EXPORT_PRECISIONS, FORMATS, cam_ready, check, export, network_of
from .hub import push_folder
from .methods import METHODS
from .model import CAMNet
from .surgery import HEADS, INPUT_FORMATS, RECIPES, convert, inspect, resolve

__all__ = ["main"]

_SOURCE = (
    "torchvision/NAME, torchvision/NAME@none, torchvision/NAME@FILE.pth, the same with timm/, camify/tiny_vgg"
    ", a checkpoint folder, or a file of camify export"
)


_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "folder": ""}
_MOST_ROWS = 20  # of the table of results; all are in the folder


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ARG002 - jsonargparse's signature
        """One line, exit code 2."""
        self.exit(2, f"camify: error: {message.strip()}\n")


def main(args: Sequence[str] | None = None) -> None:
    """Run the camify command; wrong input gives a clear message and exit code 2, no traceback."""
    config = _parser().parse_args(args)
    try:
        _COMMANDS[config.subcommand](config[config.subcommand])
    except CamifyError as error:
        sys.stderr.write(f"camify: error: {error}\n")
        sys.exit(2)


def _parser() -> ArgumentParser:
    parser = _Parser(prog="camify", description="Image classifiers become CAM-ready: inspected, converted, explained.")
    commands = parser.add_subcommands(dest="subcommand")

    command = _Parser(description="Say what a classifier is, whether it is CAM-ready, and what conversion would do.")
    command.add_argument("source", type=str, help=_SOURCE)
    command.add_argument("--input_size", type=int, default=224, help="side of the input, pixels")
    commands.add_subcommand("inspect", command)

    command = _Parser(description="Convert a classifier and save it as a CAM-ready checkpoint folder.")
    command.add_argument("source", type=str, help=_SOURCE)
    command.add_argument("out", type=str, help="folder to write")
    command.add_argument("--recipe", choices=tuple(RECIPES), default=None, help="a published network")
    command.add_argument("--head", choices=HEADS, default=None, help="default: gap, or the recipe's")
    command.add_argument("--num_classes", type=int | None, default=None, help="default: as many as the legacy network")
    command.add_argument(
        "--input_size",
        type=int | None,
        default=None,
        help="side of the input, pixels; default: what the weights expect",
    )
    command.add_argument("--pool", choices=("gap", "gmp", "lse"), default=None, help="default: gap, or the recipe's")
    command.add_argument("--map_stride", type=int | None, default=None, help="pixels per cell of a finer map")
    command.add_argument("--seed", type=int | None, default=None, help="for the new layers")
    command.add_argument("--input_format", choices=INPUT_FORMATS, default="rgb", help="what the legacy network takes")
    commands.add_subcommand("convert", command)

    command = _Parser(description="Draw where a network looks, for image files: pictures, raw maps, boxes, figures.")
    command.add_argument("images", nargs="+", help="image files, or folders of them")
    command.add_argument("--model", type=str, required=True, help=_SOURCE)
    command.add_argument("--out", type=str, required=True, help="folder to write; a run that was interrupted goes on")
    command.add_argument("--method", type=str, nargs="+", default=["cam"], help=f"of {', '.join(METHODS)}, or your own")
    command.add_argument("--targets", type=str, nargs="+", default=[], help="classes by name or number")
    command.add_argument("--topk", type=int, default=1, help="without --targets: how many of the most probable")
    command.add_argument("--layer", type=str | None, default=None, help="module by name; default: the last map's")
    command.add_argument("--options", type=dict[str, Any], default={}, help="of the methods: {gaussian: true}")
    command.add_argument("--threshold", type=float, default=0.2, help="share of a map's range that makes its box")
    command.add_argument("--colormap", type=str, default="inferno", help="of matplotlib")
    command.add_argument("--picture", choices=("png", "jpg"), default="png")
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="bf16 is faster, not exact")
    command.add_argument("--batch_size", type=int, default=16)
    command.add_argument("--workers", type=int, default=1, help="processes that decode images")
    command.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--overwrite", type=bool, default=False, help="begin anew, and replace files that exist")
    commands.add_subcommand("explain", command)

    command = _Parser(description="Compare explanation methods and networks: figures, agreement, cost, scenarios.")
    command.add_argument("images", nargs="*", help="image files, or folders of them; boxes.csv beside them is read")
    command.add_argument("--model", type=str, action="append", default=None, help=f"repeatable: {_SOURCE}")
    command.add_argument("--method", type=str, nargs="+", default=None, help=f"of {', '.join(METHODS)}, or your own")
    command.add_argument("--target", type=str | None, default=None, help="a class; default: the first model's top-1")
    command.add_argument("--out", type=str, default="comparison", help="folder to write")
    command.add_argument("--demo", action="store_true", help="generated pictures and the embedded network; no download")
    command.add_argument("--figures", type=int, default=24, help="pictures that are drawn; all are measured")
    command.add_argument("--overwrite", type=bool, default=False, help="replace an earlier comparison")
    commands.add_subcommand("compare", command)

    _add_exporting(commands)
    return parser


def _add_exporting(commands: Any) -> None:
    command = _Parser(description="Write a CAM-ready network as one file for people without camify, or as a folder.")
    command.add_argument("source", type=str, help="checkpoint folder, folder of a run, .ckpt of a run, or user/name")
    command.add_argument("--to", choices=tuple(_SUFFIXES), required=True, help="folder: of a run's .ckpt")
    command.add_argument("--out", type=str | None, default=None, help="default: beside the source")
    command.add_argument("--input_size", type=int | None, default=None, help="pixels; default: the network's")
    command.add_argument("--dynamic", type=bool, default=True, help="batch, height and width may vary where they can")
    command.add_argument("--preprocess", type=bool, default=False, help="uint8 RGB images in, resized inside")
    command.add_argument("--boxes", type=bool, default=False, help="a third output: the top-1 class's box")
    command.add_argument("--opset", type=int | None, default=None, help="of ONNX")
    command.add_argument("--precision", choices=EXPORT_PRECISIONS, default="fp32", help="of ONNX; others need --images")
    command.add_argument("--images", nargs="+", default=[], help="files or folders (of classes) to measure its loss on")
    command.add_argument("--overwrite", type=bool, default=False, help="replace what exists")
    commands.add_subcommand("export", command)

    command = _Parser(description="Say whether something is CAM-ready, point by point; exit code 0 if it is, else 1.")
    command.add_argument("source", type=str, help=f"folder, .onnx, .pt2, .ckpt, or {_SOURCE}")
    commands.add_subcommand("check", command)

    command = _Parser(description="Upload a checkpoint folder to the Hugging Face Hub.")
    command.add_argument("folder", type=str)
    command.add_argument("name", type=str, help="USER/NAME")
    command.add_argument("--private", type=bool, default=False)
    commands.add_subcommand("push", command)


def _inspect(options: Namespace) -> None:
    inspection = inspect(options.source, input_size=options.input_size)
    if inspection.verdict == "unsupported":
        raise ConversionError(f"{options.source}: {inspection.reason}")
    console = Console(highlight=False)
    console.print(inspection.table())
    if not inspection.cam_ready:
        console.print(f"Next: camify convert {options.source} OUT", soft_wrap=True)


def _convert(options: Namespace) -> None:
    source = resolve(options.source)
    known = source.preprocessing
    size = options.input_size or int((known or Preprocessing().to_dict())["size"])
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
    )
    known = net.preprocessing
    net.preprocessing = {**(known or _assumed(options.input_format)), "size": size}
    folder = net.save_pretrained(options.out)
    console = Console(highlight=False)
    if net.certificate is not None:
        console.print(net.certificate.table())
    if known is None:
        console.print(
            f"Assumed: ImageNet's normalisation at {size} px; {options.source} does not say what it was trained with."
            " If that was another, set model.preprocessing and save again.",
            soft_wrap=True,
        )
    console.print(f"Saved to {folder}; load it with camify.load({str(folder)!r}).", soft_wrap=True)


def _assumed(input_format: str) -> dict[str, Any]:
    """ImageNet's normalisation, in one channel where the network has one."""
    usual = Preprocessing()
    if input_format != "grayscale":
        return usual.to_dict()
    mean, std = (sum(values) / len(values) for values in (usual.mean, usual.std))
    return Preprocessing(usual.size, (mean,), (std,)).to_dict()


def _explain(options: Namespace) -> None:
    files = image_files(options.images)
    if Path(options.model).suffix in FORMATS and "@" not in options.model:
        if list(options.method) != ["cam"]:
            raise ConfigError("--method: an exported file holds class maps and no layers: cam is what it can show.")
        source = network_of(options.model)
    else:
        source = resolve(options.model)
    known = source.preprocessing
    preprocessing = Preprocessing() if known is None else Preprocessing.from_dict(known)
    console = Console(highlight=False)
    if known is None:
        console.print(
            f"Assumed: ImageNet's normalisation at {preprocessing.size} px; {options.model} does not say what it was"
            " trained with.",
            soft_wrap=True,
        )
    model = source.model.to(options.device)
    names = source.class_names or numbered(count_classes(model, preprocessing))
    wanted = ExplainOptions(
        methods=tuple(options.method),
        targets=tuple(class_index(target, names, "--targets") for target in options.targets),
        topk=options.topk,
        layer=options.layer,
        options=dict(options.options),
        threshold=options.threshold,
        colormap=_colormap(options.colormap),
        picture=options.picture,
        precision=options.precision,
    )
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    table = Table(box=None, padding=(0, 2))
    for column in ("image", "class", "probability", "logit", "picture"):
        table.add_column(column, overflow="fold")

    def report(result: dict[str, Any]) -> None:
        for entry in result["classes"] if table.row_count < _MOST_ROWS else []:
            figures = (f"{entry['probability']:.3f}", f"{entry['logit']:.2f}")
            table.add_row(
                escape(Path(result["image"]).name), escape(entry["class"]), *figures, escape(result["picture"])
            )

    with bar:
        done = explain_files(
            model,
            preprocessing,
            files,
            Path(options.out),
            wanted,
            source=options.model,
            class_names=names,
            batch_size=options.batch_size,
            workers=options.workers,
            overwrite=options.overwrite,
            progress=lambda batches, count: bar.track(batches, total=count, description="explaining, batch"),
            report=report,
        )
    console.print(table)
    before = f" ({done.before} were done before)" if done.before else ""
    console.print(f"{done.results} of {len(files)} images explained{before}: {options.out}", soft_wrap=True)
    if done.unreadable:
        shown = "; ".join(list(done.unreadable.values())[:5]) + ("; ..." if len(done.unreadable) > 5 else "")
        message = f"{len(done.unreadable)} could not be read: {shown}"
        if not done.results and not done.before:
            raise DataError(message)
        console.print(escape(message), soft_wrap=True)


def _compare(options: Namespace) -> None:
    folder = compare_files(
        options.images, options.model or [], options.method, out=options.out, target=options.target,
        demo=options.demo, figures=options.figures, overwrite=options.overwrite,
    )  # fmt: skip
    Console(highlight=False).print(f"Compared: {folder / 'compare.html'}, compare.md, compare.json", soft_wrap=True)


def _export(options: Namespace) -> None:
    source = Path(options.source)
    out = Path(options.out) if options.out else _beside(source, options.to)
    if out.exists() and not options.overwrite:
        raise ConfigError(f"{out}: exists. Choose another --out, or add --overwrite true.")
    console = Console(highlight=False)
    model = cam_ready(options.source)
    if options.to == "folder":
        console.print(f"Saved to {model.save_pretrained(out)}", soft_wrap=True)
        return
    names = ("input_size", "dynamic", "preprocess", "boxes", "opset", "precision", "overwrite")
    images, labels = _measured(model, options) if options.precision != "fp32" else (None, None)
    exported = export(model, out, **{name: options[name] for name in names}, images=images, labels=labels)
    console.print(escape(str(exported)), soft_wrap=True)


def _measured(model: CAMNet, options: Namespace) -> tuple[Tensor, Tensor | None]:
    """Images for fp16 and int8 as the file takes them, and their classes where their folders are named so."""
    if not options.images:
        raise ConfigError(f"--precision {options.precision}: give --images to measure its loss on.")
    files, known = image_files(options.images), Preprocessing.from_dict(model.preprocessing or {})
    images = torch.stack([known.read(file) for file in files])
    names = [file.parent.name for file in files]
    labels = [model.class_names.index(name) for name in names if model.class_names and name in model.class_names]
    if options.preprocess:
        images = (known.restore(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images, torch.tensor(labels) if len(labels) == len(files) else None


def _beside(source: Path, to: str) -> Path:
    """The default place: in a run's folder, beside a checkpoint folder or file."""
    name = "export" if to == "folder" else f"model{_SUFFIXES[to]}"
    if source.is_dir() and not (source / MANIFEST).is_file():
        return source / name
    if source.is_file():
        return source.with_name(name)
    return source.with_name(source.name + (_SUFFIXES[to] or "-copy"))


def _check(options: Namespace) -> None:
    findings = check(options.source)
    console = Console(highlight=False)
    for finding in findings:
        mark = "ok  " if finding.holds else "FAIL"
        console.print(escape(f"{mark} {finding.point}: {finding.found}"), soft_wrap=True)
    if not all(finding.holds for finding in findings):
        sys.exit(1)


def _push(options: Namespace) -> None:
    CAMNet.from_pretrained(Path(options.folder))  # whole and proven, before anything leaves this machine
    Console(highlight=False).print(push_folder(options.folder, options.name, private=options.private), soft_wrap=True)


def _colormap(name: str) -> str:
    if name not in colormaps:
        raise ConfigError(f"--colormap {name!r}: matplotlib has none of that name. Try inferno, viridis or jet.")
    return name


_COMMANDS = {
    "inspect": _inspect, "convert": _convert, "explain": _explain, "compare": _compare,
    "export": _export, "check": _check, "push": _push,
}  # fmt: skip
