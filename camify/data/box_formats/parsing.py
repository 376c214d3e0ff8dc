"""Files of boxes as text, JSON, XML and tables; what is wrong is named with file, place, field and remedy.

globox reads the same formats. It is no part of this: its errors name neither line nor field (assertions, KeyError,
"Syntax error in ..."), it reads in the encoding of the machine, expands entities, drops what is needed (``iscrowd``,
``IsGroupOf``, rotations, polygons) and takes VOC's numbers as they are. Tests compare with it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree as ET  # elements and their builder only; the parser is below
from xml.parsers import expat

from ...errors import DataError
from ...files import read_text
from ..csv_rows import csv_rows

__all__ = [
    "Line", "fail", "load_json", "load_xml", "number", "require", "require_list", "require_mapping", "size_of",
    "table_rows", "text", "words_of_lines",
]  # fmt: skip

_MOST = 1e9  # pixels, and more than any image has
_DEPTH = 100  # of nested XML elements


def fail(where: str, problem: str, cause: BaseException | None = None) -> NoReturn:
    """Refuse a file.

    Raises:
        DataError: always.
    """
    raise DataError(f"{where}: {problem}") from cause


# ---------------------------------------------------------------- values


def number(value: Any, field: str, where: str) -> float:
    """A finite number of JSON or of text.

    Raises:
        DataError: it is none, or larger than any image.
    """
    kind = type(value)
    try:
        if kind is Line and (not value.isascii() or "_" in value):
            raise ValueError
        if kind is not Line and kind is not int and kind is not float:
            raise TypeError
        given = float(value)
    except OverflowError:
        given = math.inf
    except (TypeError, ValueError) as error:
        fail(where, f"{field} is {_shown(value)}. A number is needed.", error)
    if not math.isfinite(given) or abs(given) > _MOST:
        fail(where, f"{field} is {_shown(value)}, which is no number of pixels. Correct it, or remove the box.")
    return given


class Line(str):
    """Text of a format that has no numbers of its own: a cell, a word, an attribute."""

    __slots__ = ()


def text(value: Any, field: str, where: str) -> str:
    """Text that is not empty and can be written as UTF-8.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        fail(where, f"{field} is {_shown(value)}. A text is needed.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        fail(where, f"{field} is {value!a}, which is no text that can be written.", error)
    if "\0" in value:
        fail(where, f"{field} is {value[:40]!a}, with a zero byte. Correct it.")
    return str(value)


def require(given: Mapping[str, Any], field: str, where: str) -> Any:
    """A field.

    Raises:
        DataError: it is missing; says what is there.
    """
    if field not in given:
        there = ", ".join(map(str, list(given)[:8])) or "nothing"
        fail(where, f"field {field!r} is missing (there is {there[:200]}). Add it, or give another kind.")
    return given[field]


def require_mapping(value: Any, field: str, where: str) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, dict):
        fail(where, f"{field} is {_shown(value)}. A JSON object is needed.")
    return value


def require_list(value: Any, field: str, where: str, length: int | None = None) -> list[Any]:
    """A JSON list, of so many values.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, list) or (length is not None and len(value) != length):
        wanted = "A list" if length is None else f"A list of {length} numbers"
        fail(where, f"{field} is {_shown(value)}. {wanted} is needed.")
    return value


def size_of(width: Any, height: Any, where: str) -> tuple[int, int]:
    """A stated image size.

    Raises:
        DataError: a side is no positive whole number.
    """
    sides = []
    for field, value in (("width", width), ("height", height)):
        side = number(value, field, where)
        if side != int(side) or side < 1:
            fail(where, f"{field} is {_shown(value)}. A whole number of pixels, 1 or more, is needed.")
        sides.append(int(side))
    return sides[0], sides[1]


def _shown(value: Any) -> str:
    kinds = {dict: "a JSON object", type(None): "null"}
    if type(value) in kinds:
        return kinds[type(value)]
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


# ---------------------------------------------------------------- JSON


def load_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8.

    Raises:
        DataError: it cannot be read, is no JSON, or is nested so deep that it cannot be read.
    """
    content = read_text(path)
    if not content.strip():
        fail(str(path), "is empty. Export it again.")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        cause = "it ends too early; export or download it again" if error.pos >= len(content.rstrip()) else "repair it"
        fail(f"{path}, line {error.lineno}", f"is no JSON ({error.msg}, column {error.colno}): {cause}.", error)
    except RecursionError as error:
        fail(str(path), "is JSON nested too deep to be read; files of boxes are not. Export it again.", error)
    except ValueError as error:  # a whole number of thousands of digits
        fail(str(path), f"holds a number that cannot be read ({error}). Correct it.", error)


# ---------------------------------------------------------------- XML


class Element(ET.Element):
    """An XML element that knows its line."""

    line: int = 0


def load_xml(path: Path) -> Element:
    """The root element of an XML file, each with its line. Entities are refused, not expanded.

    Raises:
        DataError: it cannot be read, is no XML, declares entities, or is nested too deep.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        fail(str(path), f"cannot be read ({error.strerror or error}).", error)
    if not content.strip():
        fail(str(path), "is empty. Export it again.")
    parser = expat.ParserCreate()
    builder: ET.TreeBuilder = ET.TreeBuilder(element_factory=Element)
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEPTH:
            fail(f"{path}, line {parser.CurrentLineNumber}", f"elements are nested more than {_DEPTH} deep.")
        element: Any = builder.start(tag, attributes)
        element.line = parser.CurrentLineNumber

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        fail(
            f"{path}, line {parser.CurrentLineNumber}",
            "declares entities, which can fill the memory and which no file of boxes needs. Remove them.",
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
        root: Any = builder.close()
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        hint = "it ends too early; export it again" if error.code in _CUT else "repair it, or save it as UTF-8"
        fail(f"{path}, line {error.lineno}", f"is no XML ({reason}, column {error.offset + 1}): {hint}.", error)
    except (AssertionError, LookupError, ValueError) as error:  # of an unknown encoding, or of what is left open
        fail(str(path), f"is no XML that can be read ({error}). Save it as UTF-8.", error)
    return root  # type: ignore[no-any-return]


_CUT = (
    expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS],
    expat.errors.codes[expat.errors.XML_ERROR_UNCLOSED_TOKEN],
    expat.errors.codes[expat.errors.XML_ERROR_PARTIAL_CHAR],
)


# ---------------------------------------------------------------- lines and tables


def words_of_lines(path: Path, separator: str | None = None) -> Iterator[tuple[int, list[Line]]]:
    """Number and words of each line that is not empty.

    Raises:
        DataError: the file cannot be read.
    """
    for number_of_line, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number_of_line, [Line(word.strip()) for word in line.split(separator)]


def table_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Line]]]:
    """Line number and cells of each row of a CSV table whose first line names the columns.

    Raises:
        DataError: it cannot be read, a column is missing, or a row has another number of cells.
    """
    try:
        rows = csv_rows(path)
    except csv.Error as error:
        fail(f"{path}, line 1", f"is no CSV ({error}). Save it again as CSV.", error)
    try:
        missing = [column for column in columns if column not in (rows.fieldnames or [])]
        if missing:
            fail(f"{path}, line 1", f"column {', '.join(missing)} is missing. The first line must name the columns.")
        for row in rows:
            if None in row or None in row.values():
                fail(f"{path}, line {rows.line_num}", "the number of cells is not that of the first line.")
            yield rows.line_num, {name: Line(cell) for name, cell in row.items()}
    except csv.Error as error:
        fail(f"{path}, line {rows.line_num}", f"is no CSV ({error}). Save it again as CSV.", error)
