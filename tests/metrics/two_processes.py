"""Two processes that share a metric's states, as in distributed validation."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress

import cv2
import pytest
import torch

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def in_two_processes(work, folder):
    """What ``work(part)`` gives in each of two processes: one has the first five images, the other the rest."""
    context = multiprocessing.get_context("fork")  # spawn would import torch and torchmetrics twice: 25 s
    ended = context.Barrier(2)
    time.sleep(0.05)  # a thread that ends holds a lock of OpenCV's: 17 of 1,500 processes forked at once never got it
    processes = [context.Process(target=_run, args=(work, rank, folder, ended)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()  # only if it hangs
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _run(work, rank, folder, ended):
    faulthandler.dump_traceback_later(45, file=sys.__stderr__)  # where it hangs
    torch.set_num_threads(1)  # the parent's threads are not there
    cv2.setNumThreads(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(slice(0, 5) if rank == 0 else slice(5, None)), folder / f"{rank}.pt")
    with suppress(threading.BrokenBarrierError):  # the other one is gone
        ended.wait(5)  # it may still read what this one sent
    os._exit(0)  # to tear the group down can take for ever in a forked process
