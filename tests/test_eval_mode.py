from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import camify
from camify.eval_mode import full_precision

_SETTINGS = [
    "", 'torch.set_float32_matmul_precision("high")', 'torch.set_float32_matmul_precision("medium")',
    "backends.cudnn.allow_tf32 = False", 'backends.fp32_precision = "tf32"',
    'backends.cuda.matmul.fp32_precision = "tf32"', 'backends.cudnn.conv.fp32_precision = "ieee"',
]  # fmt: skip
_READ = """
import json, os, sys, torch
from camify.eval_mode import full_precision
backends = torch.backends
def state():
    found = []
    for read in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32,
                 lambda: backends.cuda.matmul.fp32_precision, lambda: backends.cudnn.conv.fp32_precision,
                 lambda: backends.mkldnn.conv.fp32_precision, lambda: backends.mkldnn.matmul.fp32_precision):
        try:
            found.append(read())
        except RuntimeError:  # PyTorch refuses to read an older setting where a newer one says something else
            found.append("mixed")
    return found
number = int(sys.argv[1])
while number and os.fork():  # each setting mixes those of a process for good: each gets one of its own
    assert os.wait()[1] == 0
    number -= 1
exec(json.loads(sys.argv[2])[number])
before = state()
with full_precision():
    within = state()
assert state() == before, (number, before, state())
assert within[2:] == ["ieee"] * 4 and within[0] == "highest" and within[1] in (False, "mixed"), (number, within)
print(number, flush=True)
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="the newer settings are of torch 2.9")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_whatever_the_user_set_is_there_again():
    words = [str(len(_SETTINGS) - 1), json.dumps(_SETTINGS)]
    code = f"import sys; sys.path.insert(0, {str(Path(camify.__file__).parents[1])!r})\n{_READ}"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [str(number) for number in range(len(_SETTINGS))]


@pytest.mark.parametrize("work", ["convert", "inspect", "identity"])
def test_what_is_proven_runs_in_full_precision(work, monkeypatch):
    seen, forward = [], nn.Conv2d.forward

    def watched(layer, x):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return forward(layer, x)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model, images = camify.convert(net, input_size=32), torch.randn(2, 3, 32, 32)
    works = {
        "convert": lambda: camify.convert(net, input_size=32),
        "inspect": lambda: camify.inspect(net, input_size=32),
        "identity": lambda: model.identity_error(images),
    }
    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    torch.set_float32_matmul_precision("high")
    try:
        works[work]()
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen
    assert set(seen) == {("highest", False)}


def test_it_may_wrap_a_function():
    @full_precision()
    def doubled(x):
        """Twice x."""
        return 2 * x

    assert doubled(2) == 4
    assert doubled.__doc__ == "Twice x."
