"""A network's own normalization is taken off, and what it says becomes the preprocessing."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from camify.preprocessing import NORMALIZATIONS, Preprocessing
from camify.sources.layer_graph import LayerGraph
from camify.sources.normalizing_prefix import (
    fold_normalization,
    preprocessing_of,
    take_off_normalization,
    take_off_reversal,
)

PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
IMAGENET = NORMALIZATIONS["imagenet"]


def network(*steps, channels=3):
    """Steps before a convolution whose padding shows whether the values in front of it are the same."""
    torch.manual_seed(3)
    graph = LayerGraph("test", (2, channels, 8, 8))
    node = graph.image
    for step in steps:
        node = step(graph, node)
    node = graph.layer("conv", nn.Conv2d(channels, 4, 3, padding=1), node)
    return graph.network(graph.call(torch.mean, node, (2, 3)))


def call(function, *constants, first=True):
    def step(graph, node):
        values = [
            graph.tensor(f"c{len(graph.values)}", c, trainable=False) if isinstance(c, torch.Tensor) else c
            for c in constants
        ]
        return graph.call(function, node, *values) if first else graph.call(function, *values, node)

    return step


def per_channel(*values):
    return torch.tensor(values).reshape(1, -1, 1, 1)


REVERSE = call(torch.flip, [1])
MEAN_255 = [255 * value for value in IMAGENET["mean"]]
CASES = {
    "x / 255": ([call(operator.truediv, 255)], 255, "0..1"),
    "x * (1/127.5) - 1": ([call(operator.mul, 1 / 127.5), call(operator.sub, 1)], 255, "tf"),
    "x / 127.5, + -1": ([call(torch.div, 127.5), call(torch.add, -1.0)], 255, "tf"),
    "2 x - 1, constant first": ([call(operator.mul, 2, first=False), call(torch.add, -1, first=False)], 1, "tf"),
    "1 - (1 - 2x + 1)": (
        [call(operator.mul, 2), call(operator.sub, 1, first=False), call(operator.neg)],
        1,
        "tf",
    ),
    "(x - mean) / std of 0..1": (
        [
            call(operator.sub, per_channel(*IMAGENET["mean"])),
            call(operator.truediv, per_channel(*IMAGENET["std"])[0]),
        ],
        1,
        "imagenet",
    ),
    "x / 255, - mean, / std": (
        [
            call(operator.truediv, 255.0),
            call(operator.sub, per_channel(*IMAGENET["mean"])),
            call(operator.truediv, per_channel(*IMAGENET["std"])),
        ],
        255,
        "imagenet",
    ),
    "reversed, - mean of BGR": ([REVERSE, call(operator.sub, per_channel(103.939, 116.779, 123.68))], 255, "caffe"),
    "- mean of RGB, reversed": ([call(operator.sub, per_channel(123.68, 116.779, 103.939)), REVERSE], 255, "caffe"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_stands_before_the_first_layer_becomes_the_preprocessing(name):
    steps, largest, normalization = CASES[name]
    whole = network(*steps)
    expected = whole(PICTURES * largest)
    rest, preprocessing, sentence = fold_normalization(whole, 3, 8)
    assert f"0..{largest}" in sentence
    stated = Preprocessing.stated(normalization, Preprocessing(8))
    assert preprocessing.input_format == stated.input_format
    assert preprocessing.size == 8
    assert preprocessing.mean == pytest.approx(stated.mean, abs=1e-6)
    assert preprocessing.std == pytest.approx(stated.std, rel=1e-6)
    images = PICTURES.flip(1) if preprocessing.input_format == "bgr" else PICTURES
    mean, std = per_channel(*preprocessing.mean), per_channel(*preprocessing.std)
    torch.testing.assert_close(
        rest((images - mean) / std), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max())
    )
    assert [node.op for node in rest.graph.nodes] == ["placeholder", "call_module", "call_function", "output"]
    torch.testing.assert_close(whole(PICTURES * largest), expected)  # left as it was


def test_scale_and_shift_are_those_of_the_steps():
    whole = network(call(operator.mul, 3), call(operator.add, per_channel(1.0, 2.0, 4.0)), call(operator.truediv, 2))
    rest, scale, shift = take_off_normalization(whole, 3)
    assert scale.tolist() == [1.5] * 3
    assert shift.tolist() == [0.5, 1.0, 2.0]
    torch.testing.assert_close(rest(PICTURES * 1.5 + per_channel(0.5, 1.0, 2.0)), whole(PICTURES))
    assert isinstance(rest, fx.GraphModule)
    assert not rest.training


def test_a_network_that_begins_with_a_layer_or_branches_is_left_as_it_is():
    def branches(graph, node):
        half = graph.call(operator.mul, node, 0.5)
        return graph.call(operator.add, half, node)

    for steps in ([], [branches], [call(operator.truediv, 2, first=False)]):
        whole = network(*steps)
        rest, scale, shift = take_off_normalization(whole, 3)
        assert rest is whole
        assert (scale.tolist(), shift.tolist()) == ([1.0] * 3, [0.0] * 3)
        assert fold_normalization(whole, 3, 8) == (whole, None, "")


def test_what_differs_over_the_image_or_learns_stays():
    def batch_norm(graph, node):
        return graph.layer("bn", nn.BatchNorm2d(3), node)

    for step in (batch_norm, call(operator.sub, torch.rand(1, 3, 8, 8)), call(operator.add, torch.rand(8))):
        kept = network(call(operator.truediv, 255), step)
        rest, scale, _ = take_off_normalization(kept, 3)
        assert scale.tolist() == pytest.approx([1 / 255] * 3)
        assert len(rest.graph.nodes) == len(kept.graph.nodes) - 1


def test_two_reversals_are_none():
    whole = network(REVERSE, REVERSE)
    rest, scale, _ = take_off_normalization(whole, 3)
    assert take_off_reversal(rest) == (rest, False)
    assert scale.tolist() == [1.0] * 3
    torch.testing.assert_close(rest(PICTURES), whole(PICTURES))
    assert take_off_reversal(network(REVERSE))[1]


@pytest.mark.parametrize(
    ("scale", "shift", "range_", "mean"),
    [(1 / 255, 0, "0..255", 0), (1 / 128, -1, "0..255", 128 / 255), (1, -0.5, "0..1", 0.5), (4, -2, "0..1", 0.5)],
)
def test_the_range_is_the_one_that_makes_sense(scale, shift, range_, mean):
    one = torch.ones(1, dtype=torch.float64)
    preprocessing, sentence = preprocessing_of(scale * one, shift * one, (8, 9))
    assert f"images in {range_})" in sentence
    assert preprocessing.mean == pytest.approx((mean,))
    assert preprocessing.std == pytest.approx((1 / scale / (255 if range_ == "0..255" else 1),))
    assert preprocessing.input_format == "grayscale"


def test_a_normalization_that_no_preprocessing_says_stays_in_the_network():
    whole = network(call(operator.truediv, 256.0), channels=2)  # a deviation above 1
    rest, preprocessing, sentence = fold_normalization(whole, 2, 8)
    assert rest is whole
    assert preprocessing.std == (1 / 255, 1 / 255)
    assert "0..255" in sentence
    assert fold_normalization(network(call(operator.truediv, 10_000.0)), 3, 8)[1:] == (None, "")
