"""``--model SOURCE`` and ``--data FOLDER`` of `camify fit`, as the other commands take them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pytorch_lightning as pl

from ..errors import ConfigError

__all__ = ["CONFIGS", "as_other_commands_take_it"]

CONFIGS = ("--config", "-c")
"""Options of files of options."""
_MODEL_OPTIONS = re.compile(r"^\s*\{|^--|^$|\.(?:ya?ml|json)$")


def as_other_commands_take_it(words: Sequence[str]) -> Iterator[str]:
    """``--model SOURCE`` and ``--data FOLDER`` as options of the network and the data module; files of options stay.

    A folder alone is of ``ImageFolderDataModule``; beside files of options it is the ``root`` of theirs.

    Raises:
        ConfigError: there is no such folder, nor a data module of that name.
    """
    rest = iter(zip_longest(words, words[1:], fillvalue="--"))
    for word, following in rest:
        option, equals, value = word.partition("=")
        value = value if equals else following
        if option == "--model" and not _MODEL_OPTIONS.search(value):
            yield f"--model.model{equals}{value}" if equals else "--model.model"
        elif option == "--data" and Path(value).is_dir():
            if not any(other.partition("=")[0] in CONFIGS for other in words):
                yield "--data=ImageFolderDataModule"
            yield f"--data.init_args.root={value}"
            if not equals:
                next(rest)
        elif option == "--data" and {"/", "\\"} & set(value) and not value.lstrip().startswith("{"):
            if not Path(value).exists():
                raise ConfigError(f"--data {value}: no such folder.")
            yield word
        elif option == "--data" and re.fullmatch(r"\w[\w-]*", value) and value not in (names := _data_modules()):
            near = difflib.get_close_matches(value, names, n=1)
            raise ConfigError(
                f"--data {value}: no such folder, and no data module; they are {', '.join(names)}."
                + (f" Did you mean {near[0]}?" if near else "")
            )
        else:
            yield word


def _data_modules() -> list[str]:
    """Names by which data modules can be given: camify's, and those of packages that were let in."""
    kinds: list[type] = [pl.LightningDataModule]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return sorted({kind.__name__ for kind in kinds[1:]} - {"PreparedDataModule"})  # which the others build on
