"""Kinds of option values with their ranges: what is out of range is refused while the command line is read."""

from __future__ import annotations

import re
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

from ..errors import ConfigError
from ..preprocessing import LARGEST_SIDE, sides_of

__all__ = ["Count", "Number", "PictureSize", "Seed", "Share", "Sides"]

Count: Any = PositiveInt
Number: Any = NonNegativeInt
Seed: Any = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)], docstring="of random draws")
Share: Any = restricted_number_type("Share", float, [(">=", 0), ("<", 1)], docstring="of a whole, not all of it")


class _Sides:
    """Parses an input size; says its name in the help."""

    def __call__(self, given: Any) -> int | tuple[int, int] | None:
        """One number, or height and width, of ``224``, ``96x128``, ``96,128`` or ``[96,128]``."""
        if given is None or given == "null":
            return None
        numbers: Any = tuple(given) if isinstance(given, list | tuple) else (given,)
        if isinstance(given, str):
            parts = re.split(r"\s*[x,]\s*", given.strip().strip("[]()").strip())
            numbers = tuple(int(part) if part.isdecimal() else part for part in parts)
        size = numbers[0] if len(numbers) == 1 else numbers
        whole = sides_of(size)
        if whole is None:
            raise ConfigError(
                f'"input_size" {given!r}: expected one number or HEIGHTxWIDTH, whole, of 1 to {LARGEST_SIDE} pixels.'
            )
        return size if isinstance(size, int) else whole

    def __repr__(self) -> str:
        return "pixels, or HEIGHTxWIDTH"


Sides: Any = _Sides()


class _PictureSize:
    """Parses the size of a picture; says its name in the help."""

    def __call__(self, given: Any) -> int | str:
        """A number of pixels, or ``original``."""
        text = str(given)
        return int(text) if text.isdecimal() else text  # what cannot be is refused by ``ExplainOptions``

    def __repr__(self) -> str:
        return "pixels, or original"


PictureSize: Any = _PictureSize()
