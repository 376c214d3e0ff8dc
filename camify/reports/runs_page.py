"""Several runs side by side: figures, curves, and the same watched images at the end of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .html import render
from .run_page import STYLES, ImageTrack, RunReport, chart, line, number_text, of_figures, share_text

__all__ = ["render_runs"]

_CURVES = {
    "val/acc": ("Accuracy", share_text),
    "val/map": ("Mean average precision", share_text),
    "val/max_box_acc": ("Box accuracy", share_text),
    "val/grid_pointing": ("Grid pointing", share_text),
    "val/loss": ("Validation loss", number_text),
    "train/loss": ("Training loss", number_text),
}


def render_runs(reports: Sequence[RunReport]) -> str:
    """The page of several runs as one HTML text; it loads nothing from anywhere.

    Images are those that every run has watched, by their files where these are known, else by name and class; of each
    run the last epoch's picture is shown.

    Raises:
        DataError: the records of a run hold something else than figures.
    """
    with of_figures(*reports):
        return _page(reports)


def _page(reports: Sequence[RunReport]) -> str:
    names = [report.title for report in reports]
    if len(set(names)) < len(names):
        names = [f"{index}: {name}" for index, name in enumerate(names, 1)]
    shared = reports[0].baseline if len({report.baseline for report in reports}) == 1 else ("", None)  # on other data
    curves = [
        chart(
            title,
            [line(report.history, key, name) for name, report in zip(names, reports, strict=True)],
            text,
            top=1.0 if text is share_text else 0.0,
            baseline=shared if key == reports[0].quality[0] else ("", None),
        )
        for key, (title, text) in _CURVES.items()
        if any(key in row for report in reports for row in report.history)
    ]
    return render(
        Path(__file__).with_name("runs.html.j2"),
        {"percent": share_text, "number": number_text},
        runs=[
            (f"s{index % STYLES}", name, report)
            for index, (name, report) in enumerate(zip(names, reports, strict=True))
        ],
        charts=curves,
        images=_common(reports),
    )


def _common(reports: Sequence[RunReport]) -> list[tuple[str, list[ImageTrack]]]:
    """Watched images that all runs have, with each run's own; of one name may be other images."""
    watched = [[t for t in report.images if t.kind == "watched" and t.frames] for report in reports]
    by_file = all(track.sha256 for tracks in watched for track in tracks)
    tracks = [{t.sha256 if by_file else (t.name, t.true_class): t for t in own} for own in watched]
    return [(one.name, [own[key] for own in tracks]) for key, one in tracks[0].items() if all(key in t for t in tracks)]
