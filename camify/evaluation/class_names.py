"""Lists of class names in files: lines of text, and JSON as Keras and others keep it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import warn
from ..errors import DataError
from ..files import read_text

__all__ = ["read_class_names"]

_LONG = 100  # names, of which one in a hundred may stand there again: public lists of ImageNet have two cranes
_FORMS = (
    'Known forms: ["tench", ...], {"0": "tench", ...}, {"0": ["n01440764", "tench"], ...}, {"tench": 0, ...}; or a text'
    " file with a line for each class."
)


def read_class_names(file: str | Path, counts: Sequence[int] = ()) -> list[str]:
    """Class names in the order of a network's logits: the lines of a text file (UTF-8), or JSON.

    A long list may hold a few names twice, as that of ImageNet does; they are numbered apart, with a warning.

    Args:
        file: its JSON may be a list, or a dict by index (of names, or of pairs of id and name), or indices by name.
        counts: how many names there may be; empty: any number.

    Raises:
        DataError: the file cannot be read, holds an empty line or a name twice, or another number of names.
    """
    path = Path(file)
    text = read_text(path)
    is_json = path.suffix.lower() == ".json" or _is_json(text)
    names = _of_json(path, text) if is_json else [line.strip() for line in text.splitlines()]
    place = "entry" if is_json else "line"
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{file}, {place} {number}: {name!r} is empty. Every class needs a name of its own.")
    names = _apart(path, names, place)
    if counts and len(names) not in counts:
        raise DataError(f"{file}: holds {len(names)} names, and the network has {counts[0]} classes.")
    return names


def _is_json(text: str) -> bool:
    """Whether a text is a list or dict in JSON, whatever its file is called; a class may be called [unknown]."""
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def _of_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). {_FORMS}") from error
    if isinstance(content, list):
        return [_name(path, entry) for entry in content]
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: holds no class names. {_FORMS}")
    if all(isinstance(index, int) and not isinstance(index, bool) for index in content.values()):
        by_index = {str(index): name for name, index in content.items()}
    else:
        by_index = content
    missing = [str(index) for index in range(len(content)) if str(index) not in by_index]
    if missing:
        raise DataError(f"{path}: holds {len(content)} classes, and none of index {missing[0]}. {_FORMS}")
    return [_name(path, by_index[str(index)]) for index in range(len(by_index))]


def _name(path: Path, entry: Any) -> str:
    """A name, or the second of a pair of id and name."""
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    if not isinstance(name, str):
        raise DataError(f"{path}: {str(entry)[:80]!r} is no class name. {_FORMS}")
    return name.strip()


def _apart(path: Path, names: Sequence[str], place: str) -> list[str]:
    """The names; in a long list those that stand there several times with their index.

    Raises:
        DataError: too many do, or the list is short.
    """
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        return list(names)
    again = next(number for number, name in enumerate(names, 1) if name in names[: number - 1])
    apart = [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]
    repeated = len(names) - len(counts)
    if len(names) < _LONG or repeated * 100 > len(names) or len(set(apart)) < len(apart):
        raise DataError(
            f"{path}, {place} {again}: {names[again - 1]!r} stands there twice. Every class needs a name of its own."
        )
    listed = ", ".join(f"{name} ({index})" for index, name in enumerate(names) if counts[name] > 1)
    warn(f"{path}: {', '.join(twice)} stand there several times; they are called {listed}.")
    return apart
