"""RISE: by hand in float64, mask by mask; its masks as the authors cut them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camify
from camify import explain, methods

TARGETS = [2, 0]
OPTIONS = {"samples": 9, "cells": 3, "seed": 7}


def network(classes=4):
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)]
    net = nn.Sequential(*layers).double().eval()
    nn.init.normal_(net[-1].weight, std=2)
    return net


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 8, 13, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def raw(net, images, targets=TARGETS, **options):
    return explain(net, images, method="rise", targets=targets, normalize=None, size=None, **{**OPTIONS, **options})


def masks_by_hand(size, samples, cells, probability, seed):
    """One after the other, pixel by pixel: the value between the centers of the four nearest cells."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(samples, cells, cells, generator=generator) < probability
    sides = [math.ceil(side / cells) for side in size]
    shifts = [torch.randint(side, (samples,), generator=generator).tolist() for side in sides]
    masks = torch.zeros(samples, *size, dtype=torch.float64)
    for index in range(samples):
        for y in range(size[0]):
            for x in range(size[1]):
                for row, by_row in near((y + shifts[0][index] + 0.5) * cells / (sides[0] * (cells + 1)), cells):
                    for column, weight in near((x + shifts[1][index] + 0.5) * cells / (sides[1] * (cells + 1)), cells):
                        masks[index, y, x] += by_row * weight * float(grids[index, row, column])
    return masks


def near(place, cells):
    place = min(max(place - 0.5, 0.0), cells - 1.0)
    first = min(int(place), cells - 1)
    return [(first, 1 - place + first), (min(first + 1, cells - 1), place - first)]


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_by_hand(images, probability):
    net, masks = network(), masks_by_hand((8, 13), 9, 3, probability, 7)
    maps = []
    for image, target in zip(images, TARGETS, strict=True):
        total = torch.zeros(8, 13, dtype=torch.float64)
        for mask in masks:
            total += net((image * mask)[None])[0].softmax(0)[target].detach() * mask
        maps.append(total / 9 / probability)
    torch.testing.assert_close(raw(net, images, probability=probability), torch.stack(maps), rtol=1e-5, atol=1e-6)


def test_masks_do_not_depend_on_the_chunk_and_lie_in_0_to_1():
    made = [methods.RISE(network(), samples=50, cells=5, chunk=chunk) for chunk in (50, 7)]
    whole, parts = (torch.cat(list(item.masks((31, 64)))) for item in made)
    assert [len(part) for part in made[1].masks((31, 64))] == [7] * 7 + [1]
    assert torch.equal(whole, parts)
    assert whole.shape == (50, 31, 64)
    assert (float(whole.min()), float(whole.max())) == pytest.approx((0.0, 1.0))


def test_a_share_of_the_image_is_shown():
    masks = torch.cat(list(methods.RISE(network(), samples=2000, cells=4, probability=0.3).masks((16, 16))))
    torch.testing.assert_close(masks.mean(0), torch.full((16, 16), 0.3), rtol=0, atol=0.05)


def test_all_classes_from_the_same_forwards(images):
    net, rows = network(), []
    methods.RISE(net, **OPTIONS)(images)
    handle = net[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    both = raw(net, images, [[2, 1, 3], [0, 3, 3]])
    handle.remove()
    assert both.shape == (2, 3, 8, 13)
    assert sum(rows) == 2 + 2 * 9
    torch.testing.assert_close(both[:, 0], raw(net, images))


def test_the_probabilities_are_the_tasks(images):
    """The two classes of one logit: their probabilities add up to 1, and so their maps to the masks' mean."""
    net, masks = network(1), masks_by_hand((8, 13), 9, 3, 0.5, 7)
    both = raw(net, images, [[0, 1], [0, 1]])
    torch.testing.assert_close(both.sum(1), (masks.mean(0) / 0.5).expand(2, -1, -1), rtol=1e-5, atol=1e-6)


def test_a_map_lies_where_the_evidence_is():
    net = network()
    with torch.no_grad():  # class 1: a bright image
        net[0].weight.fill_(1 / 27)
        net[-1].weight.zero_()
        net[-1].weight[1] = 2.0
    image = torch.zeros(1, 3, 28, 28, dtype=torch.float64)
    image[..., 4:12, 16:24] = 3.0
    heat = explain(net, image, method="rise", targets=1, cells=7, samples=1000)[0]
    assert float(heat[4:12, 16:24].mean()) > 1.5 * float(heat.mean())


def test_the_seed_is_all_that_chance_has(images):
    net, state = network(), torch.get_rng_state()
    first = raw(net, images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(raw(net, images), first)
    assert not torch.allclose(raw(net, images, seed=1), first)
    torch.testing.assert_close(raw(net, images[1], TARGETS[1])[0], first[1])  # whatever the batch
    torch.testing.assert_close(raw(net, images, chunk=4), first)


def test_reduced_precision_is_near(images):
    full, half = (raw(network().float(), images.float(), precision=precision) for precision in ("fp32", "bf16"))
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=0, atol=0.05)


def test_a_probability_that_no_mask_changes_has_a_constant_map(images):
    net = network()
    nn.init.zeros_(net[0].weight)
    expected = F.softmax(net(images), 1)[range(2), TARGETS].detach()
    torch.testing.assert_close(raw(net, images), expected[:, None, None].expand(2, 8, 13))


@pytest.mark.parametrize("targets", [TARGETS, [[0, 1], [0, 1]]])
def test_masked_images_that_give_nan_are_an_error(images, monkeypatch, targets):
    answer = methods.ForwardPass.network
    monkeypatch.setattr(methods.ForwardPass, "network", lambda *given, **options: answer(*given, **options) * torch.nan)
    with pytest.raises(camify.DataError, match="RISE: the map of image 0 of the batch is not finite"):
        raw(network(), images, targets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "RISE: samples=0"),
        ({"cells": 1.5}, "RISE: cells=1.5"),
        ({"chunk": True}, "RISE: chunk=True"),
        ({"probability": 1}, "RISE: probability=1 must lie between 0 and 1"),
        ({"precision": "int4"}, "Choose one of fp32, bf16, fp16"),
        ({"layer": "0"}, "RISE looks at no layer"),
    ],
)
def test_wrong_options_are_refused(images, options, words):
    with pytest.raises(camify.ConfigError, match=words):
        raw(network(), images, **options)
