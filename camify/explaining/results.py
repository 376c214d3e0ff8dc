"""What a comparison ends in: everything measured, and tables of texts with how to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .contenders import Contender
from .findings import Finding
from .looking import Column
from .summary import LocalisationRow

__all__ = ["MISSING", "Comparison", "Table", "count", "number", "percent", "percents", "refusal"]

MISSING = "–"  # noqa: RUF001 -- an en dash is what a missing value is shown as


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        contenders: the networks.
        columns: methods on networks, in the order of every (M,) and (M, M).
        class_names: in order.
        findings: of every picture.
        localisation: MaxBoxAcc, over all pictures and by scenario.
        costs: by network, as ``method_costs`` gives them.
    """

    contenders: Sequence[Contender]
    columns: Sequence[Column]
    class_names: Sequence[str]
    findings: Sequence[Finding]
    localisation: Sequence[LocalisationRow]
    costs: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        section: heading that it stands under.
        title: what it shows.
        head: of the columns.
        rows: as many texts as the head has.
        note: how to read it, and its limits.
        names: number of columns at the left that name a row; all others are numbers.
    """

    section: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    names: int = 1


def refusal(contender: Contender, method: str) -> str:
    """In few words why a network has no map of a method."""
    return "needs conversion" if "camify.convert" in contender.unserved.get(method, "") else "cannot be served"


def number(value: Tensor | float) -> str:
    """A figure with two decimals."""
    return f"{float(value):.2f}" if math.isfinite(float(value)) else MISSING


def percent(value: Tensor | float) -> str:
    """A share, 0 to 1, in percent."""
    return f"{100 * float(value):.0f} %" if math.isfinite(float(value)) else MISSING


def percents(values: Sequence[Tensor | float]) -> list[str]:
    """Shares in percent."""
    return [percent(value) for value in values]


def count(value: Tensor | int) -> str:
    """A whole number."""
    return str(int(value))
