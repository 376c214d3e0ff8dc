"""A small legacy network, its conversion, and pictures with boxes."""

from __future__ import annotations

import pytest
import torch

import camify
from camify.data import Preprocessing
from camify.explaining.compare import compare
from camify.explaining.contenders import contender
from camify.explaining.subjects import Subject
from camify.sources.demo_network import TinyVGG
from camify.surgery import Source

NAMES = ["ant", "bee", "c|at"]
METHOD_NAMES = ("cam", "gradcam", "gradcam++", "layercam", "reciprocam")


@pytest.fixture(scope="session")
def networks():
    """A legacy network and its conversion, of three classes."""
    torch.manual_seed(0)
    legacy = TinyVGG(3).eval()
    return legacy, camify.convert(legacy, head="direct", input_size=96, seed=0).eval()


@pytest.fixture
def contenders(networks):
    return contenders_of(networks)


def contenders_of(networks):
    preprocessing = Preprocessing(96)
    return [
        contender(Source(network, f"the {name}", NAMES, (), preprocessing), name, METHOD_NAMES)
        for name, network in zip(("legacy", "converted"), networks, strict=True)
    ]


@pytest.fixture(scope="session")
def subjects():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 255, (5, 3, 60, 80), dtype=torch.uint8, generator=generator)
    boxes = [
        torch.tensor([[0.1, 0.1, 0.6, 0.7]]),
        torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]]),
        torch.tensor([[0.7, 0.7, 0.85, 0.9]]),
        None,
        torch.tensor([[0.0, 0.0, 0.5, 1.0]]),
    ]
    return [
        Subject(f"<b>{index}|</b>", image, box, () if box is None else ("bee",) * len(box))
        for index, (image, box) in enumerate(zip(pixels, boxes, strict=True))
    ]


@pytest.fixture(scope="session")
def compared(networks, subjects, tmp_path_factory):
    """The folder of one comparison, for tests that only read it."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare(contenders_of(networks), subjects, out, title="A <script> & title", figures=2)
