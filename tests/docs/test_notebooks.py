"""The notebooks run as they stand, on what camify embeds; what they hold is what they showed."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def cells_of(path):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def _quiet(monkeypatch, tmp_path):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    mpl.pyplot.close("all")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers, workers and devices
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("_quiet")
def test_the_cells_run_one_after_the_other(path):
    names = {}
    for number, cell in enumerate(cells_of(path)):
        code = "".join(cell["source"])
        exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)
    CHECKS[path.stem](names)


def check_lecture(names):
    assert float(names["difference"]) < 1e-5, "Grad-CAM is ReLU(CAM) / (h w) on a converted network"
    torch.testing.assert_close(names["M"].mean() + names["b"][names["c"]], names["logit"], rtol=1e-4, atol=1e-4)
    assert names["rows"]["CAM, converted"][0] > 0.9
    assert abs(names["covered"]("GAP") - names["covered"]("GMP")) < 0.1, "the text says that it does not show"


def check_fine_tuning(names):
    assert float(names["trainer"].callback_metrics["val/acc"]) > 0.9
    assert names["maps"].shape[1] == 6


def check_quality(names):
    table = names["table"]
    assert abs(table["one_se"]["accuracy"] - table["least error"]["accuracy"]) < 0.1, "almost equally right"
    assert table["one_se"]["box accuracy"] > table["least error"]["box accuracy"] + 0.05, "not equally good maps"
    assert table["random"]["box accuracy"] > table["random"]["center box"]


CHECKS = {
    "cam_lecture": check_lecture,
    "fine_tune_in_ten_cells": check_fine_tuning,
    "reading_cam_quality": check_quality,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_read_without_running_it(path):
    outputs = [output for cell in cells_of(path) for output in cell["outputs"]]
    assert outputs
    assert not any(output["output_type"] == "error" for output in outputs)
    assert path.stat().st_size < 1_500_000
    if path.stem == "fine_tune_in_ten_cells":
        assert len(cells_of(path)) == 10
