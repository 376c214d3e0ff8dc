"""Which figures a comparison has: every picture, a class that is not there, changed inputs, all at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from ..files import slug
from ..metrics.functional import shifted
from ..report.encoding import encoded
from ..report.grid import Cell, Row, grid_figure
from .comparison_results import refusal
from .image_figures import Finding
from .network import Contender
from .scenarios import ABSENT, MIRRORED, SHIFTED, UNCHANGED
from .views import Looks

__all__ = ["AT_A_GLANCE", "Drawing", "drawings", "overview", "overview_row"]

AT_A_GLANCE = 12  # pictures in the overview


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        kind: ``"compared"``, ``"absent"``, ``"changed"`` or ``"overview"``.
        name: of its file, without the ending.
        title: what it shows.
        png: encoded, for its file.
        webp: encoded, for inside the page: a fifth of the size.
    """

    kind: str
    name: str
    title: str
    png: bytes
    webp: bytes


def drawings(
    number: int, looks: Looks, index: int, finding: Finding, contenders: Sequence[Contender], names: Sequence[str]
) -> Iterator[Drawing]:
    """The three figures of a picture: compared class, class that is not there, mirrored and shifted input."""
    head = f"{finding.name} · {finding.scenario}"
    stem = f"{number:03d}_{slug(finding.name)}"
    methods = [("", method) for method in contenders[0].methods]
    compared, absent = names[finding.target], names[finding.absent]
    rows = [_row(looks, index, finding, contender, p, UNCHANGED) for p, contender in enumerate(contenders)]
    yield _drawing("compared", stem, f"{head} · compared class: {compared}", methods, rows)
    rows = [_row(looks, index, finding, contender, p, ABSENT) for p, contender in enumerate(contenders)]
    yield _drawing("absent", f"{stem}_absent", f"{head} · a class that is not there: {absent}", methods, rows)
    rows = [
        _row(looks, index, finding, contender, p, view)
        for p, contender in enumerate(contenders)
        for view in (UNCHANGED, MIRRORED, SHIFTED)
    ]
    title = f"{head} · {compared}: as it is, mirrored (turned back), shifted"
    yield _drawing("changed", f"{stem}_changed", title, methods, rows)


def overview(rows: Sequence[Row], heads: Sequence[tuple[str, str]]) -> Drawing:
    """The first pictures on all columns."""
    title = "Compared class, networks and methods at a glance"
    return _encoded("overview", "overview", title, grid_figure(title, heads, rows[:AT_A_GLANCE], side=112))


def overview_row(looks: Looks, index: int, finding: Finding, names: Sequence[str]) -> Row:
    """A picture on all columns."""
    cells = [Cell(heats[index]) for heats in looks.heats[UNCHANGED]]
    return Row(looks.pictures[index], finding.boxes, (finding.name, names[finding.target]), cells)


def _row(looks: Looks, index: int, finding: Finding, contender: Contender, place: int, view: str) -> Row:
    which = int(view == ABSENT)
    logit, probability = looks.logits[place, index, which], looks.probabilities[place, index, which]
    cells = []
    for method in contender.methods:
        column = next((i for i, c in enumerate(looks.columns) if c == (contender.name, method)), None)
        if column is None:
            cells.append(Cell(None, note=refusal(contender, method)))
            continue
        heat = looks.heats[view][column, index]
        low, high = looks.ranges[view][column, index].tolist()
        empty = "" if float(heat.max()) > 0 else ", no heat"
        cells.append(Cell(heat, f"raw {low:.3g} to {high:.3g}{empty}"))
    second = f"logit {float(logit):.2f} · p {float(probability):.3f}"
    if view in (MIRRORED, SHIFTED):
        second = view
    picture = looks.pictures[index]
    boxes = finding.boxes
    if view == SHIFTED:
        picture, boxes = shifted(picture[None])[0], None
    return Row(picture, boxes, (contender.name, second), cells)


def _drawing(kind: str, name: str, title: str, heads: Sequence[tuple[str, str]], rows: Sequence[Row]) -> Drawing:
    return _encoded(kind, name, title, grid_figure(title, heads, rows))


def _encoded(kind: str, name: str, title: str, figure: Image.Image) -> Drawing:
    return Drawing(kind, name, title, encoded(figure, "png"), encoded(figure, "webp"))
