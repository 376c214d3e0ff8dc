"""The commands export, check and push."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from ..app.space import write_space
from ..checkpoint.folder import MANIFEST
from ..checkpoint.hub import is_repository, push_folder
from ..console import console
from ..conversion.readiness import check
from ..errors import CamifyError, ConfigError
from ..evaluation.images import find_files
from ..exporters import EXPORT_PRECISIONS, export, open_exported
from ..files import require_writable
from ..model import CAMNet
from ..preprocessing import Preprocessing
from ..sources.resolve import resolve_cam_ready
from ..web import export_web
from .option_types import Count, Sides
from .output import add_command, answer

__all__ = ["COMMANDS", "add_commands"]

_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "folder": "", "web": ""}
_FOLDERS = {"folder": "export", "web": "web"}  # their names in the folder of a run
_BESIDE = {"folder": "-copy", "web": "-web"}  # behind the name of a checkpoint folder


def add_commands(commands: Any, parser: type[ArgumentParser]) -> None:
    """Add the commands to a parser's subcommands."""
    command = parser(description="Write a CAM-ready network as one file for people without camify, or as a folder.")
    command.add_argument("source", type=str, help="checkpoint folder, folder of a run, .ckpt of a run, or hf:USER/NAME")
    command.add_argument("--to", choices=tuple(_SUFFIXES), required=True, help="folder: of a run's .ckpt; web: a page")
    command.add_argument("--out", type=str | None, default=None, help="default: beside the source")
    command.add_argument("--input_size", type=Sides, default=None, help="of the images; default: the network's")
    command.add_argument("--dynamic", type=bool, default=True, help="batch, height and width may vary where they can")
    command.add_argument("--preprocess", type=bool, default=False, help="uint8 RGB images in, resized inside")
    command.add_argument("--boxes", type=bool, default=False, help="a third output: the top-1 class's box")
    command.add_argument("--opset", type=Count | None, default=None, help="of ONNX")
    command.add_argument("--precision", choices=EXPORT_PRECISIONS, default="fp32", help="of ONNX; others need --images")
    command.add_argument("--images", nargs="+", default=[], help="files or folders (of classes) to measure its loss on")
    command.add_argument("--runtime", type=str | None, default=None, help="of web: folder of npm's onnxruntime-web")
    command.add_argument("--overwrite", type=bool, default=False, help="replace what exists")
    add_command(commands, "export", command)

    command = parser(description="Say whether something is CAM-ready, point by point; exit code 0 if it is, else 1.")
    command.add_argument(
        "source", type=str, help="folder, .onnx, .pt2, .ckpt, or a legacy network as in camify inspect"
    )
    add_command(commands, "check", command)

    command = parser(description="Upload a checkpoint folder to the Hugging Face Hub, or a Space that shows it.")
    command.add_argument("folder", type=str)
    command.add_argument("name", type=str, help="USER/NAME")
    command.add_argument("--private", type=bool, default=False)
    command.add_argument("--space", type=bool, default=False, help="upload the page of camify app as a Space instead")
    command.add_argument("--out", type=str | None, default=None, help="with --space: write it here, upload nothing")
    add_command(commands, "push", command)


def _export(options: Namespace) -> None:
    out = Path(options.out) if options.out else _beside(options.source, options.to)
    if out.exists() and not options.overwrite:
        raise ConfigError(f"{out}: exists. Choose another --out, or add --overwrite true.")
    if out.is_file():
        _refuse_foreign(out)
    require_writable(out, "--out", folder=options.to in _FOLDERS)
    _require_fitting(options)
    screen = console(soft_wrap=True)
    model = _exportable(options.source)
    if options.to == "folder":
        screen.print(f"Saved to {model.save_pretrained(out)}")
        answer(options, {"path": out})
        return
    images, labels = _measured(model, options) if options.precision != "fp32" else (None, None)
    names = ("input_size", "opset", "precision", "overwrite")
    shared: dict[str, Any] = {"images": images, "labels": labels, **{name: options[name] for name in names}}
    if options.to == "web":
        page = export_web(model, out, runtime=options.runtime, **shared)
        screen.print(str(page))
        answer(options, asdict(page))
        return
    own = {name: options[name] for name in ("dynamic", "preprocess", "boxes")}
    exported = export(model, out, **shared, **own)
    screen.print(str(exported))
    answer(options, asdict(exported))


def _require_fitting(options: Namespace) -> None:
    """Options that only some targets have."""
    if options.runtime is not None and options.to != "web":
        raise ConfigError(f"--runtime {options.runtime}: only --to web runs in a browser. Leave it out.")
    if options.to == "web" and options.boxes:
        raise ConfigError("--boxes true: the page makes boxes itself. Leave it out.")
    if options.to == "web" and not options.dynamic:
        raise ConfigError("--dynamic false: a page takes pictures of any size. Leave it out.")


def _refuse_foreign(out: Path) -> None:
    """A file that is to be replaced must be one of camify's."""
    try:
        open_exported(out)
    except CamifyError as error:
        raise ConfigError(f"{out}: is no file of camify export. It was not touched; choose another --out.") from error


def _exportable(text: str) -> CAMNet:
    source = resolve_cam_ready(text)
    source.require_layers("it cannot be exported again")
    return source.cam_net


def _measured(model: CAMNet, options: Namespace) -> tuple[Tensor, Tensor | None]:
    """Images for fp16 and int8 as the file takes them, and their classes where their folders are named so."""
    if not options.images:
        raise ConfigError(f"--precision {options.precision}: give --images to measure its loss on.")
    search, preprocessing = find_files(options.images), model.preprocessing or Preprocessing()
    for note in search.left_out.notes():
        console(soft_wrap=True).print(f"Images: {note}.")
    files = search.paths
    images = torch.stack([preprocessing.read(file) for file in files])
    names = [file.parent.name for file in files]
    labels = [model.class_names.index(name) for name in names if model.class_names and name in model.class_names]
    if options.preprocess or options.to == "web":
        images = (preprocessing.restore(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images, torch.tensor(labels) if len(labels) == len(files) else None


def _beside(text: str, to: str) -> Path:
    """The default place: in a run's folder, beside a checkpoint folder or file; of a repository of the Hub here."""
    source = Path(text.rpartition("/")[2] if is_repository(text) else text)
    name = _FOLDERS.get(to, f"model{_SUFFIXES[to]}")
    if source.is_dir() and not (source / MANIFEST).is_file():
        return source / name
    if source.is_file():
        return source.with_name(name)
    return source.with_name(source.name + (_SUFFIXES[to] or _BESIDE[to]))


def _check(options: Namespace) -> None:
    results = check(options.source)
    screen = console(soft_wrap=True)
    for result in results:
        mark = "ok  " if result.holds else "FAIL"
        screen.print(f"{mark} {result.point}: {result.message}")
    holds = all(result.holds for result in results)
    answer(options, {"holds": holds, "points": [result._asdict() for result in results]})
    if not holds:
        sys.exit(1)


def _push(options: Namespace) -> None:
    screen = console(soft_wrap=True)
    if options.out is not None and not options.space:
        raise ConfigError("--out: only a Space is written to a folder. Add --space true, or leave --out away.")
    if options.out is not None:
        require_writable(Path(options.out), "--out", folder=True)
        space = write_space(options.folder, options.out, options.name)
        screen.print(f"Written, nothing uploaded: {space}")
        answer(options, {"path": space})
        return
    if options.space:
        with tempfile.TemporaryDirectory() as place:
            written = write_space(options.folder, Path(place, "space"), options.name)
            address = push_folder(written, options.name, private=options.private, space=True)
    else:
        CAMNet.from_pretrained(Path(options.folder))  # whole and proven, before anything leaves this machine
        address = push_folder(options.folder, options.name, private=options.private)
    screen.print(address)
    answer(options, {"address": address})


COMMANDS = {"export": _export, "check": _check, "push": _push}
