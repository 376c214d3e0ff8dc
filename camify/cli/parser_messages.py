"""What jsonargparse says, in one line and in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["as_written", "guess", "in_one_line", "plainly"]

_BOUNDS = {"v>=": "at least ", "v<=": "at most ", "v>": "above ", "v<": "below "}


def plainly(message: str, parser: Any) -> str:
    """A parser's message ``in_one_line``, with the option that was meant, or ``as_written``."""
    line, meant = in_one_line(message), guess(message, parser)
    return line + meant if meant else as_written(line, parser)


def in_one_line(message: str) -> str:
    r"""A parser's message in one line; of a list of tried types, what those of the expected kind said.

    Example:
        >>> in_one_line("Parser key \"topk\": Not of type PositiveInt: 0 does not conform to restriction v>0")
        'Parser key "topk": 0 must be above 0'
        >>> in_one_line('Parser key "logger":\n  - Does not validate\n    - Expected a dot import path string: w')
        'Parser key "logger": w is no class that is known here'
    """
    text = re.sub(r": *\n(?! *- ) *", ": ", message.strip())
    tried = re.findall(r"^ *- ([A-Z](?!.*NoneType).*)", text, flags=re.MULTILINE)
    tried = [one for one in tried if not one.startswith(("Does not validate", "Expected a path but"))]
    tried = [
        re.sub(r"Expected a dot import path string: (.*)", r"\1 is no class that is known here", one) for one in tried
    ]
    head = re.split(r":(?: Does not|\s*\n)", text)[0] + ": "
    line = " ".join((head + _joined(tried) if tried else text).split())
    line = re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", line)
    line = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", line)
    line = re.sub(r"Not of type \w+: (.*?) ?(does not conform to restriction)", r"\1 \2", line)
    return re.sub(r" *does not conform to restriction (v.*)", lambda match: f" must be {_bounds(match[1])}", line)


def _joined(tried: list[str]) -> str:
    """What types said; of several that expected something else, one list."""
    tried = list(dict.fromkeys(tried))
    expected = [one.removeprefix("Expected ") for one in tried if one.startswith("Expected ")]
    said = [one for one in tried if not one.startswith("Expected ")]
    wanted = ", or ".join(expected)
    return "; ".join([*said, *([f"expected {wanted}" if said else f"Expected {wanted}"] if expected else [])])


def _bounds(restriction: str) -> str:
    return re.sub("v[<>]=?", lambda match: _BOUNDS[match[0]], restriction)


def as_written(message: str, parser: Any) -> str:
    """A message on missing or unknown words of a command, which names them as they are given, and where they stand.

    Example:
        >>> from jsonargparse import ArgumentParser
        >>> parser = ArgumentParser(prog="camify crop")
        >>> _ = parser.add_argument("image"), parser.add_argument("--to", required=True)
        >>> as_written("the following arguments are required: image, to", parser)
        'missing: IMAGE, --to (see camify crop --help)'
        >>> as_written("unrecognized arguments: --from", parser)
        'unrecognized arguments: --from (see camify crop --help)'
    """
    missing = re.fullmatch(r"the following arguments are required: (.*)", message)
    if missing is not None:
        owner, words = parser, []
        for key in missing[1].split(", "):
            owner, word = _word_of(parser, key)
            words.append(word)
        return f"missing: {', '.join(words)} (see {_program(owner)} --help)"
    return f"{message} (see {_program(parser)} --help)" if message.startswith("unrecognized arguments: ") else message


def _word_of(parser: Any, key: str) -> tuple[Any, str]:
    """The command that a parser's key belongs to, and how the key is given: ``convert.out`` is OUT of ``convert``."""
    command, _, rest = key.partition(".")
    for action in parser._actions:
        if action.dest == key:
            word = min(action.option_strings, key=len, default=action.metavar or key.upper())
            return parser, re.sub(r"^--(\w+)\.\1$", r"--\1", word)  # --model serves for --model.model
        commands = getattr(action, "_name_parser_map", None) or {}
        if rest and command in commands:
            return _word_of(commands[command], rest)
    return parser, key


def _program(parser: Any) -> str:
    """How a command is called, without the options that stand before it."""
    return re.sub(r"^__main__\.py", "camify", " ".join(re.sub(r"\[[^\]]*\]", " ", parser.prog).split()))


def guess(message: str, parser: Any) -> str:
    """Which option of a parser or of its commands was meant, as the end of the message; empty where none is near.

    Of options in groups the group may be missing: ``--max_epoch`` for ``--trainer.max_epochs``.

    Example:
        >>> from jsonargparse import ArgumentParser
        >>> parser = ArgumentParser()
        >>> _ = parser.add_argument("--method")
        >>> guess("unrecognized arguments: --metod cam", parser)
        '. Did you mean --method?'
    """
    unknown = re.search(r"(?:arguments: --|option '|Option ')([\w.]+)", message)
    if unknown is None:
        return ""
    group, _, name = unknown[1].rpartition(".")
    options = sorted(_option_names(parser), key=len, reverse=True)  # of equal names the one in fewer groups is last
    in_group = {option.rpartition(".")[2]: option for option in options if option.startswith(f"--{group}.")}
    if group and in_group:
        known = in_group
    else:
        known = {option.rpartition(".")[2].lstrip("-"): option for option in options}
        known |= {option.lstrip("-"): option for option in options}
        name = unknown[1]
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f". Did you mean {known[close[0]]}?" if close else ""


def _option_names(parser: Any) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        for command in (getattr(action, "_name_parser_map", None) or {}).values():
            yield from _option_names(command)
