"""What becomes of freed memory: counted by the kernel, in processes of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

import camify
import camify.cli
from camify import memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
_BLOCKS = """
import json, os, resource, sys
import camify, torch
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for program, environment in (("command", {}), ("script", {}), ("command", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
    if not os.fork():  # torch is imported once
        os.environ.update(environment)
        kept = program == "command" and camify.keep_freed_memory()
        first = pages()
        print(json.dumps([kept, sum(pages() for _ in range(40)) / 40 / first]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@needs_glibc
def test_blocks_that_were_freed_are_used_again_and_what_the_user_has_set_stays():
    """In a command, in a script, in a command of somebody with settings: whether freed memory is kept, and the share
    of blocks of 64 MiB, one after the other, that the kernel gives."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", _BLOCKS], env=known, capture_output=True, text=True, check=True)
    command, script, users = (json.loads(line) for line in done.stdout.splitlines())
    assert command[0]
    assert command[1] < 0.5  # the first ones lie a little too close for glibc to align another one there
    assert not script[0]
    assert script[1] > 0.9
    assert not users[0]
    assert users[1] > 0.9


def test_other_systems_are_left_alone(monkeypatch):
    for name in memory._OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # as of musl
    assert camify.keep_freed_memory() is False
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # not asked
    monkeypatch.setattr(sys, "platform", "darwin")
    assert camify.keep_freed_memory() is False


@pytest.mark.parametrize(("given", "count"), [(None, 1), (["--help"], 0)])
def test_a_command_of_its_own_process_alone_decides_for_it(given, count, monkeypatch):
    calls = []
    monkeypatch.setattr(camify.cli, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(camify.cli, "import_module", lambda *_: type("Verbs", (), {"main": staticmethod(calls.append)}))
    camify.cli.main(given)
    assert calls == ["kept"] * count + [given]
