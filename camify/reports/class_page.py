"""The part of a page that shows which class is taken for which: a confusion matrix with the images behind its cells.

It is SVG and links: it can be read and used without JavaScript, by keyboard and by screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import east_asian_width

from ..drawing.primitives import font, one_line, shortened
from ..errors import DataError

__all__ = ["MISSED", "WRONG", "Example", "class_view", "confusion_sentences"]

MOST_SHOWN = 20
"""Classes in the matrix, those of the most confusions; all others together are one more."""
_SENTENCES = 6
_CELL, _LEAST_LABEL, _LABEL, _BESIDE = 34, 96, 150, 12  # a cell's side, room for a label, of it empty: units
_LETTER_SIZE = 13  # of labels
_CHART, _ROOM = 240, 44  # side of the calibration chart, room for its numbers
_MOST_ROWS = 200  # of the table of confusions
_STYLES = 6  # colors of lines
_OPEN = 12  # rows of a table that is shown at once

Pair = tuple[int, int]
"""A true and a predicted class; of labels that do not exclude each other, a label and ``MISSED`` or ``WRONG``."""
MISSED, WRONG = -1, -2
"""In the place of the predicted class: the label was missed, or wrongly found."""


@dataclass(frozen=True)
class Example:
    """An image behind a cell, with its maps.

    Attributes:
        true: number of its class.
        predicted: number of the predicted one; or ``MISSED`` or ``WRONG``.
        picture: encoded: the image, the map of the predicted class and that of the true one.
        caption: its name and what the network said.
    """

    true: int
    predicted: int
    picture: bytes
    caption: str


def class_view(
    figures: Mapping[str, Any],
    examples: Sequence[Example],
    images: str,
    calibrations: Mapping[str, Mapping[str, Any]],
    note: str = "",
) -> dict[str, Any]:
    """What the template ``classes.html.j2`` needs.

    Args:
        figures: as ``evaluation.class_figures`` makes them, or of labels that do not exclude each other, without
            ``pairs``.
        examples: the images behind the cells.
        images: what the figures are of, in words.
        calibrations: by network, ``error`` and ``bins``.
        note: why there are no images behind the cells, where there are none.
    """
    confusion, behind = _Confusion.of(figures), _behind(examples)
    names, pairs = confusion.names, confusion.pairs
    mistakes = confusion.mistakes()
    return {
        "images": images,
        "matrix": _matrix(confusion, behind) if pairs else None,
        "sentences": [(confusion.sentence(pair), _target(pair, behind)) for pair in mistakes[:_SENTENCES]],
        "cells": _cells(confusion, behind) if pairs else _label_cells(figures, behind),
        "confusions": [
            (names[t], names[p], pairs[t, p], _share(pairs[t, p], confusion.totals[t]), _target((t, p), behind))
            for t, p in mistakes[:_MOST_ROWS]
        ],
        "confusion_count": len(mistakes),
        "classes": _class_rows(names, figures["classes"], behind),
        "open": len(figures["classes"]) <= _OPEN,
        "has_labels": any("missed" in row for row in figures["classes"]),
        "calibration": _calibration(calibrations),
        "note": note,
    }


def confusion_sentences(figures: Mapping[str, Any], most: int = _SENTENCES) -> list[str]:
    """The most frequent confusions in words."""
    confusion = _Confusion.of(figures)
    return [confusion.sentence(pair) for pair in confusion.mistakes()[:most]]


# ---------------------------------------------------------------- confusion


@dataclass(frozen=True)
class _Confusion:
    """Names of all classes, images by true and predicted class, and by true class alone."""

    names: Sequence[str]
    pairs: Mapping[Pair, int]
    totals: Mapping[int, int]

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> _Confusion:
        pairs = {(int(t), int(p)): int(n) for t, p, n in figures.get("pairs", ())}
        totals: dict[int, int] = {}
        for (true, _), count in pairs.items():
            totals[true] = totals.get(true, 0) + count
        return cls(figures["names"], pairs, totals)

    def mistakes(self) -> list[Pair]:
        """Those of the most images first."""
        wrong = [pair for pair in self.pairs if pair[0] != pair[1]]
        return sorted(wrong, key=lambda pair: (-self.pairs[pair], self.totals[pair[0]], pair))

    def sentence(self, pair: Pair) -> str:
        """A confusion in words."""
        count, total = self.pairs[pair], self.totals[pair[0]]
        of = f"{count} of {total} image{'s' * (total != 1)} of {self.names[pair[0]]} ({_share(count, total)})"
        return f"{of} {'was' if count == 1 else 'were'} taken for {self.names[pair[1]]}"

    def order(self) -> list[int]:
        """The classes, those of the most mistakes first."""
        mistakes: dict[int, int] = {}
        for (true, predicted), count in self.pairs.items():
            for k in (true, predicted):
                mistakes[k] = mistakes.get(k, 0) + (count if true != predicted else 0)
        return sorted(mistakes, key=lambda k: (-mistakes[k], -self.totals.get(k, 0), k))


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %" if total else ""


def _target(pair: Pair, behind: Mapping[Pair, Sequence[Example]]) -> str:
    return f"#cell-{pair[0]}-{pair[1]}" if pair in behind else ""


def _behind(examples: Sequence[Example]) -> dict[Pair, list[Example]]:
    behind: dict[Pair, list[Example]] = {}
    for example in examples:
        behind.setdefault((example.true, example.predicted), []).append(example)
    return behind


def _cells(confusion: _Confusion, behind: Mapping[Pair, Sequence[Example]]) -> list[dict[str, Any]]:
    """The cells with images, confusions first, the most frequent ones first."""
    names, pairs = confusion.names, confusion.pairs
    cells = []
    for pair in sorted(behind, key=lambda pair: (pair[0] == pair[1], -pairs.get(pair, 0), pair)):
        right, count, shown = pair[0] == pair[1], pairs.get(pair, 0), len(behind[pair])
        what = "recognized" if right else f"taken for {names[pair[1]]}"
        which = "the least certain first" if right else "the most certain first"
        cells.append(
            {
                "id": f"cell-{pair[0]}-{pair[1]}",
                "title": f"{names[pair[0]]}, {what}: {count} of {confusion.totals.get(pair[0], 0)}",
                "note": f"{'All' if shown == count else f'{shown} of {count}'} shown, {which}.",
                "examples": behind[pair],
            }
        )
    return cells


def _label_cells(figures: Mapping[str, Any], behind: Mapping[Pair, Sequence[Example]]) -> list[dict[str, Any]]:
    """The labels with images that were missed or wrongly found, the most frequent mistakes first."""
    rows = {row["class"]: row for row in figures["classes"]}
    counts = {pair: rows[pair[0]]["missed" if pair[1] == MISSED else "wrong"] for pair in behind}
    cells = []
    for pair in sorted(behind, key=lambda pair: (-counts[pair], pair)):
        what, count, shown = "missed" if pair[1] == MISSED else "wrongly found", counts[pair], len(behind[pair])
        cells.append(
            {
                "id": _target(pair, behind)[1:],
                "title": f"{figures['names'][pair[0]]}, {what}: {count} image{'s' * (count != 1)}",
                "note": f"{'All' if shown == count else f'{shown} of {count}'} shown, the most certain first.",
                "examples": behind[pair],
            }
        )
    return cells


def _matrix(confusion: _Confusion, behind: Mapping[Pair, Sequence[Example]]) -> dict[str, Any]:
    """Sizes, labels and cells of the drawing, in its own units."""
    names, pairs, order = confusion.names, confusion.pairs, confusion.order()
    shown = order if len(order) <= MOST_SHOWN else order[: MOST_SHOWN - 1]
    rest = len(order) - len(shown)
    places = {k: place for place, k in enumerate(shown)}
    titles = [names[k] for k in shown] + ([f"{rest} other classes"] if rest else [])
    sums: dict[tuple[int, int], int] = {}
    targets: dict[tuple[int, int], str] = {}  # of several classes together the most frequent confusion's
    for (true, predicted), count in sorted(pairs.items(), key=lambda item: (item[0][0] == item[0][1], -item[1])):
        place = (places.get(true, len(shown)), places.get(predicted, len(shown)))
        sums[place] = sums.get(place, 0) + count
        if place not in targets and (true, predicted) in behind:
            targets[place] = _target((true, predicted), behind)
    totals = [sum(n for (row, _), n in sums.items() if row == place) for place in range(len(titles))]
    labels = max(_LEAST_LABEL, _BESIDE + math.ceil(max(_width(_shortened(title)) for title in titles)))
    cells = []
    for (row, column), count in sorted(sums.items()):
        single = row < len(shown) and column < len(shown)
        # Among the others, what is right cannot be told from what is not.
        kind = ("right" if row == column else "wrong") if single or row != column else "others"
        share = count / totals[row]
        verb = "recognized" if kind == "right" else f"taken for {titles[column]}"
        cells.append(
            {
                "x": labels + column * _CELL,
                "y": labels + row * _CELL,
                "kind": kind,
                "depth": f"{8 + 80 * share:.0f}",
                "count": _short_count(count),
                "share": f"{100 * share:.0f}",
                "title": f"{titles[row]}, {verb}: {count} of {totals[row]} ({_share(count, totals[row])})",
                "target": targets.get((row, column), ""),
            }
        )
    side = labels + len(titles) * _CELL
    return {
        "size": (math.ceil(side + 1), math.ceil(side + 1)),
        "origin": labels,
        "cell": _CELL,
        "rows": [(labels - 8, labels + (i + 0.5) * _CELL, _shortened(t), t) for i, t in enumerate(titles)],
        "columns": [(labels + (i + 0.5) * _CELL, labels - 8, _shortened(t), t) for i, t in enumerate(titles)],
        "lines": [labels + i * _CELL - 1 for i in range(len(titles) + 1)],
        "cells": cells,
        "rest": rest,
        "classes": len(order),
        "other_classes": len(names) - len(order),
    }


def _shortened(title: str) -> str:
    """As it fits beside the matrix."""
    letters = _widest(title)
    fitting = shortened(letters, _LABEL - _BESIDE, font(_LETTER_SIZE, bold=False))
    return title if len(fitting) == len(letters) else f"{title[: len(fitting) - 1]}…"


def _width(text: str) -> float:
    return font(_LETTER_SIZE, bold=False).getlength(_widest(text))


def _widest(text: str) -> str:
    """Text of the same width in a font that is wider than what browsers use and has no letters of East Asia."""
    return "".join("W" if east_asian_width(char) in "WF" else char for char in one_line(text))


def _short_count(count: int) -> str:
    """As it fits a cell."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


# ---------------------------------------------------------------- by class


def _class_rows(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], behind: Mapping[Pair, Sequence[Example]]
) -> list[dict[str, Any]]:
    """Those of the lowest F1 first; classes without one last."""

    def key(row: Mapping[str, Any]) -> tuple[float, int]:
        return (math.inf if row.get("f1") is None else float(row["f1"]), int(row["class"]))

    return [
        {
            **row,
            "name": names[row["class"]],
            "missed_target": _target((row["class"], MISSED), behind),
            "wrong_target": _target((row["class"], WRONG), behind),
        }
        for row in sorted(rows, key=key)
    ]


# ---------------------------------------------------------------- calibration


def _calibration(calibrations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Lines of confidence against share of right answers, in the units of the drawing; None where nothing is known."""
    lines = []
    for index, (name, calibration) in enumerate(calibrations.items()):
        dots, total = [], max(1, sum(row[0] for row in calibration["bins"]))
        for place, (count, confidence, right) in enumerate(calibration["bins"]):
            if count <= 0:
                continue
            mean, share = confidence / count, right / count
            if not (0 <= mean <= 1 and 0 <= share <= 1):
                raise DataError(f"calibration of {name}: part {place} holds no shares.")
            text = f"{name}: {count:.0f} of confidence {mean:.2f}, {100 * share:.0f} % of them right"
            radius = 2.5 + 6 * math.sqrt(count / total)  # its area says how many they are
            dots.append((_ROOM + _CHART * mean, 8 + _CHART * (1 - share), radius, text))
        error = calibration["error"]
        if dots and error is not None:
            lines.append((f"s{index % _STYLES}", f"{name}: {100 * error:.1f} %", dots))
    if not lines:
        return None
    ticks = [(i / 4, f"{i / 4:g}") for i in range(5)]
    return {
        "size": (_ROOM + _CHART + 16, _CHART + 56),
        "area": (_ROOM, _ROOM + _CHART, 8, 8 + _CHART),
        "x_ticks": [(_ROOM + _CHART * share, text) for share, text in ticks],
        "y_ticks": [(8 + _CHART * (1 - share), text) for share, text in ticks],
        "lines": lines,
    }
