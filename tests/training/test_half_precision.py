"""Training in half precision alone: metrics, baselines and pictures are float32, whatever the default is meanwhile."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from camify.cli.train import main
from camify.training.cam_metrics import CAM_METRICS

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and small runs

NAMES = [name for name in CAM_METRICS if name not in ("px_ap", "drift")] + ["grid_pointing"]
VARIANTS = {
    "plain": {},
    "frozen, cached, taught": {
        "init": "ridge", "freeze_epochs": 1, "feature_cache": "memory", "cached_views": 1, "teacher": "legacy",
    },
    "boxes and dropped cells": {
        "box_weight": 1.0, "align_weight": 0.5, "equivariance_weight": 1.0, "adl_layers": ["4"], "adl_drop_rate": 0.75,
        "class_weights": "balanced",
    },
    "pasted images": {"cutmix": 1.0, "label_smoothing": 0.1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_run_folder(monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)


def fit(folder, precision, names=NAMES, **model):
    options = {
        "seed_everything": 0,
        "trainer": {
            "max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(folder), "enable_progress_bar": False,
            "precision": precision,
        },
        "model": {
            "model": "camify/tiny_vgg@demo", "input_size": 96, "head_channels": 8, "cam_metrics": names,
            "grid_mosaics": 2, **model,
        },
        "data": {
            "class_path": "ShapesDataModule",
            "init_args": {
                "train_count": 12, "val_count": 8, "test_count": 8, "batch_size": 4, "augment": "none",
            },
        },
        "overlays": {"num_images": 2},
    }  # fmt: skip
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(options))
    main(["fit", "--config", str(path)])
    return json.loads((folder / "results.json").read_text())


def check(results, folder, names):
    assert results["finished"]
    row = results["history"][-1]
    for name in names:
        for figure in CAM_METRICS[name].figures if name in CAM_METRICS else ():
            assert math.isfinite(row[f"val/{figure}"]), figure
    assert (folder / "overlays" / "epoch_000").is_dir()
    assert (folder / "export" / "camify.json").is_file()
    assert (folder / "report.html").is_file()
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    "variant",
    [name if name == "frozen, cached, taught" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
)
def test_a_bf16_run_measures_draws_and_exports(tmp_path, variant):
    folder = tmp_path / "run"
    names = NAMES if variant == "plain" else ["max_box_acc", "area", "entropy"]
    check(fit(folder, "bf16-true", names, **VARIANTS[variant]), folder, names)


@pytest.mark.slow  # float16 on a CPU
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_float16_run_measures_draws_and_exports(tmp_path, variant):
    names = ["max_box_acc", "localization", "area", "entropy", "grid_pointing", "average_drop"]
    check(fit(tmp_path / "run", "16-true", names, **VARIANTS[variant]), tmp_path / "run", names)
