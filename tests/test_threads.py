"""Several threads, as a server has them, explain and convert at once; others run their networks meanwhile."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from torch import nn

import camify

METHODS = ["gradcam", "hirescam", "layercam", "eigencam", "fullgrad", "shapleycam", "scorecam"]


class _Flattens(nn.Module):
    def __init__(self, features=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, features, 3, 2, 1), nn.ReLU(), nn.Conv2d(features, features, 3, 2, 1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(features * 64, 8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, x):
        return self.head(self.body(x).relu() * self.scale)


class _DependsOnValues(_Flattens):
    """torch.fx cannot follow it."""

    def forward(self, x):
        return super().forward(x if float(x.sum()) < 1e9 else x * 2)


@pytest.fixture(params=[_Flattens, _DependsOnValues])
def network(request):
    return request.param().eval()


def test_threads_explain_one_network_as_one_does(network):
    images, calls = torch.rand(2, 3, 32, 32), []
    alone = copy.deepcopy(network)
    expected = {name: camify.explain(alone, images, method=name, normalize=None) for name in METHODS}
    network.body[0].register_forward_hook(lambda *_: calls.append(1))
    network.train()
    network.head.eval()
    jobs = METHODS * 3
    with ThreadPoolExecutor(8) as pool:
        heats = list(pool.map(lambda name: camify.explain(network, images, method=name, normalize=None), jobs))
    for name, heat in zip(jobs, heats, strict=True):
        torch.testing.assert_close(heat, expected[name], rtol=1e-3, atol=1e-4)
    assert network.training
    assert not network.head.training
    calls.clear()
    network(images)
    assert calls == [1]  # the user's hook is still there, once


def test_threads_convert_at_once(network):
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda seed: camify.convert(network, input_size=32, seed=seed), [0] * 12))
    images = torch.rand(2, 3, 32, 32)
    for model in models:
        torch.testing.assert_close(model(images), models[0](images))


class _BesideOthers(nn.Module):
    """Each of its forwards starts a thread that runs another network, or itself, to the end."""

    def __init__(self, network, run):
        super().__init__()
        self.network, self._run = network, run

    def forward(self, x):
        if self._run is not None:
            thread = Thread(target=self._run)
            thread.start()
            thread.join()
        return self.network(x)


def test_the_forwards_of_others_go_on_while_a_network_is_looked_at(network):
    images, answers = torch.rand(2, 3, 32, 32), []
    other = _Flattens().eval()
    with torch.no_grad():
        expected = other(images)

    def run():
        with torch.no_grad():
            answers.append(other(images))

    beside = _BesideOthers(network, run).eval()
    camify.inspect(beside, input_size=32)
    camify.explain(beside, images, method="gradcam", normalize=None)
    assert answers  # of forwards that ran while torch.fx had every module's call
    for answer in answers:
        torch.testing.assert_close(answer, expected)


def test_so_do_those_of_the_same_network():
    images, answers = torch.rand(2, 3, 32, 32), []
    network = _DependsOnValues().eval()
    with torch.no_grad():
        expected = network(images)

    def run():
        beside._run = None  # one at a time
        with torch.no_grad():
            answers.append(beside(images))
        beside._run = run

    beside = _BesideOthers(network, run).eval()
    heat = camify.explain(beside, images, method="gradcam", normalize=None)
    torch.testing.assert_close(heat, camify.explain(network, images, method="gradcam", normalize=None))
    assert len(answers) > 2
    for answer in answers:
        torch.testing.assert_close(answer, expected)
