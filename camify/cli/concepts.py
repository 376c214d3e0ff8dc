"""The command concepts: what images share inside a network, as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from ..console import console, print_error
from ..evaluation.concepts import PICTURE, ConceptsSummary, write_concepts
from ..evaluation.images import find_files
from ..evaluation.network import explained_network, usable_device
from ..files import CONCEPTS
from ..sources import resolve
from .command_options import SOURCE, CommandParser, add_source_options
from .option_types import Count, Number, Seed
from .output import add_command, answer
from .terminal_picture import show_pictures

__all__ = ["COMMANDS", "add_commands"]

_FORWARD_ONLY = ("reciprocam",)  # which every network can be asked for


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    command = CommandParser(
        description="Factorize what a network sees in images into a few concepts that they share, and draw them."
    )
    command.add_argument("images", nargs="+", help="image files, or folders of them")
    command.add_argument("--model", type=str, required=True, help=SOURCE)
    command.add_argument("--out", type=str, required=True, help="folder to write: concepts.png, concepts.json")
    command.add_argument("--concepts", type=Count, default=4, help="how many, 1 to 7")
    command.add_argument("--layer", type=str | None, default=None, help="module by name; default: the last map's")
    command.add_argument("--limit", type=Count, default=24, help="most images; of more so many are taken, spread")
    add_source_options(command)
    command.add_argument("--seed", type=Seed, default=0, help="of the factorization")
    command.add_argument("--workers", type=Number, default=0, help="processes that decode images")
    command.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--show", type=bool, default=True, help="the picture, in a terminal that can draw it")
    command.add_argument("--overwrite", type=bool, default=False, help="replace earlier concepts")
    add_command(commands, "concepts", command)


def _concepts(options: Namespace) -> None:
    search = find_files(options.images, outside=options.out)
    device = usable_device(options.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that are drawn are the same in each run
        source = resolve(options.model).explained_by(["concepts"])
    source.model.to(device)
    network = explained_network(
        source, options.model, _FORWARD_ONLY, task=options.task, bits=options.bits,
        preprocessing=options.preprocessing,
    )  # fmt: skip
    network.name_classes(options.class_names)
    out = Path(options.out)
    done = write_concepts(
        network, search.paths, out, concepts=options.concepts, layer=options.layer, seed=options.seed,
        limit=options.limit, workers=options.workers, overwrite=options.overwrite,
    )  # fmt: skip
    screen = console(soft_wrap=True)
    for note in [*network.notes, *search.left_out.notes(), *done.notes]:
        screen.print(f"{note[0].upper()}{note[1:]}.")
    for entry in done.document["concepts"]:
        classes = ", ".join(f"{one['class']} {one['probability']:.2f}" for one in entry["classes"][:3])
        screen.print(f"Concept {entry['concept']} ({entry['color']}, {entry['share']:.0%}): {classes}")
    screen.print(f"Written: {out / PICTURE}, {CONCEPTS}")
    if options.show and not (options.quiet or options.json):
        show_pictures([out / PICTURE])
    answer(options, done.document)
    _end_where_unreadable(done, options)


def _end_where_unreadable(done: ConceptsSummary, options: Namespace) -> None:
    if done.unreadable:
        message = f"{len(done.unreadable)} could not be read: {'; '.join(list(done.unreadable.values())[:5])}"
        if options.quiet or options.json:
            print_error(message)
        console(soft_wrap=True).print(message)
        sys.exit(1)


COMMANDS = {"concepts": _concepts}
