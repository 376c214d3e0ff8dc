"""The page of a run: one HTML file that works from disk, without a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from jinja2 import TemplateError

from ..errors import DataError
from .html import render
from .tables import MISSING

__all__ = [
    "Frame",
    "ImageTrack",
    "RunReport",
    "chart",
    "known",
    "line",
    "number_text",
    "of_figures",
    "render_page",
    "share_text",
]

LOSSES = {"train/loss": "training", "val/loss": "validation"}
KINDS = {
    "watched": ("Watched images", "The same images in every epoch, one color scale per image for all epochs."),
    "mistakes": ("Confident mistakes", "Wrong, and most sure of it, in this epoch."),
    "beside": ("Beside the object", "The least of the true class's evidence lies on the object, in this epoch."),
    "changed": ("Changed most", "The true class's map moved most since the epoch before."),
}
WIDTH, HEIGHT = 520, 280  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 48, 374, 14, 232  # of the area between its axes; labels stand to the right
LABEL_STEP = 17  # least distance of two labels
STYLES = 6  # colors of lines

Line = tuple[str, list[tuple[float, float]]]
"""A name and its points (epoch, value)."""


class Frame(NamedTuple):
    """One image in one epoch by one explanation method.

    Attributes:
        epoch: from 0.
        picture: encoded, PNG or WebP; of the true class.
        caption: what the network said.
        method: name of the explanation method; ``""`` where it is not known.
        predicted: the same of the predicted class, where that is another one.
    """

    epoch: int
    picture: bytes
    caption: str
    method: str = ""
    predicted: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of its pictures."""
        return len(self.picture) + len(self.predicted or b"")


@dataclass(frozen=True)
class ImageTrack:
    """One image over the epochs.

    Attributes:
        name: name of the image.
        true_class: its true class.
        frames: of each method, in the order of epochs.
        strips: one encoded picture of all epochs by method; empty where there is none.
        kind: ``"watched"``, or why the image was shown in its one epoch: a key of ``KINDS``.
        sha256: of its file; ``""`` where that is not known.
    """

    name: str
    true_class: str
    frames: Sequence[Frame]
    strips: Mapping[str, bytes]
    kind: str = "watched"
    sha256: str = ""

    @property
    def latest(self) -> Frame:
        """The last epoch's, by the first method."""
        return [frame for frame in self.frames if frame.method == self.frames[0].method][-1]


@dataclass(frozen=True)
class RunReport:
    """What the page of a run tells; all text is shown as text, never as markup.

    Attributes:
        title: name of the run.
        finished: whether training has ended; until then the page reloads itself.
        subtitle: what was trained on what, in one line.
        certificate: ``rows``, each with ``part``, ``status`` (kept, dropped or new), ``layers`` and
            ``parameters``, and ``facts``, texts by label.
        results: rows of the before/after table, the legacy model first and, once finished, the new one
            last: ``name``, ``score``, ``quality`` and ``objects`` (0 to 1, or None) and ``note``.
        quality: key in the history, and name, of the figure of the maps.
        baseline: name of what that figure must beat, and its value on the same data, 0 to 1, or None.
        history: one mapping of metrics per epoch, each with ``epoch``.
        images: those that are shown.
        config: the run's configuration, YAML.
        environment: versions and machine, texts by label.
        commands: (what it does, command) to go on with.
        score: key in the history, and name, of the figure of the classes.
        objects: key in the history, and name, of the figure of object maps, which must beat the same; None where there
            are none.
        boxes: how the exported network cuts its boxes, and how often they are right; empty before it is there.
        classes: which class is taken for which, as ``class_view`` makes it; None where that is not known.
    """

    title: str
    finished: bool
    subtitle: str
    certificate: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    quality: tuple[str, str]
    baseline: tuple[str, float | None]
    history: Sequence[Mapping[str, float]]
    images: Sequence[ImageTrack]
    config: str
    environment: Mapping[str, str]
    commands: Sequence[tuple[str, str]]
    score: tuple[str, str] = ("val/acc", "accuracy")
    objects: tuple[str, str] | None = None
    boxes: str = ""
    classes: Mapping[str, Any] | None = None


@contextmanager
def of_figures(*reports: RunReport) -> Iterator[None]:
    """While a page is made of the records of runs, says in one sentence that they are none.

    Raises:
        DataError: they hold something else than figures.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, TemplateError) as error:
        raise DataError(
            f"{', '.join(report.title for report in reports)}: results.json or overlays/index.json holds something else"
            f" than figures ({type(error).__name__}: {error}). Was it damaged, or changed by hand?"
        ) from error


def render_page(report: RunReport) -> str:
    """The page of ``report`` as one HTML text; it loads nothing from anywhere.

    Raises:
        DataError: the run's records hold something else than figures.
    """
    with of_figures(report):
        return _page(report)


def _page(report: RunReport) -> str:
    latest = report.history[-1] if report.history else {}
    newest = report.results[-1] if report.finished and len(report.results) > 1 else {}
    key = report.quality[0]
    watched = [track for track in report.images if track.kind == "watched"]
    methods = list(dict.fromkeys(frame.method for track in watched for frame in track.frames))
    frames = [frame for track in report.images for frame in track.frames]
    kinds = [(kind, *words) for kind, words in KINDS.items() if any(track.kind == kind for track in report.images)]
    return render(
        Path(__file__).with_name("page.html.j2"),
        {"percent": share_text, "number": number_text},
        report=report,
        newest=newest,
        before=report.results[0] if report.results else {},
        score=newest.get("score", latest.get(report.score[0])),
        quality=newest.get("quality", latest.get(key)),
        measured=report.score[0] == "val/acc" or any(key in row for row in report.history),  # else it never is
        kinds=kinds,
        epochs=sorted({frame.epoch for frame in frames}),
        methods=methods,
        method_choices=[(name, name) for name in methods],
        has_predicted=any(frame.predicted is not None for frame in frames),
        metrics=sorted({key for row in report.history for key in row} - {"epoch"}),
        charts=[
            chart("Loss", [line(report.history, *item) for item in LOSSES.items()], number_text),
            chart(
                report.score[1].capitalize(),
                [line(report.history, *figure) for figure in (report.score, report.quality, report.objects) if figure],
                share_text,
                top=1.0,
                baseline=report.baseline,
            ),
        ],
    )


def line(history: Sequence[Mapping[str, float]], key: str, name: str) -> Line:
    """A metric over the epochs; the line goes straight over epochs without a value."""
    return name, [(row["epoch"], row[key]) for row in history if known(row.get(key))]


def chart(
    title: str,
    lines: Sequence[Line],
    text: Callable[[float | None], str],
    *,
    top: float = 0.0,
    baseline: tuple[str, float | None] = ("", None),
) -> dict[str, Any]:
    """What the template needs to draw a chart: sizes, ticks, lines and labels, in the chart's units.

    Args:
        title: heading of the chart.
        lines: what is drawn, each with its name.
        text: how a value is written.
        top: least upper end of the value axis.
        baseline: name and value of the dashed line.
    """
    styled = [(f"s{i % STYLES}", name, points) for i, (name, points) in enumerate(lines)]
    epochs = [epoch for _, points in lines for epoch, _ in points] or [0]
    values = [top, 0.0, *(value for _, points in lines for _, value in points)]
    first, span = min(epochs), max(epochs) - min(epochs)
    step = _step(max(values) - min(values), 5)
    low, high = math.floor(min(values) / step), max(1, math.ceil(max(values) / step - 1e-9))

    def x(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * (epoch - first) / max(1, span)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value / step - low) / (high - low)

    labels = [(y(p[-1][1]), style, f"{name} {text(p[-1][1])}") for style, name, p in styled if p]
    rule, least = baseline
    if known(least):
        labels.append((y(least), "rule", f"{rule} {text(least)}"))
    return {
        "title": title,
        "size": (WIDTH, HEIGHT),
        "area": (LEFT, RIGHT, TOP, BOTTOM),
        "lines": [
            (style, [(x(e), y(v), f"epoch {e:g}, {name}: {text(v)}") for e, v in points])
            for style, name, points in styled
        ],
        "rule": y(least) if known(least) else None,
        "labels": _spread(labels),
        "x_ticks": [(x(e), f"{e:g}") for e in range(int(first), int(max(epochs)) + 1, math.ceil(_step(span, 8)))],
        "y_ticks": [(y(i * step), text(i * step).replace(".0 ", " ")) for i in range(low, high + 1)],
    }


def _spread(labels: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The labels (y, style, text) from top to bottom, moved down where they would overlap."""
    placed: list[tuple[float, str, str]] = []
    for y, style, text in sorted(labels):
        placed.append((max(y, placed[-1][0] + LABEL_STEP) if placed else y, style, text))
    return placed


def _step(span: float, ticks: int) -> float:
    """The least of 1, 2, 5, 10, ... times a power of ten that covers ``span`` in ``ticks`` steps."""
    least = span / ticks if span > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next((m * power for m in (1, 2, 5) if m * power >= least * (1 - 1e-9)), 10 * power)


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a value, and a finite one."""
    return value is not None and math.isfinite(value)


def share_text(value: float | None) -> str:
    """A share, 0 to 1, in percent."""
    return f"{100 * value:.1f} %" if known(value) else MISSING


def number_text(value: float | None) -> str:
    """A number with four digits."""
    return f"{value:.4g}" if known(value) else MISSING
