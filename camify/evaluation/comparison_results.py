"""What a comparison ends in: everything that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .comparison_summary import LocalisationRow
from .image_figures import Finding
from .network import Contender
from .views import Column

__all__ = ["Comparison", "refusal"]


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


def refusal(contender: Contender, method: str) -> str:
    """In few words why a network has no map of a method."""
    return "needs conversion" if "camify.convert" in contender.unserved.get(method, "") else "cannot be served"
