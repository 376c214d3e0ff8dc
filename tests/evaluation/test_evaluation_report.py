"""What is written and shown."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from dataclasses import replace

import pytest
import torch

import camify
from camify.cli.commands import main
from camify.errors import ConfigError
from camify.evaluation.evaluation_report import evaluation_tables, to_csv, to_html, to_json, to_markdown

from .conftest import METHODS, NAMES, SHOWN

FILES = ["evaluation.html", "evaluation.json", "evaluation.md", "images.csv"]


def test_the_page_has_every_baseline_beside_every_figure(found):
    text = to_markdown(found)
    tables = re.findall(r"\*\*([^\n]+)\*\*\n\n((?:\|[^\n]+\n)+)\n([^\n]+)\n", text)
    assert len(tables) == len(evaluation_tables(found)) == 9
    for _, table, note in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        assert note.endswith(".")
    local = [table for _, table, _ in tables if "| whole image |" in table]
    assert len(local) == 4
    for table in local:
        names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
        assert names == [*METHODS, "center box", "center Gaussian", "whole image", "random map"]
    assert "c\\|at" in text
    value = found.localization["cam"]["max_box_acc_v1"]
    assert f"| cam | {value.value:.3f} \\[{value.low:.2f}, {value.high:.2f}\\] |" in text


def test_the_json_has_all_figures(found):
    document = json.loads(to_json(found))
    one = found.hard["cam"]["energy"]
    assert document["hard"]["cam"]["energy"]["value"] == pytest.approx(one.value, rel=1e-5)
    assert document["localization"]["center box"]["energy"]["value"] is None
    assert document["classes"]["c|at"]["network"]["count"] == 3
    assert document["facts"]["intervals"].startswith("95 %")
    assert document["cost"]["ratios"].keys() >= set(METHODS)


def test_what_is_certain_of_five_classes_is_not_shown(found):
    """The true class is among the first five of five; of seven, as here, it need not be."""
    five = replace(found, network=replace(found.network, class_count=5))
    for show in (to_markdown, to_html, str):
        assert "top-5" in show(found)
        assert "top-5" not in show(five)
        assert show(found).count("Top-5 Loc") == show(five).count("Top-5 Loc") + 2  # in the facts it stays
    assert json.loads(to_json(five))["accuracy"]["top5"] == json.loads(to_json(found))["accuracy"]["top5"]


def test_a_line_for_every_image(found):
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(lines) == 12
    assert {line["class"] for line in lines} == set(SHOWN)
    assert {line["predicted"] for line in lines} <= set(NAMES)
    right = sum(line["class"] == line["predicted"] for line in lines) / 12
    assert right == pytest.approx(found.accuracy["top1"].value)
    hits = [float(line["cam iou"]) >= 0.5 for line in lines if line["cam iou"]]
    assert len(hits) == 11
    assert sum(hits) / 11 == pytest.approx(found.localization["cam"]["max_box_acc_v1"].value)
    (unboxed,) = (line for line in lines if not line["cam iou"])
    assert unboxed["image"] == "dog/1.png"
    assert unboxed["hard"] == unboxed["cam energy"] == ""


def test_only_an_evaluation_is_replaced_and_only_when_told(found, root, tmp_path):
    out = found.save(tmp_path / "new" / "out")
    assert sorted(path.name for path in out.iterdir()) == FILES
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match="--overwrite true"):
        found.save(out)
    assert (out / "mine.txt").exists()
    with pytest.raises(ConfigError, match=r"holds mine\.txt, which camify did not write"):
        found.save(out, overwrite=True)
    assert (out / "mine.txt").exists()
    (out / "mine.txt").unlink()
    found.save(out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == FILES
    with pytest.raises(ConfigError, match="which camify did not write"):
        found.save(root, overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_command(net, root, tmp_path, capsys):
    folder, out = net.save_pretrained(tmp_path / "my net"), tmp_path / "out"
    arguments = ["evaluate", "--model", folder, "--data", root, "--method", *METHODS, "--limit", "9", "--seed", "3"]
    arguments += ["--faithfulness", "1", "--workers", "0", "--out", out, "--device", "cpu"]
    main([str(argument) for argument in arguments])
    shown = capsys.readouterr().out
    assert "center box" in shown
    assert "9 of 4 classes, drawn of 12 with seed 3" in shown
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert "# Evaluation of my net" in (out / "evaluation.md").read_text()
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("camify: error: ")
    assert "--overwrite true" in error


def test_printing_shows_every_table_and_how_it_was_measured(found):
    text = str(found)
    lines = text.splitlines()
    assert lines[0] == "Evaluation of CAMNet"
    for table in evaluation_tables(found):
        start = lines.index(f"{table.section}: {table.title}")
        seen, height = [[] for _ in table.rows], 1 + len(table.rows)
        while lines[start + 1].startswith("  "):  # parts of the columns, one below the other, each with the names
            block = lines[start + 1 : start + 1 + height]
            for parts, line, row in zip(seen, block[1:], table.rows, strict=True):
                name = " ".join(row[: table.names])
                assert line.strip().startswith(name.strip())
                parts += line.strip().removeprefix(name.strip()).split()
            assert max(map(len, block)) <= 80
            start += height + 1
        for parts, row in zip(seen, table.rows, strict=True):
            assert parts == " ".join(row[table.names :]).split(), "whole, in order"
    value = found.localization["cam"]["max_box_acc_v1"]
    assert f"{value.value:.3f} [{value.low:.2f}, {value.high:.2f}]" in text
    for label, fact in found.facts:
        assert f"{label}: {fact}" in lines


def test_the_dict_is_what_the_file_holds(found, tmp_path):
    folder = found.save(tmp_path / "out")
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(
        json.dumps(found.to_dict(), allow_nan=False)
    )
    with pytest.raises(ConfigError, match="exists"):
        found.save(tmp_path / "out")
    assert found.save(tmp_path / "out", overwrite=True) == folder


def test_the_legacy_network_stands_beside(net, root, tmp_path):
    options = {"mosaics": 0, "faithfulness": 0, "pictures": 6}
    legacy = copy.deepcopy(net)
    legacy.classifier.weight.data *= -1
    made = camify.evaluate(net, root, legacy=legacy, **options)
    alone = camify.evaluate(legacy, root, **options)
    assert made.accuracy["legacy_top1"] == alone.accuracy["top1"]
    assert made.by_class["legacy_calibration"] == alone.by_class["calibration"]
    assert "legacy network:" in made.save(tmp_path / "out").joinpath("evaluation.html").read_text(encoding="utf-8")
    assert 0 < len(made.examples) <= 6
    legacy.classifier = torch.nn.Linear(12, 5)
    legacy.class_names = None
    with pytest.raises(camify.ConfigError, match="--legacy: has 5 classes, the network 7"):
        camify.evaluate(net, root, legacy=legacy, **options)
