"""An evaluation as Markdown, JSON and a line for every image, in a folder that is whole."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import free_folder, whole_folder
from ..report.tables import json_values, markdown_facts, markdown_sections, markdown_text
from .engine import BASELINES
from .evaluation_tables import all_tables
from .intervals import Figure, best_cut
from .results import Evaluation

__all__ = ["free_output", "save_evaluation", "to_csv", "to_json", "to_markdown"]

MANIFEST = "evaluation.json"
_GROUPS = ("accuracy", "hard_share", "localisation", "hard", "without_boxes", "faithfulness")


def free_output(folder: str | Path, *, overwrite: bool) -> Path:
    """The folder, if an evaluation may be written there.

    Raises:
        ConfigError: it exists and is not to be replaced, or is not an evaluation.
    """
    return free_folder(Path(folder), MANIFEST, "--output", overwrite=overwrite)


def save_evaluation(found: Evaluation, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write ``evaluation.md``, ``evaluation.json`` and ``images.csv``, all or nothing; the folder.

    Raises:
        ConfigError: as in ``free_output``.
    """
    target = free_output(folder, overwrite=overwrite)
    with whole_folder(target) as aside:
        (aside / "evaluation.md").write_text(to_markdown(found), encoding="utf-8")
        (aside / "images.csv").write_text(to_csv(found), encoding="utf-8")
        (aside / MANIFEST).write_text(to_json(found), encoding="utf-8")
    return target


def to_markdown(found: Evaluation) -> str:
    """The tables with how to read them."""
    lines = [f"# Evaluation of {markdown_text(found.contender.name)}", ""]
    lines += [*markdown_sections(all_tables(found)), *markdown_facts(found.facts)]
    return "\n".join(lines).encode("utf-8", "replace").decode() + "\n"


def to_json(found: Evaluation) -> str:
    """All figures with their intervals; NaN is null."""
    names = {number: name for name, number in found.data.classes.items()}
    document = {
        "schema_version": 1,
        "facts": dict(found.facts),
        "cannot_serve": found.contender.unserved,
        **{key: _plain(getattr(found, key)) for key in _GROUPS},
        "classes": {names[number]: figures for number, figures in found.classes.items()},
        "cost": found.costs,
    }
    return json.dumps(json_values(document), indent=1, allow_nan=False) + "\n"


def to_csv(found: Evaluation) -> str:
    """A line for every image: what the network said, and what each method's map of the true class reached.

    ``hard``: no centred box reaches IoU 0.5. ``METHOD iou``: of the largest region's box at the threshold of V1.
    Blank is unknown.
    """
    answers = found.answers
    names = {number: name for name, number in found.data.classes.items()}
    columns: dict[str, list[Any]] = {
        "image": [record.path.relative_to(found.data.folder).as_posix() for record in found.data.images.records],
        "class": [names[number] for number in answers.labels.tolist()],
        "predicted": [names.get(n, _name(found, n)) for n in answers.predicted.tolist()],
        "probability": answers.probabilities.tolist(),
        "hard": [int(h) if b else "" for h, b in zip(answers.hard[:, 1], answers.with_boxes, strict=True)],
    }
    for name, values in found.rows.items():
        if name in BASELINES:
            continue
        if "iou" in values:
            columns[f"{name} iou"] = values["iou"][:, best_cut(values, answers.with_boxes)].tolist()
        for key in ("pointing", "energy", "entropy", "area"):
            if key in values:
                columns[f"{name} {key}"] = values[key].tolist()
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([_cell(value) for value in line] for line in zip(*columns.values(), strict=True))
    return text.getvalue().encode("utf-8", "replace").decode()


def _name(found: Evaluation, number: int) -> str:
    names = found.contender.class_names
    return str(number) if names is None else names[number]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return value


def _plain(found: Any) -> Any:
    return asdict(found) if isinstance(found, Figure) else {name: _plain(part) for name, part in found.items()}
