"""Fits in closed form by two processes, each with every second image, are those of one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import camify
from camify.conversion import cell_sums, row_sums
from camify.ranks import current, sample_keys
from tests.metrics.two_processes import in_two_processes, needs_fork

pytestmark = needs_fork
COUNT = 23


def network(seed=0):
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
    return camify.CAMNet(features, nn.Linear(6, 3)).eval().double()


def images():
    return 5 + torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def boxes():
    corners = torch.randint(0, 4, (COUNT, 2), generator=torch.Generator().manual_seed(2))
    return [torch.tensor([[x, y, x + 3.0, y + 4.0]])[: number % 4] for number, (x, y) in enumerate(corners.tolist())]


def batches(numbers, size):
    """Of uneven number and size in the two processes."""
    every, boxed = images(), boxes()
    for start in range(0, len(numbers), size):
        part = list(numbers[start : start + size])
        yield {
            "image": every[part],
            "label": torch.tensor([number % 3 for number in part]),
            "boxes": [boxed[number] for number in part],
        }


def plain(report):
    figures = {key: value for key, value in vars(report).items() if isinstance(value, int | float) and key != "seconds"}
    return {key: -9.0 if math.isnan(value) else float(value) for key, value in figures.items()}


@pytest.mark.parametrize("kept", [2048, 8])
def test_the_ridge_head(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(row_sums, "_KEPT", kept)

    def fit(ranks):
        net = network()
        own = range(ranks.rank, COUNT, ranks.world_size)
        report = camify.fit_head(net, batches(own, 5 - ranks.rank), labels=True, ridge="one_se", ranks=ranks)
        return {"weight": net.classifier.weight.data, "bias": net.classifier.bias.data, "report": plain(report)}

    alone = fit(current())
    for found in in_two_processes(lambda _: fit(current()), tmp_path):
        torch.testing.assert_close(found["weight"], alone["weight"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found["bias"], alone["bias"], rtol=1e-10, atol=1e-12)
        assert found["report"] == pytest.approx(alone["report"], rel=1e-8)


@pytest.mark.parametrize(("with_boxes", "kept"), [(None, 128), (True, 128), (True, 5)])
def test_the_object_map(tmp_path, monkeypatch, with_boxes, kept):
    monkeypatch.setattr(cell_sums, "_KEPT", kept)

    def fit(ranks):
        net = network()
        own = range(ranks.rank, COUNT, ranks.world_size)
        report = camify.fit_object_map(net, batches(own, 5 - ranks.rank), with_boxes, strength=2.0, ranks=ranks)
        return {"vector": net.object_weight, "source": report.source, "report": plain(report)}

    alone = fit(current())
    for found in in_two_processes(lambda _: fit(current()), tmp_path):
        torch.testing.assert_close(found["vector"], alone["vector"], rtol=1e-6, atol=1e-9)  # features as float32
        assert found["source"] == alone["source"]
        assert found["report"] == pytest.approx(alone["report"], rel=1e-5)


def test_what_cannot_be_fitted_is_said_in_both(tmp_path):
    def refusal(_):
        ranks, net = current(), network()
        nothing = [torch.zeros(0, 4)] * 4
        given = {"image": images()[:4], "boxes": nothing}
        with pytest.raises(camify.DataError) as caught:
            camify.fit_object_map(net, [given], True, ranks=ranks)
        return {"said": str(caught.value), "vector": net.object_weight is None}

    expected = {"said": "boxes: no image has a box or a mask. Give some, or leave boxes out.", "vector": True}
    assert in_two_processes(refusal, tmp_path) == [expected, expected]


def test_draws_are_those_of_splitmix64():
    """The first outputs of the generator with seed 0, as its authors' C code gives them."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    keys = sample_keys(torch.arange(4)).numpy()
    np.testing.assert_array_equal(keys, [(value >> 11) * 2.0**-53 for value in known])
