"""What jsonargparse says, in one line and in plain words."""

from __future__ import annotations

import re

__all__ = ["in_one_line"]

_BOUNDS = {"v>=": "at least ", "v<=": "at most ", "v>": "above ", "v<": "below "}


def in_one_line(message: str) -> str:
    r"""A parser's message in one line; of a list of tried types, what those of the expected kind said.

    Example:
        >>> in_one_line("Parser key \"topk\": Not of type PositiveInt: 0 does not conform to restriction v>0")
        'Parser key "topk": 0 must be above 0'
    """
    text = re.sub(r": *\n(?! *- ) *", ": ", message.strip())
    tried = re.findall(r"^ *- ([A-Z](?!.*NoneType).*)", text, flags=re.MULTILINE)
    parts = [text.split(": Does not")[0] + ":", *tried] if tried else [text]
    line = " ".join(" ".join(parts).split())
    line = re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", line)
    line = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", line)
    line = re.sub(r"Not of type \w+: (.*?) ?(does not conform to restriction)", r"\1 \2", line)
    return re.sub(r" *does not conform to restriction (v.*)", lambda match: f" must be {_bounds(match[1])}", line)


def _bounds(restriction: str) -> str:
    return re.sub("v[<>]=?", lambda match: _BOUNDS[match[0]], restriction)
