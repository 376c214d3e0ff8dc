"""A comparison as HTML, Markdown and JSON: the same tables, figures and words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..report.html import render
from ..report.tables import Table, json_values, markdown_facts, markdown_sections, markdown_text
from .comparison_drawings import Drawing
from .comparison_results import Comparison
from .comparison_summary import groups, mean_agreement, mean_value
from .image_figures import BOX_THRESHOLD, TOP_SHARE
from .scenarios import SMALL, UNCHANGED

__all__ = ["Page", "to_html", "to_json", "to_markdown"]

FIGURES = {
    "overview": ("At a glance", "All pictures, or the first twelve, on every network and method."),
    "compared": (
        "Where the methods look",
        """The same class for all networks and methods, named above each figure; below each heat the range of the raw
        map, signed, in the method's own units, which differ between methods. The outlined box is the ground truth.""",
    ),
    "absent": (
        "A class that is not there",
        """Maps of the least probable class. Every map is scaled to full heat, so look at the raw range: the evidence
        for a class that is not there should be weak or negative, which these colours alone do not tell.""",
    ),
    "changed": (
        "Mirrored and shifted",
        """The heat of the mirrored picture, turned back, and of the picture moved right and down by an eighth: the same
        parts should be hot. Differences come from the network and the grid of its map as much as from a method.""",
    ),
}
"""Kinds of figures in their order: heading and how to read them."""


@dataclass(frozen=True)
class Page:
    """What the pages tell; all text is shown as text, never as markup.

    Attributes:
        title: heading.
        subtitle: what was compared, in one line.
        drawings: the figures; their files lie in ``figures/``.
        omitted: number of pictures without figures of their own.
        tables: in order.
        facts: how it was made, (label, text).
    """

    title: str
    subtitle: str
    drawings: Sequence[Drawing]
    omitted: int
    tables: Sequence[Table]
    facts: Sequence[tuple[str, str]]

    @property
    def galleries(self) -> list[tuple[str, str, list[Drawing]]]:
        """Heading, how to read it and figures, kind by kind."""
        split = [
            (heading, " ".join(note.split()), [drawing for drawing in self.drawings if drawing.kind == kind])
            for kind, (heading, note) in FIGURES.items()
        ]
        return [gallery for gallery in split if gallery[2]]

    @property
    def sections(self) -> list[tuple[str, list[Table]]]:
        """Heading and tables."""
        names = dict.fromkeys(table.section for table in self.tables)
        return [(name, [table for table in self.tables if table.section == name]) for name in names]


def to_html(page: Page) -> str:
    """One file that loads nothing from anywhere and needs no JavaScript."""
    return render(Path(__file__).with_name("compare.html.j2"), page=page)


def to_markdown(page: Page) -> str:
    """The same, with the figures as files beside it."""
    lines = [f"# {markdown_text(page.title)}", "", markdown_text(page.subtitle), ""]
    for heading, note, drawings in page.galleries:
        lines += [f"## {heading}", "", note, ""]
        for drawing in drawings:
            lines += [f"![{markdown_text(drawing.title)}](figures/{drawing.name}.png)", ""]
    if page.omitted:
        lines += [f"{page.omitted} more pictures are in the tables and in compare.json only.", ""]
    lines += [*markdown_sections(page.tables), *markdown_facts(page.facts)]
    return "\n".join(lines).encode("utf-8", "replace").decode() + "\n"


def to_json(comparison: Comparison, facts: Sequence[tuple[str, str]]) -> str:
    """All figures: by picture, by group of pictures, every pair of columns; NaN is null."""
    found = comparison.findings
    names = comparison.class_names
    document = {
        "schema_version": 1,
        "facts": dict(facts),
        "settings": {"top_share": TOP_SHARE, "box_threshold": BOX_THRESHOLD, "small_object": SMALL},
        "models": [
            {"name": c.name, "source": c.source, "notes": c.notes, "cannot_serve": c.unserved}
            for c in comparison.contenders
        ],
        "columns": [column._asdict() for column in comparison.columns],
        "images": [
            {
                "name": finding.name, "scenario": finding.scenario,
                "compared_class": names[finding.target], "absent_class": names[finding.absent],
                "boxes": None if finding.boxes is None else finding.boxes,
                "logits": finding.logits, "probabilities": finding.probabilities,
                "by_column": finding.values, "centre": finding.centre,
            }
            for finding in found
        ],
        "groups": {
            name: {
                "count": len(those),
                "agreement": {key: asdict(pair) for key, pair in mean_agreement(those, view).items()},
                "by_column": {key: mean_value(those, key).mean for key in those[0].values} if view == UNCHANGED else {},
            }
            for name, (view, those) in groups(found).items()
        },
        "localisation": [asdict(row) for row in comparison.localisation],
        "cost": comparison.costs,
    }  # fmt: skip
    return json.dumps(json_values(document), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
