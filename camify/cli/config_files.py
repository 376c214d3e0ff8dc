"""Configuration files: read quickly and strictly, and all that is wrong in them said at once, with file and line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..training.options import GROUP_OF, GROUPS, FineTuningOptions

__all__ = ["ConfigFile", "check_yaml", "config_files", "everything_wrong", "unknown_keys"]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_BYTES, _MOST_VALUES, _MOST_CHARACTERS, _DEEPEST = 10_000_000, 200_000, 20_000_000, 100
_LISTED = 10  # complaints of one kind
_COMMANDS = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file.

    Attributes:
        path: as it was given.
        values: its options, nested.
        lines: where each key stands, by the names that lead to it.
    """

    path: str
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]


def config_files(words: Sequence[str], load: Callable[[str], Any]) -> list[ConfigFile]:
    """The files that a command line names by ``--config``; those that are missing are left to the parser.

    Args:
        words: of the command line.
        load: the parser's way from YAML to values.

    Raises:
        ConfigError: one cannot be a configuration.
    """
    paths = [word.partition("=")[2] for word in words if word.startswith(("--config=", "-c="))]
    paths += [after for word, after in pairwise(words) if word in ("--config", "-c")]
    return [_read(path, load) for path in paths if Path(path).is_file()]


def _read(path: str, load: Callable[[str], Any]) -> ConfigFile:
    content = Path(path).read_bytes()
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: has {len(content) / 1e6:.0f} MB, too much for a configuration.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = " It begins as UTF-16 does." if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ConfigError(f"{path}: is no text in UTF-8 (byte {error.start}).{guess} Save it as UTF-8.") from error
    if "\0" in text:
        raise ConfigError(f"{path}: is no text: it holds zero bytes. Save it as text in UTF-8.")
    node = _composed(text, path)
    if node is None:
        raise ConfigError(f"{path}: is empty. It needs at least a model and data; configs/ has examples.")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: holds no options by name (KEY: VALUE).")
    _check_nodes(node, path)
    values = _values(load, text, path)
    return ConfigFile(path, values, dict(_lines(node)))


def check_yaml(text: str) -> str:
    """YAML text as it was given, if it can be loaded safely: not too much of it, no key twice.

    Raises:
        ConfigError: says what is wrong, in which line.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:  # a word that is no YAML, or an error of syntax, which the parser names
        return text
    if node is not None:
        _check_nodes(node, "")
    return text


def _composed(text: str, path: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _syntax_error(error, path) from error


def _values(load: Callable[[str], Any], text: str, path: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = load(text)
    except yaml.YAMLError as error:
        raise _syntax_error(error, path) from error
    except (ValueError, TypeError, OverflowError) as error:  # a number that is none; a key that is a list
        raise ConfigError(f"{path}: a value cannot be read ({error}).") from error
    return values


def _syntax_error(error: yaml.YAMLError, path: str) -> ConfigError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = path if mark is None else f"{path}:{mark.line + 1}"
    return ConfigError(f"{place}: is no YAML that camify reads ({problem or ' '.join(str(error).split())}).")


def _check_nodes(root: yaml.Node, path: str) -> None:
    """Refuse what anchors multiply beyond measure, what lies too deep, and keys that stand twice."""
    sizes: dict[int, tuple[int, int]] = {}  # by node: how many values and characters it stands for

    def size(node: yaml.Node, depth: int) -> tuple[int, int]:
        if id(node) in sizes:
            return sizes[id(node)]
        if depth > _DEEPEST:
            raise ConfigError(f"{_place(path, node)}: lies in more than {_DEEPEST} others, or in itself.")
        if isinstance(node, yaml.ScalarNode):
            return (1, len(node.value))
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node, path)
        parts = [size(child, depth + 1) for child in _children(node)]
        sizes[id(node)] = total = (1 + sum(part[0] for part in parts), sum(part[1] for part in parts))
        if total[0] > _MOST_VALUES or total[1] > _MOST_CHARACTERS:
            raise ConfigError(
                f"{_place(path, node)}: stands for more than {_MOST_VALUES:,} values or {_MOST_CHARACTERS:,} characters"
                " (anchors, *NAME, repeat what they name). Write less."
            )
        return total

    size(root, 0)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    for item in node.value:
        yield from item if isinstance(item, tuple) else (item,)


def _refuse_twice(node: yaml.MappingNode, path: str) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in first:
            raise ConfigError(
                f"{_place(path, key)}: {key.value} stands twice, the first time in line {first[key.value]}. Keep one."
            )
        first[key.value] = line


def _place(path: str, node: yaml.Node) -> str:
    line = node.start_mark.line + 1
    return f"{path}:{line}" if path else f"line {line}"


def _lines(node: yaml.Node, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where the keys of nested mappings stand."""
    if isinstance(node, yaml.MappingNode) and len(before) <= _DEEPEST:
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                names = (*before, key.value)
                yield names, key.start_mark.line + 1
                yield from _lines(value, names)


# ---------------------------------------------------------------- what is wrong


def unknown_keys(files: Iterable[ConfigFile], known: Iterable[str]) -> list[str]:
    """A complaint for each key that is no option, with what may have been meant; of very many the first ones.

    Args:
        files: read before.
        known: the options by their full names, such as ``trainer.max_epochs``.
    """
    options = {name for name in known if not name.endswith(".help")} | {f"model.{name}" for name in GROUP_OF}
    groups = {name[:place] for name in options for place, char in enumerate(name) if char == "."}
    unknown = [
        (file, names, line)
        for file in files
        for names, line in file.lines.items()
        if not _is_known(names, options, groups) and _is_known(names[:-1], options, groups)
    ]
    complaints = []
    for file, names, line in unknown[:_LISTED]:
        name = ".".join(_without_command(names))
        shorter = {_short(option) for option in options}
        close = difflib.get_close_matches(name, shorter, n=1)
        complaints.append(f"{file.path}:{line}: {name} is no option.{f' Did you mean {close[0]}?' if close else ''}")
    more = len(unknown) - _LISTED
    return [*complaints, f"... and {more} more keys that are no options."] if more > 0 else complaints


def _without_command(names: tuple[str, ...]) -> tuple[str, ...]:
    return names[1:] if names[:1] and names[0] in _COMMANDS else names


def _short(option: str) -> str:
    """An option of a group as people write it: ``model.momentum``."""
    parts = option.split(".")
    return f"model.{parts[2]}" if len(parts) == 3 and parts[0] == "model" and parts[1] in GROUPS else option


def _is_known(names: tuple[str, ...], options: set[str], groups: set[str]) -> bool:
    """Whether keys lead to an option, to a group of options, or into the value of an option."""
    names = _without_command(names)
    if not names or ".".join(names) in options | groups:
        return True
    above = (".".join(names[:count]) for count in range(1, len(names)))
    return any(name in options and name not in groups for name in above)


def everything_wrong(
    first: str, files: Iterable[ConfigFile], parse: Callable[[dict[str, Any]], Any], known: Iterable[str]
) -> list[str]:
    """A complaint of a parser, and what else is wrong with the values in these files: their kinds and their ranges.

    Args:
        first: the parser's own complaint; it stops at the first thing that is wrong.
        files: read before.
        parse: of one option, nested; raises a ConfigError that names the option where its value is of a wrong kind.
        known: the options by their full names.
    """
    options, complaints = {name for name in known if not name.endswith(".help")}, [first]
    for file in files:
        values = {name: part for name, part in file.values.items() if name not in _COMMANDS}
        for name in _COMMANDS:
            values |= file.values[name] if isinstance(file.values.get(name), dict) else {}
        complaints += _wrong_kinds(values, options, parse)
        complaints += _wrong_ranges(values)
    kept: list[str] = []
    for complaint in complaints:  # the parser's own comes in other words
        if not any(complaint in other or other in complaint for other in kept):
            kept.append(complaint)
    return kept[:_LISTED]


def _wrong_kinds(
    values: Mapping[str, Any], options: set[str], parse: Callable[[dict[str, Any]], Any], before: tuple[str, ...] = ()
) -> Iterator[str]:
    for key, value in values.items():
        names = (*before, str(key))
        name = ".".join(names)
        if isinstance(value, dict) and any(option.startswith(f"{name}.") for option in options):
            yield from _wrong_kinds(value, options, parse, names)
        elif name in options or (names[0] == "model" and names[-1] in GROUP_OF):
            nested: dict[str, Any] = {names[-1]: value}
            for part in reversed(names[:-1]):
                nested = {part: nested}
            try:
                parse(nested)
            except ConfigError as error:
                if "are required" not in str(error):
                    yield str(error)


def _wrong_ranges(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's options, those of the right names and kinds."""
    model = values.get("model")
    if not isinstance(model, dict):
        return []
    given = {name: model[name] if isinstance(model.get(name), dict) else {} for name in GROUPS}
    groups = {
        name: {key: value for key, value in group.items() if GROUP_OF.get(key) == name} for name, group in given.items()
    }
    recipe = model.get("recipe")
    try:
        FineTuningOptions.of(recipe, groups, {name: value for name, value in model.items() if name in GROUP_OF})
    except (ConfigError, TypeError) as error:
        return [str(error)] if isinstance(error, ConfigError) else []
    except ValueError:  # of the recipe, which is named later
        return []
    return []
