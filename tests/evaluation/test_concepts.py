"""camify concepts, from arguments to files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.evaluation.images import image_files
from camify.methods import factorize
from camify.model import CAMNet


def made_network(channels=3):
    torch.manual_seed(5)
    layers = [nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    net = CAMNet(nn.Sequential(*layers), nn.Linear(8, 3)).eval()
    names = ("ant", "bee", "c|at")
    mean = (0.5,) * channels
    net.class_names, net.preprocessing = list(names), Preprocessing((24, 32), mean, mean)
    return net


@pytest.fixture
def folder(tmp_path):
    return made_network().save_pretrained(tmp_path / "model")


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(2)
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name, (width, height) in {"a.png": (64, 48), "b.jpg": (30, 90), "more/a.png": (200, 30)}.items():
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def refused(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 2
    return capsys.readouterr().err


def test_what_is_written_follows_from_the_factors(folder, photos, tmp_path, capsys):
    out = tmp_path / "out"
    main(["concepts", str(photos), "--model", str(folder), "--concepts", "3", "--out", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    net, files = camify.load(folder), image_files([photos])
    found = factorize(net, [str(path) for path in files], 3)
    document = json.loads((out / "concepts.json").read_text())
    assert [entry["image"] for entry in document["images"]] == [str(path) for path in files]
    assert [entry["size"] for entry in document["images"]] == [[48, 64], [90, 30], [30, 200]]
    peaks = np.array([entry["peaks"] for entry in document["images"]])
    np.testing.assert_allclose(peaks, found.maps_NPhw.amax((2, 3)), atol=1e-5)
    assert document["relative_error"] == pytest.approx(found.relative_error, abs=1e-5)
    assert (document["layer"], document["seed"], document["task"]) == (found.layer, 0, "multiclass")
    for p, entry in enumerate(document["concepts"]):
        assert (entry["concept"], entry["share"]) == (p + 1, pytest.approx(float(found.shares_P[p]), abs=1e-5))
        best = entry["classes"][0]
        assert best["index"] == int(found.logits_PK[p].argmax())
        assert best["class"] == net.class_names[best["index"]]
        assert best["probability"] == pytest.approx(float(found.probabilities_PK[p].max()), abs=1e-4)
        assert f"Concept {p + 1} ({entry['color']}, {entry['share']:.0%}): {best['class']}" in said
    with Image.open(out / "concepts.png") as picture:
        assert picture.width > 400
    assert sorted(path.name for path in out.iterdir()) == ["concepts.json", "concepts.png"]


def test_json_alone_one_image_a_layer_and_gray(photos, tmp_path, capsys):
    gray = made_network(channels=1).save_pretrained(tmp_path / "gray")
    words = ["--model", gray, "--layer", "features.1", "--concepts", 2, "--out", tmp_path / "out", "--json"]
    main([str(word) for word in ["concepts", photos / "a.png", *words]])
    output = capsys.readouterr().out
    assert json.loads(output) == json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert json.loads(output)["layer"] == "features.1"
    main([str(word) for word in ["concepts", photos, *words[:-1], "--quiet", "--overwrite", "true"]])
    assert capsys.readouterr().out == ""
    assert len(json.loads((tmp_path / "out" / "concepts.json").read_text())["images"]) == 3


def test_of_many_images_some_are_taken_and_own_output_is_no_input(folder, photos, tmp_path, capsys):
    out = photos / "out"
    words = ["concepts", photos, "--model", folder, "--limit", 2, "--out", out]
    main([str(word) for word in words])
    assert "2 of 3 images, evenly spread" in " ".join(capsys.readouterr().out.split())
    main([str(word) for word in [*words[:2], *words[2:4], "--out", tmp_path / "two"]])
    assert len(json.loads((tmp_path / "two" / "concepts.json").read_text())["images"]) == 3  # not concepts.png


def test_what_cannot_be_is_said(folder, photos, tmp_path, capsys):
    words = ["concepts", photos, "--model", folder, "--out"]
    assert "concepts=8: choose 1 to 7" in refused(capsys, *words, tmp_path / "no", "--concepts", 8)
    assert "no such module" in refused(capsys, *words, tmp_path / "no", "--layer", "nowhere")
    assert "which camify did not write" in refused(capsys, *words, photos / "more")
    assert not (tmp_path / "no").exists()
    main([str(word) for word in [*words, tmp_path / "out"]])
    capsys.readouterr()
    assert "--overwrite true" in refused(capsys, *words, tmp_path / "out")
    net = made_network()
    net.features[2].bias.data -= 1e6
    dead = net.save_pretrained(tmp_path / "dead")
    error = refused(capsys, "concepts", photos, "--model", dead, "--out", tmp_path / "no")
    assert "no activation of the images is positive" in error
    (photos / "broken.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in [*words, tmp_path / "some"]])
    assert left.value.code == 1
    assert "1 could not be read" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "some" / "concepts.json").read_text())["images"]) == 3
    assert "No image could be read" in refused(capsys, words[0], photos / "broken.png", *words[2:], tmp_path / "no")
