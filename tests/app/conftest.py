"""A small legacy network and its conversion, with names that a page must not take for markup; pictures of odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.app.answers import Answers
from camify.app.networks import open_networks
from camify.boxes import BoxRule
from camify.evaluation.network import explained_network
from camify.preprocessing import Preprocessing
from camify.sources import Source
from camify.sources.demo_network import TinyVGG

SIZE = 96
NAMES = ["ant", "<b>bee</b>", "${1+1} {{2}}"]


@pytest.fixture(scope="session")
def networks():
    """A legacy network of three classes, and its conversion with a box rule and an object map."""
    torch.manual_seed(0)
    legacy = TinyVGG(3).eval()
    converted = camify.convert(legacy, head="direct", input_size=SIZE, seed=0).eval()
    nn.init.normal_(converted.classifier.weight)
    nn.init.normal_(converted.classifier.bias)
    converted.class_names, converted.preprocessing = list(NAMES), Preprocessing(SIZE)
    converted.object_weight = torch.randn(converted.num_features)
    converted.object_map = {"source": "boxes"}
    converted.box_rule = BoxRule("max", threshold=0.4237, kind="object", count=9, accuracy=0.5)
    converted.untrained, converted.license = (), "apache-2.0"
    return legacy, converted


@pytest.fixture(scope="session")
def folder(networks, tmp_path_factory):
    return networks[1].save_pretrained(tmp_path_factory.mktemp("saved") / "ants")


@pytest.fixture(scope="session")
def converted(folder):
    (network,) = open_networks([str(folder)])
    return network


@pytest.fixture(scope="session")
def legacy(networks):
    methods = ("gradcam", "gradcam++", "layercam", "reciprocam")
    return explained_network(Source(networks[0], "legacy", NAMES, (), Preprocessing(SIZE)), "legacy", methods)


def answers_of(model, methods=("cam",), names=None, **options):
    return Answers(explained_network(Source(model, "net", names, (), Preprocessing(SIZE)), "net", methods, **options))


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """Three times as wide as high, another color in each corner."""
    file = tmp_path_factory.mktemp("pictures") / "wide.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 180, 3), dtype=np.uint8)
    pixels[:30, :60], pixels[30:, 120:] = (250, 20, 20), (20, 20, 250)
    Image.fromarray(pixels).save(file)
    return file
