"""The programs of docs/snippets run an exported file, and say what the network says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.web.runtime import RUNTIME_VERSION
from tests.browser import npm_packages
from tests.documents import ROOT
from tests.exporters.conftest import network

SNIPPETS = ROOT / "docs" / "snippets"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """An exported file, a picture, and what the programs have to say of it."""
    place = tmp_path_factory.mktemp("snippets")
    net = network()
    camify.export(net, place / "model.onnx", preprocess=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)  # of the network's size
    Image.fromarray(pixels).save(place / "picture.ppm")
    mean, std = torch.tensor(net.preprocessing.mean), torch.tensor(net.preprocessing.std)
    images = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        probabilities = net(images).softmax(1)[0]
        maps = net.forward_with_maps(images)[1]
    top = int(probabilities.argmax())
    lines = [f"class {top}, probability {probabilities[top]:.4f}", f"maps {' x '.join(map(str, maps.shape))}"]
    return place, lines, net.class_names[top]


def said(command, place):
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    arguments = [str(place / "model.onnx"), str(place / "picture.ppm")]
    result = subprocess.run([*command, *arguments], capture_output=True, encoding="utf-8", env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_python(example):
    place, lines, name = example
    assert said([sys.executable, str(SNIPPETS / "classify.py")], place) == [*lines, f"name {name}"]


@pytest.mark.slow
def test_javascript(example, request, tmp_path):
    place, lines, _ = example
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    packages = npm_packages(request.config.cache.mkdir(f"onnxruntime-web-{RUNTIME_VERSION}"))
    (tmp_path / "node_modules").symlink_to(packages.resolve())
    script = shutil.copy(SNIPPETS / "classify.mjs", tmp_path)
    assert said(["node", script], place) == lines


@pytest.mark.slow
def test_cpp(example, tmp_path):
    place, lines, _ = example
    compiler, home = shutil.which("g++") or shutil.which("clang++"), os.environ.get("ONNXRUNTIME_HOME")
    if compiler is None or home is None:
        pytest.skip("needs a C++ compiler, and ONNXRUNTIME_HOME: a folder with onnxruntime's include/ and lib/")
    include = next(Path(home, "include").rglob("onnxruntime_cxx_api.h")).parent
    options = ["-std=c++17", "-Wall", "-Wextra", f"-I{include}", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib"]
    program = tmp_path / "classify"
    command = [compiler, *options, str(SNIPPETS / "classify.cpp"), "-lonnxruntime", "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    assert said([str(program)], place) == lines
    (place / "cut.ppm").write_bytes((place / "picture.ppm").read_bytes()[:-1])
    broken = subprocess.run(
        [str(program), str(place / "model.onnx"), str(place / "cut.ppm")], capture_output=True, text=True
    )
    assert (broken.returncode, broken.stderr.strip()) == (1, f"{place / 'cut.ppm'}: ends too early")
