"""The rows of a CSV table, as spreadsheets of all countries write it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..files import read_text

__all__ = ["csv_rows"]

_SEPARATORS = ",;\t"
"""Between cells. Where numbers have a decimal comma, spreadsheets put semicolons there."""


def csv_rows(path: Path) -> csv.DictReader[str]:
    """Rows by the names in the first line, whose most frequent separator is the table's.

    Blanks around names and before cells are left out. ``reader.dialect.delimiter`` is the separator.

    Raises:
        DataError: the file is not there, or no UTF-8.
        csv.Error: the first line is no CSV.
    """
    text = read_text(path)
    first = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
    return rows
