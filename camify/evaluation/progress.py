"""How far a long pass is: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

__all__ = ["tracked"]

Item = TypeVar("Item")
_LINES = 10  # of a pass, where no bar can be drawn


def tracked(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """The items, with what is done of them on stderr: ``measuring, batch 30 of 100``, one line each 10 %.

    A pass of one item has no such line.
    """
    if sys.stderr.isatty():
        yield from track(items, label, total=total, console=Console(stderr=True))
        return
    for done, item in enumerate(items, start=1):
        yield item
        if total > 1 and done * _LINES // total > (done - 1) * _LINES // total:
            sys.stderr.write(f"{label} {done} of {total}\n")
            sys.stderr.flush()
