"""What a process does with the memory that tensors free."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)
_OF_THE_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free for the next ones, and say whether it does.

    The activations of a batch are blocks of tens of megabytes. By itself glibc gets each of them anew from the kernel,
    which clears it page by page: a part of every forward on a CPU, on virtual machines up to half of it. Afterwards
    the process keeps the most that it ever needed. That is for a program to decide: camify's commands do it, its
    functions do not, and a script may call this before its work begins.

    Nothing changes with other C libraries, or where one of the environment variables of mallopt(3) for this is set
    (``MALLOC_MMAP_MAX_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
