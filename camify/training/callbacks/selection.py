"""Which epoch to take: accuracy and quality of the maps do not rise together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["decline", "pareto_set"]

Figures = Mapping[str, float]


def pareto_set(history: Sequence[Figures], accuracy: str, quality: str) -> list[Figures]:
    """The epochs that no other epoch beats in accuracy without losing map quality, or the other way round.

    In the order of training; of epochs that are equal in both, the first. Epochs without one of the
    figures are left out.
    """
    known = [row for row in history if accuracy in row and quality in row]
    points = [(row[accuracy], row[quality]) for row in known]
    return [
        row
        for index, (row, point) in enumerate(zip(known, points, strict=True))
        if not any(_beats(other, point) for other in points) and point not in points[:index]
    ]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def decline(history: Sequence[Figures], accuracy: str, quality: str, margin: float = 0.01) -> Figures | None:
    """The epoch of the best maps, where the newest has higher accuracy and maps that are worse by more than ``margin``.

    Murtaza et al. 2025, "A Realistic Protocol for Evaluation of Weakly Supervised Object Localization": localization
    peaks early and decays while accuracy still rises.
    """
    known = [row for row in history if accuracy in row and quality in row]
    if not known:
        return None
    best, latest = max(known, key=lambda row: row[quality]), known[-1]
    fell = latest[quality] < best[quality] - margin and latest[accuracy] > best[accuracy]
    return best if fell else None
