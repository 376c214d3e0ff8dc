"""The image files that a table names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..image_files import image_suffixes
from .file_list import FileList
from .image_search import find_images_below
from .label_table import LabelTable

__all__ = ["table_files"]

_SHOWN = 10


def table_files(rows: LabelTable, table: Path, root: Path) -> FileList:
    """The images of a table, in its order.

    Args:
        rows: of the table.
        table: the file, for messages.
        root: folder that names begin in.

    Raises:
        DataError: some are not there, or are named twice; names the lines.
    """
    names = [
        _below_root(name, f"{table}:{line}", root) for name, line in zip(rows.names, rows.lines.tolist(), strict=True)
    ]
    files = FileList(root, names)
    gone = np.flatnonzero(files.stamps()[:, 0] < 0)
    if len(gone):
        names = _with_suffixes(names, gone.tolist(), rows, table, root)
        files = FileList(root, names)
    counts = Counter(names)
    if len(counts) < len(names):
        _refuse_repeated(names, counts, rows, table)
    return files


@cache
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _below_root(name: str, where: str, root: Path) -> str:
    place = Path(name.replace("\\", "/"))
    if "\0" in name or ".." in place.parts:
        raise DataError(f"{where}: image {name[:80]!r} leads out of {root}.")
    if not place.is_absolute():
        return str(place)
    try:
        return str(place.relative_to(_resolved(root)))
    except ValueError:
        raise DataError(
            f"{where}: image {name[:80]!r} does not lie below {root}. Give root a folder that all images lie below."
        ) from None


def _with_suffixes(names: Sequence[str], gone: Sequence[int], rows: LabelTable, table: Path, root: Path) -> list[str]:
    """The names, those without an image's end as the one file below root that begins so.

    Raises:
        DataError: images are not there.
    """
    by_stem: dict[str, str | None] = {}
    if any(Path(names[number]).suffix.lower() not in image_suffixes() for number in gone):
        for name in find_images_below(root).paths.names():
            for stem in {os.path.splitext(name)[0], Path(name).stem}:  # noqa: PTH122
                by_stem[stem] = None if stem in by_stem else name
    completed = list(names)
    problems = []
    for number in gone:
        full = by_stem.get(names[number])
        if full is None:
            why = "several files have that name" if names[number] in by_stem else "no such file"
            problems.append(f"{table}:{rows.lines[number]}: {root / names[number]}: {why}.")
        else:
            completed[number] = full
    if problems:
        hint = f" Names are relative to {root}; give root another folder, or put the table beside the images."
        hint = hint if len(gone) == len(names) else ""
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError("\n".join(problems[:_SHOWN]) + more + hint)
    return completed


def _refuse_repeated(names: Sequence[str], counts: Counter[str], rows: LabelTable, table: Path) -> None:
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    again = next(number for number, name in enumerate(names) if first[name] != number)
    lines = rows.lines
    repeated = sum(count > 1 for count in counts.values())
    raise DataError(
        f"{table}:{lines[again]}: image {names[again]!r} stands in line {lines[first[names[again]]]} already"
        f" ({repeated} images stand there several times). Several labels of an image stand in one line: cat|dog."
    )
