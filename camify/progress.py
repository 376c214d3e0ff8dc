"""How far a long pass is: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track

from .console import console

__all__ = ["tracked"]

Item = TypeVar("Item")
_LINES = 10  # of a pass, where no bar can be drawn


def tracked(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """The items, with what is done of them on stderr: ``measuring, batch 30 of 100``, one line each 10 %.

    A pass of one item has no such line.
    """
    screen = console(stderr=True)
    if screen.is_terminal:
        yield from track(items, label, total=total, console=screen)
        return
    for done, item in enumerate(items, start=1):
        yield item
        if total > 1 and done * _LINES // total > (done - 1) * _LINES // total:
            screen.print(f"{label} {done} of {total}", soft_wrap=True)
