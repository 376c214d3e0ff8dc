"""The command data: boxes of other formats become boxes.csv."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from ..console import console, plain_text
from ..data.box_formats.importing import FRAMES, import_boxes, table_text
from ..data.box_formats.kinds import KINDS
from ..data.box_formats.writing import BOX_FILES, LOCAL_FILES, BoxFiles
from ..data.boxes_csv import box_table, is_box_table
from ..data.class_folders import images_of
from ..data.image_search import find_images_below
from ..errors import ConfigError, DataError
from ..files import require_writable, write_whole
from .output import add_command, answer

__all__ = ["COMMANDS", "add_box_options", "add_commands", "box_files"]

_MOST_ROWS = 20


def add_commands(commands: Any, parser: type[ArgumentParser]) -> None:
    """Add the command to a parser's subcommands."""
    group = parser(description="Boxes of other tools become boxes.csv, which training, evaluate and compare read.")
    commands.add_subcommand("data", group)
    verbs = group.add_subcommands(dest="verb")

    command = parser(description="Read boxes of COCO, Pascal VOC, YOLO, CVAT, Label Studio, ... and write boxes.csv.")
    command.add_argument("source", type=str, help="file or folder that holds the boxes; its kind is found")
    command.add_argument("--images", type=str, required=True, help="folder of the images: names are relative to it")
    command.add_argument("--out", type=str | None, default=None, help="table to write; default: IMAGES/boxes.csv")
    command.add_argument("--kind", choices=tuple(KINDS), default=None, help="default: as the content says")
    command.add_argument(
        "--voc_origin",
        type=Literal[0, 1] | None,
        default=None,
        help="first pixel of VOC's; default: from the boxes",
    )
    command.add_argument("--exif", choices=FRAMES, default=None, help="where boxes lie, if no size says it")
    command.add_argument("--overwrite", type=bool, default=False, help="replace a table of boxes that exists")
    add_command(verbs, "import", command)


def add_box_options(command: ArgumentParser) -> None:
    """What explain asks for files of boxes for other tools."""
    command.add_argument(
        "--boxes", nargs="+", choices=tuple(BOX_FILES), default=[], help="also as files of these tools"
    )
    command.add_argument("--image_url_prefix", type=str, default=LOCAL_FILES, help="where Label Studio gets the images")


def box_files(options: Namespace) -> BoxFiles:
    """The files of boxes that are asked for."""
    return BoxFiles(tuple(dict.fromkeys(options.boxes)), options.image_url_prefix)


def _data(options: Namespace) -> None:
    _import(options[options.verb])


def _import(options: Namespace) -> None:
    root = Path(options.images)
    if not root.is_dir():
        raise DataError(f"--images {root}: no such folder. Give the folder of the labeled images.")
    out = box_table(root) if options.out is None else Path(options.out)
    _require_free(out, Path(options.source), overwrite=options.overwrite)
    images = images_of(root, find_images_below(root))
    imported = import_boxes(
        Path(options.source), images, root, kind=options.kind, voc_origin=options.voc_origin, exif=options.exif
    )
    screen = console(soft_wrap=True)
    for note in imported.notes:
        screen.print(f"{note[0].upper()}{note[1:]}.")
    if not imported.rows:
        raise DataError(f"{options.source}: no boxes are left of it, as said above. Nothing was written.")
    write_whole(out, table_text(imported.rows))
    counts = Counter(row[-1] for row in imported.rows)
    table = Table(box=None, padding=(0, 2))
    for column in ("label", "boxes"):
        table.add_column(column, overflow="fold")
    for label, count in counts.most_common(_MOST_ROWS):
        table.add_row(plain_text(label), str(count))
    screen.print(table)
    more = f" ({len(counts) - _MOST_ROWS} more labels are in the table)" if len(counts) > _MOST_ROWS else ""
    screen.print(
        f"{len(imported.rows)} boxes of {imported.images} of {len(images)} images, kind {imported.kind}: {out}{more}"
    )
    figures = {"boxes": len(imported.rows), "images": imported.images, "of_images": len(images)}
    answer(options, {"file": str(out), "kind": imported.kind, **figures, "labels": counts, "notes": imported.notes})


def _require_free(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a place that may not be written: what is there is kept, unless it is a table of boxes that may go."""
    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError(f"{out}: is the source. Choose another --out.")
    if out.is_file() and not overwrite:
        raise ConfigError(f"{out}: exists. Choose another --out, or add --overwrite true.")
    if out.is_file() and not is_box_table(out):
        raise ConfigError(f"{out}: is no table of boxes. It was not touched; choose another --out.")
    require_writable(out, "--out")


COMMANDS = {"data": _data}
