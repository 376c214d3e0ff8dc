"""The camify command: networks inspected, converted, explained, compared, measured, exported and checked."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ..console import console
from ..errors import ConfigError
from ..files import require_writable, write_whole
from ..ranks import started
from ..reports.html import is_own_page
from ..reports.run_folder import read_run
from ..reports.run_page import render_page
from ..reports.runs_page import render_runs
from .app import COMMANDS as APP_COMMANDS
from .app import add_commands as add_app_commands
from .command_options import CommandParser
from .concepts import COMMANDS as CONCEPT_COMMANDS
from .concepts import add_commands as add_concept_commands
from .data import COMMANDS as DATA_COMMANDS
from .data import add_commands as add_data_commands
from .export import COMMANDS, add_commands
from .failures import one_line_errors
from .images import COMMANDS as IMAGE_COMMANDS
from .images import SHARED
from .images import add_commands as add_image_commands
from .networks import COMMANDS as NETWORK_COMMANDS
from .networks import add_commands as add_network_commands
from .output import add_command, answer, spoken_for

__all__ = ["main"]

TRAINING = ("fit", "validate", "test", "predict")
"""The commands of the training command line."""


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
            _refuse_unknown(words)
            config = _parser().parse_args(words)
            command = config.subcommand
            if ranks.world_size > 1 and command not in SHARED:
                raise ConfigError(
                    f"camify {command} works in one process: run it without torchrun. {' and '.join(SHARED)} share"
                    " their images among several."
                )
        options = config[command]
        with spoken_for(options):
            if command in SHARED:
                SHARED[command](options, ranks)
            else:
                _COMMANDS[command](options)


def _refuse_unknown(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-") or words[0] in SHARED or words[0] in _COMMANDS:
        return
    known = [*TRAINING, *_COMMANDS, *SHARED]
    near = difflib.get_close_matches(words[0], known, n=1)
    meant = f" Did you mean {near[0]}?" if near else f" Commands: {', '.join(dict.fromkeys(known))}."
    raise ConfigError(f"camify {words[0]}: there is no such command.{meant}")


def _parser() -> ArgumentParser:
    parser = CommandParser(
        prog="camify",
        version=version("camify"),
        description="Image classifiers become CAM-ready: inspected, converted, explained. `camify fit`, `validate`,"
        " `test` and `predict` do what train.py does; `camify fit --help` lists their options.",
    )
    commands = parser.add_subcommands(dest="subcommand")

    command = CommandParser(description="Write the page of a run anew, or put several runs side by side.")
    command.add_argument("runs", nargs="+", help="run folders, as `camify fit` leaves them")
    command.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="page to write; default: RUN/report.html, or comparison.html for several",
    )
    command.add_argument("--overwrite", type=bool, default=False, help="replace a page that exists")
    add_command(commands, "report", command)

    add_network_commands(commands)
    add_image_commands(commands)
    add_concept_commands(commands)
    add_commands(commands, CommandParser)
    add_data_commands(commands, CommandParser)
    add_app_commands(commands)
    return parser


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
    answer(options, {"page": str(out)})


_COMMANDS = {
    **NETWORK_COMMANDS,
    **IMAGE_COMMANDS,
    **CONCEPT_COMMANDS,
    "report": _report,
    **COMMANDS,
    **DATA_COMMANDS,
    **APP_COMMANDS,
}
