"""Networks of one channel and inputs that are not square go through the whole command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli.commands import main as camify_main
from camify.cli.option_types import Sides
from camify.cli.train import main

pytestmark = pytest.mark.filterwarnings("ignore")  # the command lines set their own filters


@pytest.fixture(autouse=True)
def _no_run_folder(monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 256, (40, 48), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    return tmp_path / "data"


def fit(data, out, model, *options):
    main([
        "fit", "--model.model", str(model), "--data", "ImageFolderDataModule", "--data.init_args.root", str(data),
        "--data.init_args.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(out), "--overlays.num_images", "2", *options,
    ])  # fmt: skip
    return camify.load(out)


@pytest.mark.slow
def test_a_grayscale_checkpoint_is_trained_and_explained(data, tmp_path):
    gray, run = tmp_path / "gray", tmp_path / "run"
    camify_main([
        "convert", "camify/tiny_vgg", str(gray), "--head", "direct", "--input_size", "96",
        "--input_format", "grayscale",
    ])  # fmt: skip
    net = fit(data, run, gray)
    assert net.preprocessing.input_format == "grayscale"
    assert net.preprocessing.mean == camify.load(gray).preprocessing.mean
    assert (run / "report.html").is_file()
    camify_main(["explain", str(data / "val"), "--model", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"])
    own = fit(data, tmp_path / "own", gray, "--data.init_args.mean", "[0.25]", "--data.init_args.std", "[0.5]",
              "--data.init_args.override_preprocessing", "true")  # fmt: skip
    assert (own.preprocessing.mean, own.preprocessing.std) == ((0.25,), (0.5,))


@pytest.mark.slow
def test_rectangles(data, tmp_path):
    folder = tmp_path / "net"
    camify_main(["convert", "torchvision/squeezenet1_1@none", str(folder), "--head", "direct", "--input_size", "64x96"])
    assert camify.load(folder).preprocessing.size == (64, 96)
    net = fit(data, tmp_path / "run", folder, "--data.init_args.image_size", "[64,96]", "--model.input_size", "[64,96]")
    assert net.preprocessing.size == (64, 96)
    assert camify.explain(net, Image.open(data / "val" / "a" / "0.png")).shape == (1, 64, 96)
    assert net(torch.randn(1, 3, 64, 96)).shape == (1, 2)


@pytest.mark.parametrize("text", ["64x96", "64,96", "[64, 96]", "(64,96)", (64, 96)])
def test_sides_are_read_in_the_usual_ways(text):
    assert Sides(text) == (64, 96)


def test_one_side_and_none():
    assert (Sides("224"), Sides(224), Sides("[224]"), Sides(None), Sides("null")) == (224, 224, 224, None, None)


@pytest.mark.parametrize("text", ["", "0", "64x", "64x96x3", "64.5", "-3", "99999", "a", "64xa"])
def test_other_sides_are_named(text):
    with pytest.raises(camify.ConfigError, match="expected one number or HEIGHTxWIDTH"):
        Sides(text)
