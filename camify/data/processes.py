"""Several processes: what one of them does for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from ..ranks import Ranks

__all__ = ["made_by_first"]

Item = TypeVar("Item")


def made_by_first(make: Callable[[], Iterator[Item]], ranks: Ranks) -> Iterator[Item]:
    """Items that the first process makes, given to all one by one: nobody waits longer than for one of them.

    Raises:
        EndedElsewhere: in the others, where making them raises in the first.
    """
    if ranks.world_size == 1:
        yield from make()
        return
    items = make() if ranks.is_first else iter(())
    while given := ranks.first(lambda: list(islice(items, 1))):
        yield from given
