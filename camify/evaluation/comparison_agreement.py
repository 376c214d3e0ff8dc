"""The tables of a comparison in the order in which they are read; here those of pairs."""

from __future__ import annotations

from ..report.tables import Table, count, number
from .comparison_results import Comparison
from .comparison_summary import compared_pairs, groups, mean_agreement
from .comparison_tables import changes, cost_table, drop_by_scenario, faithfulness, localisation, pointing_by_scenario
from .image_figures import BOX_THRESHOLD, TOP_SHARE
from .scenarios import SMALL, UNCHANGED

__all__ = ["agreement", "agreement_by_scenario", "all_tables"]

_SECTION = "How alike the maps are"
_TOP = f"IoU of the top {100 * TOP_SHARE:.0f} %"


def all_tables(found: Comparison) -> list[Table]:
    """The tables; none where nothing was measured."""
    made = [
        agreement(found),
        agreement_by_scenario(found, "pearson", "Pearson's correlation by scenario"),
        agreement_by_scenario(found, "top_iou", f"{_TOP} by scenario"),
        localisation(found),
        pointing_by_scenario(found),
        faithfulness(found),
        drop_by_scenario(found),
        changes(found),
        cost_table(found.costs),
    ]
    return [table for table in made if table.rows]


def agreement(found: Comparison) -> Table:
    """Every measure of agreement over all pictures, for the pairs that are worth a row."""
    means = mean_agreement(found.findings, UNCHANGED)
    names = ("pearson", "spearman", "raw", "top_iou", "box_iou")
    rows = [
        [
            *_pair(found, i, j),
            *(number(means[name].mean[i, j]) for name in names),
            count(means["pearson"].count[i, j]),
        ]
        for i, j in compared_pairs(found.columns)
    ]
    return Table(
        _SECTION,
        "Agreement of the heats of the compared class, all pictures",
        ["", "and", "Pearson", "Spearman", "Pearson of raw maps", _TOP, "IoU of boxes", "N"],
        rows,
        "Means over the N pictures on which both have heat, pixel by pixel; 1 is the same. Raw maps are signed, before"
        " the ReLU: where they agree fully, the methods differ by the ReLU alone. The top 20 % are the hottest fifth of"
        f" the picture, boxes those of the largest region of heat >= {BOX_THRESHOLD}. That two methods agree does not"
        " say that either is right; upsampled maps are smooth, so even unlike ones correlate. Other pairs are in"
        " compare.json.",
        names=2,
    )


def agreement_by_scenario(found: Comparison, measure: str, title: str) -> Table:
    """One measure of agreement, scenario by scenario."""
    split = groups(found.findings)
    means = [mean_agreement(those, view)[measure].mean for view, those in split.values()]
    return Table(
        _SECTION,
        title,
        ["", "and", *(f"{name} (N {len(those)})" for name, (_, those) in split.items())],
        [[*_pair(found, i, j), *(number(mean[i, j]) for mean in means)] for i, j in compared_pairs(found.columns)],
        f"Several instances: more than one box; small: one box of less than {100 * SMALL:.0f} % of the picture. Class"
        " not present: both maps are of a class that is not there; mirrored and shifted: both of the changed input."
        " Where methods part over the absent class, one of them shows evidence and the other what is salient. A"
        " scenario of few pictures says little.",
        names=2,
    )


def _pair(found: Comparison, i: int, j: int) -> tuple[str, str]:
    return str(found.columns[i]), str(found.columns[j])
