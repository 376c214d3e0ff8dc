"""What an evaluation ends in: everything that was measured, as tables, Markdown, JSON and a line for every image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..console import shown
from ..files import EVALUATION, free_folder, safe_cell, whole_folder
from ..files import to_json as json_text
from ..metrics.functional.pointing import POINTING_TOLERANCE
from ..reports.class_page import Example, class_view
from ..reports.html import TEMPLATES, render
from ..reports.run_page import share_text
from ..reports.tables import (
    MISSING,
    Table,
    by_section,
    json_values,
    markdown_facts,
    markdown_sections,
    markdown_text,
    number,
    percent,
    text_tables,
)
from .engine import BASELINES, CENTER_BOX, STEPS, Rows
from .intervals import MEAN_ROWS, Answers, Figure, best_cut
from .labeled_data import LabeledFolder
from .network import ExplainedNetwork
from .sanity import ALL_LAYERS, CHECKS, UNCHANGED_FROM
from .timing import cost_table

__all__ = [
    "EVALUATION",
    "OWN_FILES",
    "Evaluation",
    "Figures",
    "evaluation_tables",
    "to_csv",
    "to_html",
    "to_json",
    "to_markdown",
]

OWN_FILES = ("evaluation.html", "evaluation.md", "images.csv", EVALUATION)
_GROUPS = ("accuracy", "hard_share", "localization", "hard", "without_boxes", "faithfulness", "sanity")
_T = TypeVar("_T")

Figures = dict[str, dict[str, Figure]]
"""By method or baseline, by name of the figure."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured; ``print`` shows it as tables.

    Attributes:
        network: with its methods.
        data: the images.
        answers: what the network said of them.
        rows: of every image, by method and baseline, see ``engine.map_rows``.
        accuracy: ``top1``, ``top5``.
        hard_share: by IoU, of the images with boxes; empty without boxes.
        localization: on all images with boxes.
        hard: the same on those that no centered box solves at IoU 0.5.
        without_boxes: ``grid``, ``flip``, ``shift``, ``entropy``, ``area``.
        faithfulness: on the sample.
        sanity: by method and check (``sanity.CHECKS``), rank correlations; empty where that was not asked for.
        classes: by number of the class, by method or baseline, without intervals.
        costs: as ``method_costs`` gives them.
        by_class: as ``class_figures_of`` gives them: which class is taken for which.
        examples: images behind the cells of the confusion matrix.
        facts: how it was measured, (label, text).
    """

    network: ExplainedNetwork
    data: LabeledFolder
    answers: Answers
    rows: dict[str, Rows]
    accuracy: dict[str, Figure]
    hard_share: dict[str, Figure]
    localization: Figures
    hard: Figures
    without_boxes: Figures
    faithfulness: Figures
    sanity: Figures
    classes: dict[int, dict[str, dict[str, float | int]]]
    costs: dict[str, Any]
    by_class: dict[str, Any]
    examples: list[Example]
    facts: list[tuple[str, str]]

    def __str__(self) -> str:
        facts = "\n".join(f"{label}: {text}" for label, text in self.facts)
        return f"Evaluation of {self.network.name}\n\n{text_tables(evaluation_tables(self))}\n{facts}"

    def to_dict(self) -> dict[str, Any]:
        """All figures with their intervals, as JSON values; NaN is None."""
        names = {number: name for name, number in self.data.classes.items()}
        document = {
            "schema_version": 1,
            "facts": dict(self.facts),
            "cannot_serve": self.network.unserved,
            **{key: _plain(getattr(self, key)) for key in _GROUPS},
            "classes": {names[number]: figures for number, figures in self.classes.items()},
            "cost": self.costs,
            "confusion": self.by_class,
        }
        values: dict[str, Any] = json_values(document)
        return values

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page, Markdown, JSON and a table of the images, all or nothing; the folder.

        Raises:
            ConfigError: the folder exists and is not to be replaced, or is not an evaluation.
        """
        target = free_folder(Path(folder), EVALUATION, OWN_FILES, "--out", overwrite=overwrite)
        with whole_folder(target) as aside:
            (aside / "evaluation.html").write_text(to_html(self), encoding="utf-8")
            (aside / "evaluation.md").write_text(to_markdown(self), encoding="utf-8")
            (aside / "images.csv").write_text(to_csv(self), encoding="utf-8", errors="surrogateescape")
            (aside / EVALUATION).write_text(to_json(self), encoding="utf-8")
        return target


# ---------------------------------------------------------------- tables

_BOXES = {
    "max_box_acc_v1": "V1: largest, IoU .5",
    "over_center_box": "V1 over center box",
    "max_box_acc_v2": "V2: any, mean",
    "v2_0.3": "IoU .3",
    "v2_0.5": "IoU .5",
    "v2_0.7": "IoU .7",
    "threshold": "threshold of V1",
}
_HITS = {
    "gt_known": "GT-known Loc",
    "top1_loc": "Top-1 Loc",
    "top5_loc": "Top-5 Loc",
    "box_rule": "network's box rule",
    "pointing": "pointing game",
    "energy": "energy in boxes",
}
_FREE = {"grid": "grid pointing", "flip": "flip", "shift": "shift", "entropy": "entropy", "area": "area of map >= .5"}
_FAITHFUL = {
    "drop": "average drop",
    "increase": "increase",
    "coherency": "coherency",
    "complexity": "complexity",
    "adcc": "ADCC",
    "insertion": "insertion",
    "deletion": "deletion",
}
_BOXES_NOTE = """Choe et al. 2020: the share of images on which a box of the map's regions above one threshold reaches
the IoU. The threshold is the best one for these very images, as is the size of the center box; the intervals know of
that choice. V1 over center box: on the same resamples; where its interval holds 0, the map is not shown to find more
than a fixed box does."""
_HITS_NOTE = f"""GT-known Loc: the largest region's box has IoU >= .5; Top-1, Top-5: and the true class comes first, or
among the first five. Network's box rule: the box of `predict_boxes` for the true class, likewise. Pointing game: the
largest value is less than {POINTING_TOLERANCE:.0f} pixels of the input from the object. Energy: the share of positive
evidence within the boxes; of the whole image it is their area."""
_FREE_NOTE = """Grid pointing (Boehle et al. 2021): the share of a class's positive evidence in its own cell of a mosaic
of four classes; chance is .25. Flip, shift: correlation of the heat map with that of the image mirrored, or moved by an
eighth, moved back. Entropy: 1 is evidence everywhere. Flip, shift, entropy and area do not say that a map is right.
Grid pointing, energy and entropy take raw values: probabilities of cells (Recipro-CAM), none of which is zero, count as
evidence everywhere."""
_FAITHFUL_NOTE = f"""Average drop, increase (Chattopadhay et al. 2018), coherency, complexity, ADCC (Poppi et al. 2021)
of images that fade into the mean color where the map is low; insertion and deletion (Petsiuk et al. 2018) in {STEPS}
steps, from the blurred image and to the mean color. Less is better: drop, complexity, deletion. A map that covers
more drops less: compare with the baselines."""
_SANITY_NOTE = f"""Adebayo et al. 2018: the map of the network's first choice against that of the same network with
random layers (the values of each tensor in an order by chance), from the last one on backwards, and with a classifier
fitted to random labels. Near 1: the map does not depend on what was replaced; with a random last layer it does not
depend on the class. Another image: what the maps of two images have in common anyway. Methods of {UNCHANGED_FROM} or
more are named below."""
_HARD_NOTE = """Images that a box around the center, of whatever size, does not solve: {} of those with boxes. Here a
map must locate the object. Thresholds and sizes are the best ones for these images."""


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """The tables; none where nothing was measured."""
    boxed, hard = (_count(figures, "max_box_acc_v1") for figures in (evaluation.localization, evaluation.hard))
    sample = _count(evaluation.faithfulness, "drop")
    parts, hits = "Boxes, peaks and evidence", _telling(evaluation, _HITS)
    local, hardest = "Localization", "The hard images: no centered box reaches IoU .5"
    made = [
        _accuracy(evaluation),
        _table(local, f"MaxBoxAcc of the true class's maps, N = {boxed}", _BOXES, evaluation.localization, _BOXES_NOTE),
        _table(local, f"{parts}, N = {boxed}", hits, evaluation.localization, _HITS_NOTE),
        _table(hardest, f"MaxBoxAcc, N = {hard}", _BOXES, evaluation.hard, _hard_note(evaluation)),
        _table(hardest, f"{parts}, N = {hard}", hits, evaluation.hard, _HITS_NOTE),
        _table(
            "Without boxes", "Where the evidence lies, does it move along", _FREE, evaluation.without_boxes, _FREE_NOTE
        ),
        _table(
            "Faithfulness",
            f"Of the network's first choice, N = {sample}",
            _FAITHFUL,
            evaluation.faithfulness,
            _FAITHFUL_NOTE,
        ),
        _table(
            "Sanity checks",
            f"Rank correlation with the map of the changed network, N = {_count(evaluation.sanity, ALL_LAYERS)}",
            {check: check for check in CHECKS},
            evaluation.sanity,
            _SANITY_NOTE,
        ),
        cost_table({evaluation.network.name: evaluation.costs}),
        class_table(evaluation),
    ]
    return [table for table in made if table.rows]


def class_table(evaluation: Evaluation) -> Table:
    """By class: images, accuracy, and V1 of every method beside the center box; without boxes grid pointing."""
    methods = [name for name in evaluation.rows if name not in BASELINES]
    shown = "max_box_acc_v1" if evaluation.localization else "grid"
    columns = [*methods, *([CENTER_BOX] if evaluation.localization else [])]
    names = {number: name for name, number in evaluation.data.classes.items()}
    rows = []
    for index, parts in evaluation.classes.items():
        network = parts["network"]
        values = [number(parts[name].get(shown, math.nan)) for name in columns]
        hard = [percent(network["hard_share"])] if evaluation.localization else []
        rows.append([names[index], str(network["count"]), number(network["top1"]), *hard, *values])
    what = "MaxBoxAcc V1" if evaluation.localization else "grid pointing"
    return Table(
        "By class",
        f"Accuracy and {what}",
        ["class", "N", "top-1", *(["hard"] if evaluation.localization else []), *columns],
        rows,
        "Boxes at the threshold, center box of the size, that is best for all images. More is in evaluation.json.",
    )


def _accuracy(evaluation: Evaluation) -> Table:
    shown = _telling(evaluation, evaluation.accuracy)
    rows = [[_accuracy_name(name), _text(one), str(one.count)] for name, one in shown.items()]
    return Table("Accuracy", "Share of images", ["", "accuracy", "N"], rows, "In brackets the 95 % interval.")


def _telling(evaluation: Evaluation, named: Mapping[str, _T]) -> dict[str, _T]:
    """What is shown: of five classes or fewer the true one is among the first five whatever the network says."""
    is_certain = evaluation.network.class_count <= 5
    return {name: value for name, value in named.items() if not (is_certain and name.startswith("top5"))}


def _accuracy_name(key: str) -> str:
    return {"top1": "top-1", "top5": "top-5", "legacy_top1": "legacy network, top-1"}[key]


def _table(section: str, title: str, head: Mapping[str, str], figures: Figures, note: str) -> Table:
    """A row for each method, then each baseline; columns of which nothing is known are left out."""
    used = [
        key for key in head if any(math.isfinite(by_key[key].value) for by_key in figures.values() if key in by_key)
    ]
    order = sorted(figures, key=lambda name: name in BASELINES)
    rows = [[name, *(_text(figures[name].get(key)) for key in used)] for name in order]
    return Table(section, title, ["", *(head[key] for key in used)], rows if used else [], " ".join(note.split()))


def _text(one: Figure | None) -> str:
    """A figure with its interval."""
    if one is None or not math.isfinite(one.value):
        return MISSING
    return f"{one.value:.3f} [{one.low:.2f}, {one.high:.2f}]"


def _hard_note(evaluation: Evaluation) -> str:
    shares = (f"{percent(share.value)} at IoU {iou}" for iou, share in evaluation.hard_share.items())
    return _HARD_NOTE.format(", ".join(shares))


def _count(figures: Figures, key: str) -> int:
    return max((row[key].count for row in figures.values()), default=0)


# ---------------------------------------------------------------- files


def to_markdown(evaluation: Evaluation) -> str:
    """The tables with how to read them."""
    lines = [f"# Evaluation of {markdown_text(evaluation.network.name)}", ""]
    lines += [*markdown_sections(evaluation_tables(evaluation)), *markdown_facts(evaluation.facts)]
    return shown("\n".join(lines), "\n") + "\n"


def to_html(evaluation: Evaluation) -> str:
    """All of it as one page that loads nothing from anywhere."""
    count, name = len(evaluation.answers.labels), evaluation.network.name
    calibrations = {name: evaluation.by_class["calibration"]}
    if "legacy_calibration" in evaluation.by_class:
        calibrations = {"legacy network": evaluation.by_class["legacy_calibration"], **calibrations}
    classes = class_view(
        evaluation.by_class, evaluation.examples, f"{count:,} images", calibrations,
        "" if evaluation.examples else "No images were drawn (pictures 0).",
    )  # fmt: skip
    return render(
        TEMPLATES / "evaluation.html.j2",
        {"percent": share_text},
        title=f"Evaluation of {name}",
        subtitle=f"{evaluation.data.folder}, {count:,} images of {len(evaluation.data.classes)} classes",
        stats=[
            (
                f"{_accuracy_name(key)}, 95 % interval {share_text(one.low)} to {share_text(one.high)}",
                share_text(one.value),
            )
            for key, one in _telling(evaluation, evaluation.accuracy).items()
        ],
        classes=classes,
        sections=by_section(evaluation_tables(evaluation)),
        facts=evaluation.facts,
    )


def to_json(evaluation: Evaluation) -> str:
    """``Evaluation.to_dict`` as text."""
    return json_text(evaluation.to_dict()) + "\n"


def to_csv(evaluation: Evaluation) -> str:
    """A line for every image: what the network said, and what each method's map of the true class reached.

    ``hard``: no centered box reaches IoU 0.5. ``METHOD iou``: of the largest region's box at the threshold of V1.
    Blank is unknown.
    """
    answers, data = evaluation.answers, evaluation.data
    names, titles = {number: name for name, number in data.classes.items()}, evaluation.network.titles
    columns: dict[str, list[Any]] = {
        "image": [Path(path).relative_to(data.folder).as_posix() for path in data.images.paths],
        "class": [names[number] for number in answers.labels.tolist()],
        "predicted": [names.get(n, titles[n]) for n in answers.predicted.tolist()],
        "probability": answers.probabilities.tolist(),
        "hard": [int(h) if b else "" for h, b in zip(answers.hard[:, 1], answers.with_boxes, strict=True)],
    }
    for name, values in evaluation.rows.items():
        if name in BASELINES:
            continue
        if "iou" in values:
            columns[f"{name} iou"] = values["iou"][:, best_cut(values, answers.with_boxes)].tolist()
        for key, column in MEAN_ROWS.items():
            if key in values:
                columns[f"{name} {column}"] = values[key].tolist()
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([_cell(value) for value in line] for line in zip(*columns.values(), strict=True))
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return safe_cell(value) if isinstance(value, str) else value


def _plain(figures: Any) -> Any:
    if isinstance(figures, Figure):
        return asdict(figures)
    return {name: _plain(part) for name, part in figures.items()}
