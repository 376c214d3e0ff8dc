"""The tables of an evaluation, in the order in which they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..report.tables import MISSING, Table, number, percent
from .comparison_tables import cost_table
from .engine import BASELINES, CENTRE_BOX, TOLERANCE
from .intervals import Figure
from .passes import STEPS
from .results import Evaluation, Figures

__all__ = ["all_tables", "class_table"]

_BOXES = {
    "max_box_acc_v1": "V1: largest, IoU .5",
    "over_centre_box": "V1 over centre box",
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
    "pointing": "pointing game",
    "energy": "energy in boxes",
}
_FREE = {"grid": "grid pointing", "flip": "flip", "shift": "shift", "entropy": "entropy", "area": "area of heat >= .5"}
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
the IoU. The threshold is the best one for these very images, as is the size of the centre box; the intervals know of
that choice. V1 over centre box: on the same resamples; where its interval holds 0, the map is not shown to find more
than a fixed box does."""
_HITS_NOTE = f"""GT-known Loc: the largest region's box has IoU >= .5; Top-1, Top-5: and the true class comes first, or
among the first five. Pointing game: the hottest pixel is less than {TOLERANCE:.0f} pixels of the input from the object.
Energy: the share of positive evidence within the boxes; of the whole image it is their area."""
_FREE_NOTE = """Grid pointing (Boehle et al. 2021): the share of a class's positive evidence in its own cell of a mosaic
of four classes; chance is .25. Flip, shift: correlation of the heat with that of the image mirrored, or moved by an
eighth, moved back. Entropy: 1 is evidence everywhere. Flip, shift, entropy and area do not say that a map is right.
Grid pointing, energy and entropy take raw values: probabilities of cells (Recipro-CAM), none of which is zero, count as
evidence everywhere."""
_FAITHFUL_NOTE = f"""Average drop, increase (Chattopadhay et al. 2018), coherency, complexity, ADCC (Poppi et al. 2021)
of images that fade into the mean colour where heat is low; insertion and deletion (Petsiuk et al. 2018) in {STEPS}
steps, from the blurred image and to the mean colour. Less is better: drop, complexity, deletion. Heat that covers more
drops less: compare with the maps that know nothing."""
_HARD_NOTE = """Images that a box around the centre, of whatever size, does not solve: {} of those with boxes. Here a
map must know where the object is. Thresholds and sizes are the best ones for these images."""


def all_tables(found: Evaluation) -> list[Table]:
    """The tables; none where nothing was measured."""
    boxed, hard = (_count(figures, "max_box_acc_v1") for figures in (found.localisation, found.hard))
    sample = _count(found.faithfulness, "drop")
    parts = "Boxes, peaks and evidence"
    local, hardest = "Localisation", "The hard images: no centred box reaches IoU .5"
    made = [
        _accuracy(found),
        _table(local, f"MaxBoxAcc of the true class's maps, N = {boxed}", _BOXES, found.localisation, _BOXES_NOTE),
        _table(local, f"{parts}, N = {boxed}", _HITS, found.localisation, _HITS_NOTE),
        _table(hardest, f"MaxBoxAcc, N = {hard}", _BOXES, found.hard, _hard_note(found)),
        _table(hardest, f"{parts}, N = {hard}", _HITS, found.hard, _HITS_NOTE),
        _table("Without boxes", "Where the evidence lies, does it move along", _FREE, found.without_boxes, _FREE_NOTE),
        _table(
            "Faithfulness",
            f"Of the network's first choice, N = {sample}",
            _FAITHFUL,
            found.faithfulness,
            _FAITHFUL_NOTE,
        ),
        cost_table({found.contender.name: found.costs}),
        class_table(found),
    ]
    return [table for table in made if table.rows]


def class_table(found: Evaluation) -> Table:
    """By class: images, accuracy, and V1 of every method beside the centre box; without boxes grid pointing."""
    methods = [name for name in found.rows if name not in BASELINES]
    shown = "max_box_acc_v1" if found.localisation else "grid"
    columns = [*methods, *([CENTRE_BOX] if found.localisation else [])]
    names = {number: name for name, number in found.data.classes.items()}
    rows = []
    for index, parts in found.classes.items():
        network = parts["network"]
        values = [number(parts[name].get(shown, math.nan)) for name in columns]
        hard = [percent(network["hard_share"])] if found.localisation else []
        rows.append([names[index], str(network["count"]), number(network["top1"]), *hard, *values])
    what = "MaxBoxAcc V1" if found.localisation else "grid pointing"
    return Table(
        "By class",
        f"Accuracy and {what}",
        ["class", "N", "top-1", *(["hard"] if found.localisation else []), *columns],
        rows,
        "Boxes at the threshold, centre box of the size, that is best for all images. More is in evaluation.json.",
    )


def _accuracy(found: Evaluation) -> Table:
    rows = [[name.replace("top", "top-"), _text(one), str(one.count)] for name, one in found.accuracy.items()]
    return Table("Accuracy", "Share of images", ["", "accuracy", "N"], rows, "In brackets the 95 % interval.")


def _table(section: str, title: str, head: Mapping[str, str], found: Figures, note: str) -> Table:
    """A row for each method, then each baseline; columns of which nothing is known are left out."""
    used = [key for key in head if any(math.isfinite(one[key].value) for one in found.values() if key in one)]
    order = sorted(found, key=lambda name: name in BASELINES)
    rows = [[name, *(_text(found[name].get(key)) for key in used)] for name in order]
    return Table(section, title, ["", *(head[key] for key in used)], rows if used else [], " ".join(note.split()))


def _text(one: Figure | None) -> str:
    """A figure with its interval."""
    if one is None or not math.isfinite(one.value):
        return MISSING
    return f"{one.value:.3f} [{one.low:.2f}, {one.high:.2f}]"


def _hard_note(found: Evaluation) -> str:
    shares = (f"{percent(share.value)} at IoU {iou}" for iou, share in found.hard_share.items())
    return _HARD_NOTE.format(", ".join(shares))


def _count(figures: Figures, key: str) -> int:
    return max((row[key].count for row in figures.values()), default=0)
