"""Boxes of predict for other tools: those of the network's rule, in pixels of the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.cli.train import main
from camify.data import Preprocessing
from camify.data.box_formats import import_boxes
from camify.errors import ConfigError
from camify.training.callbacks.predictions import PredictionTable

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def made(tmp_path):
    """Pictures of 80 x 40 with a bright patch, one of them turned by its tag, and a network that sees the patch."""
    for split in ("train", "val", "test"):
        for name in ("dark", "light"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = np.full((40, 80, 3), 60 if name == "dark" else 90, np.uint8)
                pixels[8:24, 16:48] = 250
                exif = Image.Exif()
                exif[0x0112] = 6 if index else 1
                Image.fromarray(pixels).save(folder / f"{index}.png", exif=exif)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    model = camify.convert(net, head="direct", input_size=64)
    model.class_names, model.preprocessing = ["dark", "light"], Preprocessing(64)
    return tmp_path / "data", model.save_pretrained(tmp_path / "net")


def test_predict_writes_the_boxes_of_the_networks_rule(made, tmp_path, monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    data, net = made
    words = [
        "predict", "--model.model", str(net), "--data", "ImageFolderDataModule", "--data.init_args.root", str(data),
        "--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(tmp_path / "run"),
        "--trainer.callbacks+=PredictionTable", "--trainer.callbacks.boxes=[coco, yolo]",
    ]  # fmt: skip
    for _ in range(2):
        main(words)
    names = {path.name for path in (tmp_path / "run").iterdir() if "boxes" in path.name or "predictions" in path.name}
    kinds = ("boxes_coco{}.json", "boxes_yolo{}", "predictions{}.csv")
    assert names == {kind.format(number) for kind in kinds for number in ("", "-2")}
    model, paths = camify.load(net), sorted((data / "test").rglob("*.png"))
    expected = {}
    for path in paths:
        with torch.no_grad():
            (boxes,) = model.predict_boxes(Preprocessing(64).read(path)[None])
        width, height = (40, 80) if path.stem == "1" else (80, 40)  # as it is seen
        expected[path.relative_to(data).as_posix()] = (boxes / 64 * torch.tensor([width, height] * 2)).tolist()
    for name in ("boxes_coco.json", "boxes_yolo"):
        imported = import_boxes(tmp_path / "run" / name, paths, data)
        assert {row[0] for row in imported.rows} == expected.keys()
        for image, *box, _ in imported.rows:
            assert box == pytest.approx(expected[image][0], abs=1e-3)
    content = json.loads((tmp_path / "run" / "boxes_coco.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["dark", "light"]


def test_what_has_no_files_or_no_maps_is_refused(made):
    with pytest.raises(ConfigError, match=r"boxes='voc': is unknown. Choose of coco, yolo"):
        PredictionTable(boxes=["voc"])
    callback, module = PredictionTable(boxes=["coco"]), camify.CAMFineTuner(str(made[1]), class_names=["dark", "light"])
    module.cam_net = camify.load(made[1])
    batch, logits = {"image": torch.zeros(1, 3, 64, 64)}, torch.zeros(1, 2)
    prediction = {"logits": logits, "classes": logits.argmax(1)}
    with pytest.raises(ConfigError, match="the data module gives no paths of files"):
        callback.write_on_batch_end(None, module, prediction, None, batch, 0, 0)
