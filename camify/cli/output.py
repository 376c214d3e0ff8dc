"""What a command says, and to whom: people read its lines, scripts its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..console import quiet_console, write_line
from ..reports.tables import json_values

__all__ = ["add_command", "answer", "answer_lines", "spoken_for"]


def add_command(commands: Any, name: str, command: ArgumentParser) -> None:
    """Add a command to a parser's subcommands, with the options that say who reads what it says."""
    command.add_argument("--quiet", action="store_true", help="say nothing but errors and warnings")
    command.add_argument("--json", action="store_true", help="say what came out as JSON on stdout, and nothing else")
    commands.add_subcommand(name, command)


@contextmanager
def spoken_for(options: Namespace) -> Iterator[None]:
    """Within it the console is silent where the options of a command say so."""
    own = options[options.verb] if "verb" in options else options
    with quiet_console(silent=own.quiet or own.json):
        yield


def answer(options: Namespace, document: Any) -> None:
    """Where JSON was asked for: what came out, as one line on stdout."""
    if options.json:
        write_line(json.dumps(json_values(document), default=str))


def answer_lines(options: Namespace, path: Path) -> None:
    """Where JSON was asked for: the lines of a file, each of them JSON."""
    if options.json and path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                write_line(line.rstrip("\n"))
