"""Loading processes that stay from epoch to epoch, and draw the same again where a run is resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

__all__ = ["TrainingLoader", "outlive_signals", "seed_sample", "sent_as_one"]

_LARGEST = 2**62


class TrainingLoader(DataLoader[Any]):
    """Batches of samples that chance changes: each draws from a seed of the epoch and its number.

    Loading processes that stay would otherwise draw on from epoch to epoch, which a resumed run could not repeat. The
    epoch's seed is drawn where the epoch begins, and lies in memory that all processes share (``epoch_seed`` of the
    data set). Without loading processes samples draw from the process's own generator, as usual.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch."""
        seed = getattr(self.dataset, "epoch_seed", None)
        if self.num_workers > 0 and isinstance(seed, Tensor):
            seed.share_memory_()  # type: ignore[no-untyped-call]  # before there are processes that read it
            seed.fill_(int(torch.randint(_LARGEST, ())))
        return super().__iter__()


def outlive_signals(worker: int) -> None:  # noqa: ARG001 - what PyTorch calls in each loading process
    """In a loading process, heed Ctrl-C and SIGTERM of its own main process alone.

    Terminals and schedulers send them to all processes of a run. The main process decides when it stops, and may need
    some batches more: those of a validation that it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # nothing says who sent a signal (macOS, Windows)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent says so, or is no more; as PyTorch does, without an error."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent and os.getppid() == parent:
        pass
    os._exit(0)


def seed_sample(epoch_seed: Tensor, number: int) -> None:
    """In a loading process, let what is drawn for a sample depend on the epoch and its number alone."""
    if get_worker_info() is not None:
        # torch.manual_seed would read the whole call stack for each kind of accelerator that is not there: 0.4 ms.
        torch.default_generator.manual_seed((int(epoch_seed) * 1_000_003 + number) % _LARGEST)


class _SentAsOne(list[Tensor]):
    """Tensors of one kind that are pickled as one, and come out as a plain list."""

    def __reduce__(self) -> tuple[Callable[..., list[Tensor]], tuple[Tensor, list[torch.Size]]]:
        return _parted, (torch.cat([tensor.reshape(-1) for tensor in self]), [tensor.shape for tensor in self])


def _parted(together: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = torch.split(together, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def sent_as_one(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A list of the tensors; a loading process sends it as one tensor, where all are of one kind.

    PyTorch opens a file and a connection for each tensor that it sends, which takes longer than a small one's data.
    """
    kinds = {(type(tensor), tensor.dtype) for tensor in tensors}
    is_loading = get_worker_info() is not None
    return _SentAsOne(tensors) if is_loading and len(kinds) == 1 and Tensor in next(iter(kinds)) else list(tensors)
