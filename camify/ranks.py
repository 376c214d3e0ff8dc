"""Several processes that share one command's work: which one this is, its part, and how they agree.

The processes are started by torchrun, and talk through ``torch.distributed``; a single process needs neither.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from .errors import ConfigError, ProcessError

__all__ = ["ONE", "EndedElsewhere", "Ranks", "current", "sample_keys", "started"]

_T = TypeVar("_T")
_LONGEST = timedelta(days=7)  # that one process may work while the others wait; of one that dies its connection tells
_LAST_WORD = timedelta(seconds=10)  # until the process that fails has said why


class EndedElsewhere(SystemExit):
    """Another process cannot go on, and says why; this one ends with it, without a word."""


@dataclass(frozen=True)
class Ranks:
    """A process among those that do the same work.

    What is exchanged are plain objects, pickled, between the processes of one command.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _failed: list[int] = field(default_factory=list, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks and writes what there is once."""
        return self.rank == 0

    def share(self, items: Sequence[_T], size: int = 1) -> list[_T]:
        """This process's part of items of which ``size`` go together: the groups are those of one process.

        Example:
            >>> [Ranks(rank, 2).share("abcdefg", 2) for rank in (0, 1)]
            [['a', 'b', 'e', 'f'], ['c', 'd', 'g']]
        """
        starts = range(self.rank * size, len(items), self.world_size * size)
        return [item for start in starts for item in items[start : start + size]]

    def gather(self, value: _T) -> list[_T]:
        """In the first process what every one gives, in their order; in the others nothing. All call it.

        Raises:
            ProcessError: a process has ended; names it.
        """
        if self.world_size == 1:
            return [value]
        if not self.is_first:
            with _or_end():
                distributed.send_object_list([value], dst=0)
            return []
        values = [value]
        for rank in range(1, self.world_size):
            received: list[Any] = [None]
            try:
                distributed.recv_object_list(received, src=rank)
            except RuntimeError as error:
                raise ProcessError(
                    f"Process {rank} of 0 to {self.world_size - 1} has ended before its part was done; what it or its"
                    " machine said stands above or in its own output. Run the command again."
                ) from error
            values += received
        return values

    def everywhere(self, value: _T) -> _T:
        """What the first process gives, in all. All call it."""
        if self.world_size == 1:
            return value
        given: list[Any] = [value]
        with _or_end():
            distributed.broadcast_object_list(given, src=0)
        first: _T = given[0]
        return first

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Work that all processes do or none: an error in one of them ends all, and the first that has one raises it.

        Raises:
            EndedElsewhere: in the others.
        """
        if self.world_size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except ProcessError:
            raise
        except Exception as caught:  # noqa: BLE001 - whatever it is, the others must know
            error = caught
        failed = self.everywhere([rank for rank, fails in enumerate(self.gather(error is not None)) if fails])
        self._failed.extend(failed)
        if failed and error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise EndedElsewhere(2)

    def begin_together(self, steps: Iterator[_T]) -> Iterator[_T]:
        """The steps of this process; all make their first one before any goes on, and an error in it ends all."""
        with self.agree():
            begun = list(islice(steps, 1))
        yield from begun
        yield from steps

    def first(self, make: Callable[[], _T]) -> _T:
        """What ``make`` gives in the first process, in all; its error ends all. All call it."""
        made: Any = None
        with self.agree():
            if self.is_first:
                made = make()
        given: _T = self.everywhere(made)
        return given

    def add(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes, in their own precision, in place. All call it."""
        for tensor in tensors if self.world_size > 1 else ():
            on_gpu = distributed.get_backend() == "nccl"
            total = tensor.to(torch.cuda.current_device() if on_gpu else "cpu", copy=True).contiguous()
            distributed.all_reduce(total)
            tensor.copy_(total)


ONE = Ranks()
"""A process that works alone."""


def current() -> Ranks:
    """This process among those that are connected, such as those of a Lightning trainer; ``ONE`` where none are."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return ONE
    rank = distributed.get_rank()
    return Ranks(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))


def sample_keys(numbers: Tensor) -> Tensor:
    """A draw in [0, 1), float64, for each number of an item (int64); the same in every process and run.

    The items of the k smallest keys are a uniform sample of k, in whichever order and by whom they are seen: the
    sample of several processes is that of one. (SplitMix64, Steele, Lea & Flood 2014.)
    """
    values = numbers.cpu().numpy().astype(np.uint64)
    with np.errstate(over="ignore"):
        values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
        values ^= values >> np.uint64(31)
    return torch.from_numpy((values >> np.uint64(11)).astype(np.float64)) * 2.0**-53


@contextmanager
def started() -> Iterator[Ranks]:
    """The processes that torchrun started, connected for the time of the context; ``ONE`` where it started none.

    They exchange what lies in main memory: gloo connects them, also where each has a GPU of its own.

    Raises:
        ConfigError: they cannot be connected.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ONE
        return
    if not distributed.is_available():
        raise ConfigError("torchrun: this build of torch has no torch.distributed. Run the command without torchrun.")
    try:
        distributed.init_process_group("gloo", timeout=_LONGEST)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"The processes cannot be connected ({reason}). Start them with torchrun; on machines with several"
            " networks name one with GLOO_SOCKET_IFNAME."
        ) from error
    ranks = current()
    try:
        with warnings.catch_warnings():
            if not ranks.is_first:
                warnings.simplefilter("ignore")  # they are the first one's too
            yield ranks
    finally:
        if ranks._failed:  # whoever ends first, torchrun ends the others: let the one that has to say something say it
            with suppress(RuntimeError):
                distributed.monitored_barrier(timeout=_LAST_WORD)
        distributed.destroy_process_group()


@contextmanager
def _or_end() -> Iterator[None]:
    """The first process says which one is lost, and torchrun if that is the first; the others end."""
    try:
        yield
    except RuntimeError as error:
        raise EndedElsewhere(2) from error
