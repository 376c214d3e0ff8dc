"""HTML from templates: every text is escaped and shows all it holds, pictures stand inside, nothing is loaded."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

from ..console import shown

__all__ = ["STYLE", "TEMPLATES", "is_own_page", "render", "style_values"]

TEMPLATES = Path(__file__).parent
STYLE = TEMPLATES / "style.css.j2"
"""How all pages look: colors, text, tables, buttons. Plain CSS."""


def render(template: Path, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """The text of a Jinja template with values; ``picture | data_uri`` puts an encoded picture in."""
    return shown(_compiled(template, tuple((filters or {}).items())).render(**values), keep="\n\t")


@lru_cache(maxsize=1)
def style_values() -> dict[str, str]:
    """The values that the light pages name, without the dashes: ``{"paper": "#fcfcfa", ..., "deepest": ".8"}``."""
    light = STYLE.read_text(encoding="utf-8").split("}")[0]
    return dict(re.findall(r"--([\w-]+): ([^;]+);", light))


def is_own_page(path: Path) -> bool:
    """Whether a file is a page that camify wrote: its templates say so at their beginning."""
    with path.open("rb") as file:
        return b'<meta name="generator" content="camify">' in file.read(4096)


@lru_cache(maxsize=8)
def _compiled(template: Path, filters: tuple[tuple[str, Callable[..., str]], ...]) -> Template:
    """A page is written after every epoch: compiling its template anew would take as long as filling it."""
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(data_uri=_data_uri, **dict(filters))
    return environment.get_template(template.name)


def _data_uri(picture: bytes) -> str:
    """An encoded picture as an address that holds the picture itself."""
    kind = "webp" if picture.startswith(b"RIFF") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
