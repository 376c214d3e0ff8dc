from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import camify
from camify.eval_mode import full_precision
from camify.methods import METHODS

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


@contextmanager
def _default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


_STATES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16), "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad, "float64 by default": lambda: _default_dtype(torch.float64),
    "bfloat16 by default": lambda: _default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),  # on which every number is lost
}  # fmt: skip


def _legacy(flat=True):
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(8 * 8 * 8, 6), nn.ReLU(), nn.Linear(6, 3)]
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, *(head if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])).eval()


def _actions(folder):
    legacy, native, images = _legacy(), _legacy(flat=False), torch.rand(6, 3, 32, 32)
    model = camify.convert(legacy, head="direct", input_size=32, seed=0)
    labels = torch.arange(6) % 3
    yield "convert", lambda: camify.convert(native, head="gap", input_size=32, seed=0)
    yield "recast", lambda: camify.convert(legacy, head="recast", input_size=32)
    yield "inspect", lambda: camify.inspect(native, input_size=32).verdict
    yield "fit_head", lambda: camify.fit_head(model, images, labels=labels) and model
    yield "fit_object_map", lambda: camify.fit_object_map(model, images) and model

    def stored():
        camify.convert(native, input_size=32, seed=0).save_pretrained(folder / "stored")
        return camify.load(folder / "stored")

    yield "save_pretrained, load", stored
    if torch.__version__ >= (2, 10):
        yield "export", lambda: camify.export(model, folder / "model.onnx", overwrite=True).error < 1e-4
    yield "resolve", lambda: camify.convert("camify/tiny_vgg@demo", head="recast")


def _answer(result):
    return result(torch.ones(1, 3, 96, 96)).detach() if isinstance(result, nn.Module) else result


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return {name: _answer(action()) for name, action in _actions(tmp_path_factory.mktemp("expected"))}


def _often(state):
    """Those whose numbers show a lapse are of the default run."""
    return state in ("autocast", "another device by default", "float64 by default")


@pytest.mark.parametrize(
    "state", [state if _often(state) else pytest.param(state, marks=pytest.mark.slow) for state in _STATES]
)
def test_what_the_caller_set_in_pytorch_changes_nothing(state, expected, tmp_path):
    for name, action in _actions(tmp_path):
        if state == "autocast" and name.startswith("fit"):  # the forwards of its images are the caller's own
            continue
        with _STATES[state]():
            result = action()
        if isinstance(result, nn.Module):
            assert all(p.requires_grad and not p.is_inference() for p in result.parameters()), name  # it can be trained
        answer = _answer(result)
        if isinstance(answer, torch.Tensor):
            torch.testing.assert_close(answer, expected[name], msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert answer == expected[name], name


@pytest.mark.parametrize(
    ("method", "state"),
    [
        (method, state) if _often(state) else pytest.param(method, state, marks=pytest.mark.slow)
        for method in METHODS
        for state in _STATES
        if method not in ("rise", "sscam") and state != "autocast"
    ],
)
def test_neither_does_it_change_a_map(method, state):
    images = torch.rand(2, 3, 32, 32)
    for network in (_legacy(flat=False), camify.convert(_legacy(), head="direct", input_size=32, seed=0)):
        expected = camify.explain(network, images, method=method, normalize=None)
        with _STATES[state]():
            maps = camify.explain(network, images, method=method, normalize=None)
        assert not maps.is_inference()
        torch.testing.assert_close(maps, expected)


def test_under_autocast_the_network_is_cut_as_without():
    network, images = _legacy(flat=False), torch.rand(2, 3, 32, 32)
    expected = camify.explain(network, images, method="cam", normalize=None, size=None)
    copied = copy.deepcopy(network)  # which was not cut yet
    with torch.autocast("cpu", torch.bfloat16):  # of the forward, which the caller wants so
        maps = camify.explain(copied, images, method="cam", normalize=None, size=None)
    assert 0 < float((maps - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("method", ["gradcam", "fullgrad", "shapleycam"])
def test_a_network_made_in_inference_mode_is_refused_where_gradients_are_needed(method):
    with torch.inference_mode():
        network = _legacy()
    assert camify.convert(network, input_size=32)(torch.rand(1, 3, 32, 32)).requires_grad
    with pytest.raises(camify.ConversionError, match=r"made inside torch\.inference_mode"):
        camify.explain(network, torch.rand(1, 3, 32, 32), method=method)
    maps = camify.explain(copy.deepcopy(network), torch.rand(1, 3, 32, 32), method=method)
    assert maps.isfinite().all()
