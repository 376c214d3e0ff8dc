"""The camify command: inspect, convert and explain, for files and folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torchvision.datasets.folder import IMG_EXTENSIONS

from .data import Preprocessing
from .errors import CamifyError, ConfigError, ConversionError, DataError
from .explaining.compare import compare_files
from .files import slug
from .maps import select
from .methods import METHODS
from .model import CAMNet
from .modes import evaluating
from .report.overlay import ClassMap, overlay_picture
from .surgery import HEADS, INPUT_FORMATS, RECIPES, convert, inspect, resolve

__all__ = ["main"]

_SOURCE = (
    "torchvision/NAME, torchvision/NAME@none, torchvision/NAME@FILE.pth, the same with timm/, camify/tiny_vgg"
    " or a checkpoint folder"
)


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

    command = _Parser(description="Draw where a CAM-ready network looks, for image files.")
    command.add_argument("images", nargs="+", help="image files, or folders of them")
    command.add_argument("--model", type=str, required=True, help="checkpoint folder")
    command.add_argument("--out", type=str, required=True, help="folder for the pictures")
    command.add_argument("--method", choices=tuple(METHODS), default="cam")
    command.add_argument(
        "--target", type=str | None, default=None, help="a class by name or number; default: the predicted"
    )
    command.add_argument("--colormap", type=str, default="inferno")
    command.add_argument("--overwrite", type=bool, default=False, help="replace pictures that exist")
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
    return parser


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


@torch.no_grad()
def _explain(options: Namespace) -> None:
    source = resolve(options.model)
    net = source.model
    if not isinstance(net, CAMNet):
        raise ConversionError(
            f"{options.model}: is not CAM-ready. Convert it first: camify convert {options.model} OUT"
        )
    if net.preprocessing is None:
        raise ConfigError(
            f"{options.model}: names no preprocessing, so pictures cannot be prepared. Save it again with it."
        )
    preprocessing = Preprocessing.from_dict(net.preprocessing)
    files = _image_files(options.images)
    targets = _out_files(files, Path(options.out), overwrite=options.overwrite)
    names = net.class_names or [f"class {index}" for index in range(net.num_classes)]
    target = _class_index(options.target, names)
    inputs = [preprocessing.read(path) for path in files]  # all are read before anything is written
    table = Table(box=None, padding=(0, 2))
    for column in ("image", "class", "probability", "logit", "picture"):
        table.add_column(column, overflow="fold")
    with evaluating(net):
        for path, out, image in zip(files, targets, inputs, strict=True):
            logits, maps = net.forward_with_maps(image[None])
            chosen = int(logits.argmax()) if target is None else target
            probability = float(logits.softmax(dim=1)[0, chosen])
            heat = select(maps, torch.tensor([chosen]))[0]
            shown = ClassMap(names[chosen], heat, float(logits[0, chosen]), probability)
            picture = overlay_picture(
                preprocessing.restore(image),
                None,
                shown,
                scale=float(heat.max()),
                colormap=options.colormap,
                title=path.name,
            )
            out.parent.mkdir(parents=True, exist_ok=True)
            picture.save(out)
            table.add_row(str(path), names[chosen], f"{probability:.3f}", f"{shown.logit:.2f}", str(out))
    Console(highlight=False).print(table)


def _compare(options: Namespace) -> None:
    folder = compare_files(
        options.images, options.model or [], options.method, out=options.out, target=options.target,
        demo=options.demo, figures=options.figures, overwrite=options.overwrite,
    )  # fmt: skip
    Console(highlight=False).print(f"Compared: {folder / 'compare.html'}, compare.md, compare.json", soft_wrap=True)


def _image_files(given: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
            if not found:
                raise DataError(f"{path}: holds no images.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder.")
    return files


def _out_files(files: Sequence[Path], folder: Path, *, overwrite: bool) -> list[Path]:
    """A picture file for every image; equal names get their number."""
    stems = [slug(path.stem) for path in files]
    names = [
        stem if stems.count(stem) == 1 else f"{stem}_{stems[:index].count(stem) + 1}"
        for index, stem in enumerate(stems)
    ]
    out = [folder / f"{name}_cam.png" for name in names]
    existing = [path for path in out if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{existing[0]}: exists. Choose another --out, or add --overwrite true.")
    return out


def _class_index(target: str | None, names: Sequence[str]) -> int | None:
    if target is None:
        return None
    if target in names:
        return list(names).index(target)
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    raise ConfigError(f"--target {target!r}: no such class. Known: {', '.join(names[:10])}.")


_COMMANDS = {"inspect": _inspect, "convert": _convert, "explain": _explain, "compare": _compare}
