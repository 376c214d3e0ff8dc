"""Tables of texts, shown in a terminal, as Markdown and as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..console import fixed, shown

__all__ = [
    "MISSING", "Table", "by_section", "json_values", "markdown_facts", "markdown_line", "markdown_sections",
    "markdown_text", "number", "percent", "percents", "text_tables",
]  # fmt: skip

MISSING = "–"  # noqa: RUF001 -- an en dash is what a missing value is shown as


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


def number(value: Tensor | float) -> str:
    """A figure with two decimals."""
    return fixed(float(value), 2) if math.isfinite(float(value)) else MISSING


def percent(value: Tensor | float) -> str:
    """A share, 0 to 1, in percent."""
    return f"{100 * float(value):.0f} %" if math.isfinite(float(value)) else MISSING


def percents(values: Sequence[Tensor | float]) -> list[str]:
    """Shares in percent."""
    return [percent(value) for value in values]


def _markdown_table(table: Table) -> list[str]:
    rule = [*["---"] * table.names, *["---:"] * (len(table.head) - table.names)]
    return [
        f"**{markdown_text(table.title)}**",
        "",
        markdown_line(table.head),
        markdown_line(rule, escape=False),
        *(markdown_line(row) for row in table.rows),
        "",
        shown(table.note),
        "",
    ]


def text_tables(tables: Sequence[Table], most_rows: int = 20, width: int = 80) -> str:
    """Tables as plain text: columns of equal width, names at the left, numbers at the right; of many rows the first.

    A table that is wider than so many columns goes on below, with its names again.
    """
    lines: list[str] = []
    for table in tables:
        cells = [[shown(cell) for cell in row] for row in (table.head, *table.rows[:most_rows])]
        widths = [max(len(row[index]) for row in cells) for index in range(len(table.head))]
        lines.append(shown(f"{table.section}: {table.title}"))
        for columns in _parts(widths, table.names, width):
            for row in cells:
                aligned = (
                    row[index].ljust(widths[index]) if index < table.names else row[index].rjust(widths[index])
                    for index in columns
                )
                lines.append(f"  {'  '.join(aligned)}".rstrip())
            lines.append("")
        left = len(table.rows) - most_rows
        if left > 0:
            lines[-1:] = [f"  ... and {left} more", ""]
    return "\n".join(lines)


def _parts(widths: Sequence[int], names: int, width: int) -> list[list[int]]:
    """The columns of a table in parts that fit a width; each begins with those that name a row."""
    head = list(range(names))
    parts, room = [list(head)], 0
    for index in range(names, len(widths)):
        needed = widths[index] + 2
        if room < needed and len(parts[-1]) > names:
            parts.append(list(head))
        if parts[-1] == head:
            room = width - sum(widths[name] + 2 for name in head)
        parts[-1].append(index)
        room -= needed
    return parts


def by_section(tables: Sequence[Table]) -> dict[str, list[Table]]:
    """Tables by the heading of their section, in order."""
    names = dict.fromkeys(table.section for table in tables)
    return {name: [table for table in tables if table.section == name] for name in names}


def markdown_sections(tables: Sequence[Table]) -> list[str]:
    """Lines of Markdown: tables under the headings of their sections."""
    lines = []
    for section, section_tables in by_section(tables).items():
        lines += [f"## {section}", "", *(line for table in section_tables for line in _markdown_table(table))]
    return lines


def markdown_facts(facts: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of Markdown: how something was made."""
    listed = (f"- {markdown_text(label)}: {markdown_text(text)}" for label, text in facts)
    return ["## How it was made", "", *listed]


def json_values(value: Any) -> Any:
    """JSON values: tensors as lists, floats of six digits, what is not finite as None."""
    if isinstance(value, Tensor):
        return json_values(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def markdown_line(cells: Sequence[str], *, escape: bool = True) -> str:
    """A row of a table."""
    return "| " + " | ".join(markdown_text(cell) if escape else cell for cell in cells) + " |"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = shown(" ".join(text.split()))
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", line)
