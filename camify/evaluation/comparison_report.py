"""A comparison as figures, tables, HTML, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from PIL import Image
from torch import Tensor

from ..boxes import BoxRule
from ..console import fixed, shown
from ..drawing.encoding import encoded
from ..drawing.grid import Cell, Row, grid_figure
from ..files import slug
from ..files import to_json as json_text
from ..metrics.functional import center_gaussian, resize_boxes, shifted
from ..metrics.functional.pointing import POINTING_TOLERANCE
from ..reports.html import TEMPLATES, render
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
    percents,
)
from .comparison_figures import (
    TOP_SHARE,
    ComparedBatch,
    Comparison,
    ImageFigures,
    compared_pairs,
    groups,
    mean_agreement,
    mean_value,
    nan_mean,
)
from .network import ExplainedNetwork, box_rules
from .scenarios import ABSENT, MIRRORED, SHIFTED, SMALL, UNCHANGED, mirrored
from .timing import cost_table

__all__ = [
    "AT_A_GLANCE", "Drawing", "Page", "comparison_tables", "drawings", "overview", "overview_row", "to_html", "to_json",
    "to_markdown",
]  # fmt: skip

# ---------------------------------------------------------------- figures

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
    number: int,
    batch: ComparedBatch,
    index: int,
    figures: ImageFigures,
    networks: Sequence[ExplainedNetwork],
    names: Sequence[str],
) -> Iterator[Drawing]:
    """The three figures of a picture: compared class, class that is not there, mirrored and shifted input."""
    head, stem = f"{figures.name} · {figures.scenario}", f"{number:03d}_{slug(figures.name)}"
    heads = [("", method) for method in networks[0].methods]
    compared, absent = names[figures.target], names[figures.absent]
    for kind, ending, what, views in (
        ("compared", "", f"compared class: {compared}", (UNCHANGED,)),
        ("absent", "_absent", f"a class that is not there: {absent}", (ABSENT,)),
        (
            "changed",
            "_changed",
            f"{compared}: as it is, mirrored (turned back), shifted",
            (UNCHANGED, MIRRORED, SHIFTED),
        ),
    ):
        rows = [_row(batch, index, figures, network, p, view) for p, network in enumerate(networks) for view in views]
        title = f"{head} · {what}"
        yield _encoded(kind, f"{stem}{ending}", title, grid_figure(title, heads, rows))


def overview(rows: Sequence[Row], heads: Sequence[tuple[str, str]]) -> Drawing:
    """The first pictures on all columns."""
    title = "Compared class, networks and methods at a glance"
    return _encoded("overview", "overview", title, grid_figure(title, heads, rows[:AT_A_GLANCE], side=112))


def overview_row(batch: ComparedBatch, index: int, figures: ImageFigures, names: Sequence[str]) -> Row:
    """A picture on all columns."""
    cells = [Cell(heats[index]) for heats in batch.heats[UNCHANGED]]
    return Row(batch.pictures[index], _boxes(batch, index, figures), (figures.name, names[figures.target]), cells)


def _row(
    batch: ComparedBatch, index: int, figures: ImageFigures, network: ExplainedNetwork, place: int, view: str
) -> Row:
    which = int(view == ABSENT)
    logit, probability = batch.logits[place, index, which], batch.probabilities[place, index, which]
    cells = []
    for method in network.methods:
        column = next((i for i, c in enumerate(batch.columns) if c == (network.name, method)), None)
        if column is None:
            cells.append(Cell(None, note=network.refusal(method)))
            continue
        heat = batch.heats[view][column, index]
        heat = mirrored(heat) if view == MIRRORED else heat
        low, high = batch.ranges[view][column, index].tolist()
        cells.append(Cell(heat, f"raw {low:.3g} to {high:.3g}"))
    second = f"logit {fixed(float(logit), 2)} · p {float(probability):.3f}"
    if view in (MIRRORED, SHIFTED):
        second = view
    picture, boxes = batch.pictures[index], _boxes(batch, index, figures)
    if view == SHIFTED:
        picture, boxes = shifted(picture[None].float() / 255)[0], None
    return Row(picture, boxes, (network.name, second), cells)


def _boxes(batch: ComparedBatch, index: int, figures: ImageFigures) -> Tensor | None:
    """The boxes of an image in pixels of its picture."""
    height, width = batch.pictures[index].shape[-2:]
    return None if figures.boxes is None else resize_boxes(figures.boxes, batch.size, (height, width))


def _encoded(kind: str, name: str, title: str, figure: Image.Image) -> Drawing:
    return Drawing(kind, name, title, encoded(figure, "png"), encoded(figure, "webp"))


# ---------------------------------------------------------------- tables

_SECTION = "How alike the maps are"
_TOP = f"IoU of the top {100 * TOP_SHARE:.0f} %"


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The tables; none where nothing was measured."""
    made = [
        agreement(comparison),
        agreement_by_scenario(comparison, "pearson", "Pearson's correlation by scenario"),
        agreement_by_scenario(comparison, "top_iou", f"{_TOP} by scenario"),
        localization(comparison),
        *([_pointing_by_scenario(comparison)] if comparison.localization else []),
        faithfulness(comparison),
        *([_drop_by_scenario(comparison)] if len(_scenarios(comparison)) > 2 else []),
        changes(comparison),
        cost_table(comparison.costs),
    ]
    return [table for table in made if table.rows]


def agreement(comparison: Comparison) -> Table:
    """Every measure of agreement over all pictures, for the pairs that are worth a row."""
    means = mean_agreement(comparison.images, UNCHANGED)
    names = ("pearson", "spearman", "raw", "top_iou", "box_iou")
    rows = [
        [
            *_pair(comparison, i, j),
            *(number(means[name].mean[i, j]) for name in names),
            str(int(means["pearson"].count[i, j])),
        ]
        for i, j in compared_pairs(comparison.columns)
    ]
    rules = "; ".join(f"{column}: {rule}" for column, rule in _rules(comparison).items())
    return Table(
        _SECTION,
        "Agreement of the heat maps of the compared class, all images",
        ["", "and", "Pearson", "Spearman", "Pearson of raw maps", _TOP, "IoU of boxes", "N"],
        rows,
        "Means over the N images on which neither heat map is empty, pixel by pixel; 1 is the same. Raw maps are"
        " signed, before the ReLU: where they agree fully, the methods differ by the ReLU alone. The top 20 % are the"
        " fifth of largest values of the image, boxes those of the largest region that each column's box rule cuts"
        f" ({rules}). That two methods agree does not say that either is right; upsampled maps are smooth, so even"
        " unlike ones correlate. Other"
        " pairs are in compare.json.",
        names=2,
    )


def _rules(comparison: Comparison) -> dict[str, BoxRule]:
    """The rule that cuts the boxes of each column."""
    rules = {network.name: box_rules(network.methods) for network in comparison.networks}
    return {str(column): rules[column.model][column.method] for column in comparison.columns}


def agreement_by_scenario(comparison: Comparison, measure: str, title: str) -> Table:
    """One measure of agreement, scenario by scenario."""
    split = groups(comparison.images)
    means = [mean_agreement(images, view)[measure].mean for view, images in split.values()]
    return Table(
        _SECTION,
        title,
        ["", "and", *(f"{name} (N {len(images)})" for name, (_, images) in split.items())],
        [
            [*_pair(comparison, i, j), *(number(mean[i, j]) for mean in means)]
            for i, j in compared_pairs(comparison.columns)
        ],
        f"Several instances: more than one box; small: one box of less than {100 * SMALL:.0f} % of the image. Class"
        " not present: both maps are of a class that is not there; mirrored and shifted: both of the changed input."
        " Where methods differ on the absent class, one of them shows evidence and the other what is salient. A"
        " scenario of few images says little.",
        names=2,
    )


def _pair(comparison: Comparison, i: int, j: int) -> tuple[str, str]:
    return str(comparison.columns[i]), str(comparison.columns[j])


def localization(comparison: Comparison) -> Table:
    """MaxBoxAcc and the pointing game beside the center."""
    split, hits = comparison.localization, mean_value(comparison.images, "pointing_15px")
    middle = nan_mean([image.center["pointing_15px"] for image in comparison.images])
    rows = [
        [*percents([row.accuracies[index] for row in split]), f"{threshold:.2f}", percent(hits.mean[index])]
        for index, threshold in enumerate(split[0].thresholds if split else [])
    ]
    rows = [[*row, str(int(hits.count[index]))] for index, row in enumerate(rows)]
    center = [*percents([row.center_accuracy for row in split]), MISSING, percent(middle.mean[0])]
    heads = [f"MaxBoxAcc, {row.group} (N {row.count})" for row in split]
    return Table(
        "Localization",
        "MaxBoxAcc and pointing game",
        ["", *heads, "threshold", "pointing", "N"],
        [*_labeled(comparison, rows), ["center, no network", *center, str(int(middle.count[0]))]] if rows else [],
        "MaxBoxAcc (Choe et al. 2020): the share of images on which the box of the largest region above one threshold"
        " has IoU >= 0.5 with a true box. The threshold is the best one for these very images, which flatters every"
        " method, more so on few; the center box is chosen likewise. Pointing: the largest value is less than"
        f" {POINTING_TOLERANCE:.0f} pixels of the first network's input from a box; a map without a peak misses.",
    )


def _pointing_by_scenario(comparison: Comparison) -> Table:
    return Table(
        "Localization",
        "Pointing game by scenario",
        *_by_scenario(comparison, "pointing_15px", ["center, no network"]),
        "The share of images whose largest value lies in a box or less than 15 pixels from it. `center` is the middle"
        " pixel, whatever is in the image; of several instances one is enough, which makes them the easier ones.",
    )


def faithfulness(comparison: Comparison) -> Table:
    """Average drop and increase."""
    means = [mean_value(comparison.images, name).mean for name in ("drop", "increase", "complexity")]
    rows = [[*percents([means[0][i], means[1][i]]), number(means[2][i])] for i in range(len(comparison.columns))]
    center = [nan_mean([image.center[name] for image in comparison.images]).mean for name in ("drop", "increase")]
    covered = center_gaussian(100, 100).mean()
    blobs = [
        [name, *percents([mean[index] for mean in center]), number(covered)]
        for index, name in enumerate(_blobs(comparison))
    ]
    return Table(
        "Faithfulness",
        f"What is left of the class where the image is masked by its heat map, N = {len(comparison.images)}",
        ["", "average drop", "increase", "mean of map"],
        [*_labeled(comparison, rows), *blobs],
        "Chattopadhay et al. 2018: the normalized image is multiplied by the heat map, so that what is low fades to"
        " the mean color. Average drop: the share of the class's probability that is lost, less is better; increase:"
        " how often it grows, more is better. Both reward maps that cover much, and networks never saw such images; a"
        " method that is not better than the center blob shows nothing by these figures.",
    )


def _drop_by_scenario(comparison: Comparison) -> Table:
    return Table(
        "Faithfulness",
        "Average drop by scenario",
        *_by_scenario(comparison, "drop", _blobs(comparison)),
        "Less is better, but a map that covers more of the image loses less: compare with the mean of the map.",
    )


def changes(comparison: Comparison) -> Table:
    """What mirroring, shifting and asking for another class do to the heat."""
    names = ("flip", "shift", "absent_correlation")
    means = [mean_value(comparison.images, name).mean for name in names]
    empty = mean_value(comparison.images, "absent_empty").mean
    rows = [[*(number(mean[i]) for mean in means), percent(empty[i])] for i in range(len(comparison.columns))]
    return Table(
        "Changed inputs, another class",
        f"Correlation with the heat map of the unchanged image and the compared class, N = {len(comparison.images)}",
        ["", "mirrored input", "shifted input", "class not present", "of it empty maps"],
        _labeled(comparison, rows),
        "Mirrored and shifted (by an eighth of the sides; what leaves the image is lost): 1 is a map that moves along"
        " with the image; the network and the grid of its map lower it as much as the method does. Class not present:"
        " near 1 is a method that highlights the same place for a class that is not there: what is salient, and not why"
        " it is this class. Near 0 or below is evidence that differs from class to class. Where all classes of a"
        " network are in an image, the least probable one is taken.",
    )


def _labeled(comparison: Comparison, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns' rows with their labels; methods that a network cannot serve say so, in their place."""
    by_column = {(column.model, column.method): row for column, row in zip(comparison.columns, rows, strict=True)}
    labeled = []
    for network in comparison.networks:
        for method in network.methods:
            row = by_column.get((network.name, method))
            blank = [network.refusal(method), *[MISSING] * (len(rows[0]) - 1)]
            labeled.append([f"{network.name}: {method}", *(blank if row is None else row)])
    return labeled


def _by_scenario(comparison: Comparison, value: str, centers: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a value in every scenario, in percent: of the columns, then of the centers by name."""
    split = _scenarios(comparison)
    means = [mean_value(images, value).mean for images in split.values()]
    center = [nan_mean([image.center[value] for image in images]).mean for images in split.values()]
    rows = [percents([mean[index] for mean in means]) for index in range(len(comparison.columns))]
    fixed = [[name, *percents([mean[index] for mean in center])] for index, name in enumerate(centers)]
    return ["", *(f"{name} (N {len(images)})" for name, images in split.items())], [*_labeled(comparison, rows), *fixed]


def _scenarios(comparison: Comparison) -> dict[str, list[ImageFigures]]:
    return {name: images for name, (view, images) in groups(comparison.images).items() if view == UNCHANGED}


def _blobs(comparison: Comparison) -> list[str]:
    """Names of the rows of a blob in the middle."""
    return [f"{network.name}: center blob" for network in comparison.networks]


# ---------------------------------------------------------------- pages

FIGURES = {
    "overview": ("At a glance", "All images, or the first twelve, on every network and method."),
    "compared": (
        "Heat maps of the compared class",
        """The same class for all networks and methods, named above each figure; below each heat map the range of the
        raw map, signed, in the method's own units, which differ between methods. The outlined box is the ground
        truth.""",
    ),
    "absent": (
        "A class that is not there",
        """Maps of the least probable class. Every map is scaled to its own largest value, so compare the raw ranges:
        the evidence for a class that is not there should be weak or negative, which these colors alone do not
        tell.""",
    ),
    "changed": (
        "Mirrored and shifted",
        """The heat map of the mirrored image, turned back, and of the image moved right and down by an eighth: the same
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


def to_html(page: Page) -> str:
    """One file that loads nothing from anywhere and needs no JavaScript."""
    return render(TEMPLATES / "compare.html.j2", page=page, sections=by_section(page.tables))


def to_markdown(page: Page) -> str:
    """The same, with the figures as files beside it."""
    lines = [f"# {markdown_text(page.title)}", "", markdown_text(page.subtitle), ""]
    for heading, note, drawings in page.galleries:
        lines += [f"## {heading}", "", note, ""]
        for drawing in drawings:
            lines += [f"![{markdown_text(drawing.title)}](figures/{drawing.name}.png)", ""]
    if page.omitted:
        lines += [f"{page.omitted} more images are in the tables and in compare.json only.", ""]
    lines += [*markdown_sections(page.tables), *markdown_facts(page.facts)]
    return shown("\n".join(lines), "\n") + "\n"


def to_json(comparison: Comparison, facts: Sequence[tuple[str, str]]) -> str:
    """All figures: by picture, by group of pictures, every pair of columns; NaN is null."""
    names = comparison.class_names
    document = {
        "schema_version": 2,
        "facts": dict(facts),
        "settings": {"top_share": TOP_SHARE, "small_object": SMALL},
        "box_rules": {column: rule.to_dict() for column, rule in _rules(comparison).items()},
        "models": [
            {"name": c.name, "source": c.source, "notes": c.notes, "cannot_serve": c.unserved}
            for c in comparison.networks
        ],
        "columns": [column._asdict() for column in comparison.columns],
        "images": [
            {
                "name": figures.name, "scenario": figures.scenario,
                "compared_class": names[figures.target], "absent_class": names[figures.absent],
                "boxes": None if figures.boxes is None else figures.boxes,
                "logits": figures.logits, "probabilities": figures.probabilities,
                "by_column": figures.values,
                "center": {key: value for key, value in figures.center.items() if key != "largest"},
            }
            for figures in comparison.images
        ],
        "groups": {
            name: {
                "count": len(own),
                "agreement": {key: asdict(pair) for key, pair in mean_agreement(own, view).items()},
                "by_column": {key: mean_value(own, key).mean for key in own[0].values} if view == UNCHANGED else {},
            }
            for name, (view, own) in groups(comparison.images).items()
        },
        "localization": [asdict(row) for row in comparison.localization],
        "cost": comparison.costs,
    }  # fmt: skip
    return json_text(json_values(document)) + "\n"
