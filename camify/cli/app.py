"""The command app: a page in the browser that shows what networks say of pictures."""

from __future__ import annotations

from typing import Any

import torch
from jsonargparse import Namespace

from ..app.networks import example_files, open_networks
from ..app.page import is_loopback, serve, wait_until_stopped
from ..console import console
from ..methods import METHODS
from .command_options import SOURCE, CommandParser, add_source_options
from .option_types import Count
from .output import add_command, answer

__all__ = ["COMMANDS", "add_commands"]


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    command = CommandParser(
        description="Show a page in the browser: drop a picture, see classes, maps and boxes of one or two networks."
    )
    command.add_argument("sources", nargs="+", help=f"one network, or two side by side: {SOURCE}")
    command.add_argument(
        "--method", type=str, nargs="+", default=None, help=f"default: all that work: {', '.join(METHODS)}"
    )
    add_source_options(command)
    command.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument(
        "--examples", type=str | None, default=None, help="folder of images; default: the run's watched"
    )
    command.add_argument("--colormap", type=str, default="inferno", help="of matplotlib")
    command.add_argument("--host", type=str, default="127.0.0.1", help="default: this machine alone can reach the page")
    command.add_argument("--port", type=Count | None, default=None, help="default: the first free one from 7860 on")
    command.add_argument("--open", type=bool, default=False, help="show it in this machine's browser")
    add_command(commands, "app", command)


def _app(options: Namespace) -> None:
    networks = open_networks(
        options.sources, options.method, class_names=options.class_names, task=options.task, bits=options.bits,
        preprocessing=options.preprocessing, device=options.device,
    )  # fmt: skip
    examples, said = example_files(options.examples, options.sources)
    screen = console(soft_wrap=True)
    for network in networks:
        for line in (f"methods: {', '.join(network.served)}", *network.notes):
            screen.print(f"{network.name}: {line}.")
    screen.print(f"{said}.")
    if not is_loopback(options.host):
        screen.print(
            f"--host {options.host}: everybody on that network can reach the page, and use this machine's processor by"
            " it. There is no password."
        )
    title = " and ".join(network.name for network in networks)
    serving = serve(
        networks, examples, host=options.host, port=options.port, colormap=options.colormap, open_browser=options.open,
        title=f"camify: {title}",
    )  # fmt: skip
    with serving as address:
        screen.print(f"Page: {address} (Ctrl-C stops it)")
        answer(options, {"address": address})
        wait_until_stopped()


COMMANDS = {"app": _app}
