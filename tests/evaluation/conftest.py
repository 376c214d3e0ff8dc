"""A small legacy network and its conversion; a small CAM network; pictures with boxes, and an evaluation of them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.conversion import Source
from camify.data import Preprocessing
from camify.evaluation import evaluate
from camify.evaluation.comparison import compare
from camify.evaluation.images import EvaluationImage
from camify.evaluation.network import explained_network
from camify.evaluation.timing import method_costs
from camify.model import CAMNet
from camify.sources.demo_network import TinyVGG

THREE = ["ant", "bee", "c|at"]
METHOD_NAMES = ("cam", "gradcam", "gradcam++", "layercam", "reciprocam")


@pytest.fixture(scope="session", autouse=True)
def _costs_of_one_run():
    """Costs are measured all the same, but not again and again for seconds; how often is tested by itself."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("comparison", "passes"):
            patch.setattr(f"camify.evaluation.{module}.method_costs", partial(method_costs, repeats=1))
        yield


@pytest.fixture(scope="session")
def networks():
    """A legacy network and its conversion, of three classes."""
    torch.manual_seed(0)
    legacy = TinyVGG(3).eval()
    return legacy, camify.convert(legacy, head="direct", input_size=96, seed=0).eval()


@pytest.fixture
def explained(networks):
    return explained_of(networks)


def explained_of(networks):
    preprocessing = Preprocessing(96)
    return [
        explained_network(Source(network, f"the {name}", THREE, (), preprocessing), name, METHOD_NAMES)
        for name, network in zip(("legacy", "converted"), networks, strict=True)
    ]


@pytest.fixture(scope="session")
def pictures():
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
        EvaluationImage(f"<b>{index}|</b>", image, box, () if box is None else ("bee",) * len(box))
        for index, (image, box) in enumerate(zip(pixels, boxes, strict=True))
    ]


@pytest.fixture(scope="session")
def compared(networks, pictures, tmp_path_factory):
    """The folder of one comparison, for tests that only read it."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare(explained_of(networks), pictures, out, title="A <script> & title", figures=2)


# ---------------------------------------------------------------- a CAM network and a labeled folder

NAMES = ["ant", "bee", "c|at", "dog", "elk", "fox", "gnu"]
SHOWN = ("fox", "c|at", "ant", "dog")
METHODS = ("cam", "gradcam++")
PREPROCESSING = Preprocessing(32)
SAMPLE = 5


@pytest.fixture(scope="session")
def net():
    torch.manual_seed(3)
    features = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4, padding=2), nn.ReLU())
    made = CAMNet(features, nn.Linear(12, len(NAMES))).eval()
    made.classifier.weight.data *= 20  # so that probabilities differ
    made.class_names, made.preprocessing = NAMES, PREPROCESSING.to_dict()
    return made


def picture(rng, box):
    """Noise, and something brighter within the box."""
    pixels = rng.integers(0, 120, (40, 50, 3))
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] += 120
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Four of the classes, three pictures each, one of them without a box of its class, one with two."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    lines = ["image,x0,y0,x1,y1,label"]
    for name in SHOWN:
        (folder / "val" / name).mkdir(parents=True)
        for index in range(3):
            x, y = rng.integers(0, 30), rng.integers(0, 22)
            box = (x, y, x + rng.integers(10, 20), y + rng.integers(8, 18))
            picture(rng, box).save(folder / "val" / name / f"{index}.png")
            if (name, index) != ("dog", 1):
                lines.append(f"val/{name}/{index}.png,{','.join(map(str, box))},{name}")
    lines += ["val/ant/0.png,0,0,9,9,ant", "val/dog/1.png,2,2,30,30,fox", "train/ant/0.png,1,1,5,5,ant"]
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def found(net, root):
    """One evaluation, for tests that only read it."""
    torch.manual_seed(0)
    return evaluate(net, root, methods=METHODS, batch_size=5, faithfulness=SAMPLE, seed=7)
