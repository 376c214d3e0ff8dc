"""Kinds of option values with their ranges: what is out of range is refused while the command line is read."""

from __future__ import annotations

from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

from ..preprocessing import LARGEST_SIDE

__all__ = ["Count", "Number", "Seed", "Share", "Side"]

Count: Any = PositiveInt
Number: Any = NonNegativeInt
Side: Any = restricted_number_type("Side", int, [(">=", 1), ("<=", LARGEST_SIDE)], docstring="pixels")
Seed: Any = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)], docstring="of random draws")
Share: Any = restricted_number_type("Share", float, [(">=", 0), ("<", 1)], docstring="of a whole, not all of it")
