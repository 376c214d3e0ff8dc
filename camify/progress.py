"""How far a long pass is: a bar in a terminal, plain lines elsewhere; both with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from .console import console, has_live_display

__all__ = ["tracked"]

Item = TypeVar("Item")
_LINES = 10  # of a pass, where no bar can be drawn
_WORTH_SAYING = 5  # seconds that are left


def tracked(items: Iterable[Item], label: str, total: int | None, *, patience: float = 0.0) -> Iterator[Item]:
    """The items, with what is done of them on stderr: ``measuring, batch 30 of 100, 40 s left``, one line each 10 %.

    A pass of one item has no such line. Where another bar stands in the terminal, such as that of training, there are
    lines above it.

    Args:
        items: of the pass.
        label: what they are called.
        total: how many there are; None where that is not known, and nothing is said.
        patience: seconds in which nothing is said, of passes that are mostly short; there is no bar then.
    """
    screen = console(stderr=True)
    if screen.is_terminal and not patience and total is not None and not has_live_display():
        from rich.progress import track

        yield from track(items, label, total=total, console=screen)
        return
    start = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if total is None or total < 2 or done * _LINES // total <= (done - 1) * _LINES // total:
            continue
        passed = time.monotonic() - start
        if passed >= patience:
            screen.print(f"{label} {done} of {total}{_left(passed / done * (total - done))}", soft_wrap=True)


def _left(seconds: float) -> str:
    if seconds < _WORTH_SAYING:
        return ""
    return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"
