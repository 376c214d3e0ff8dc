"""What a configuration may name: single classes of camify and Lightning, and packages that the command line lets in.

A configuration is a file, and files run no code: naming a class is building it. So each name must be one of the
classes below, or lie in a package of ``--allow``, which a file cannot say. Functions are no classes.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from ..errors import ConfigError

__all__ = [
    "ALLOW_HELP",
    "allow_packages",
    "check_loaded",
    "check_parsed",
    "forbid_packages",
    "import_refusal",
    "packages_allowed",
    "plain_checkpoint",
]

ALLOW_HELP = "--allow PACKAGE (repeatable; never in a file): the configuration may also name classes of your package."
_MODULES = (
    *(f"pytorch_lightning.{name}" for name in ("callbacks", "loggers", "plugins", "strategies", "profilers")),
    *("pytorch_lightning.callbacks.progress.rich_progress", "pytorch_lightning.accelerators"),
    *("pytorch_lightning.plugins.environments", "pytorch_lightning.plugins.io", "pytorch_lightning.plugins.precision"),
    *("camify.data", "camify.training.callbacks.overlays", "camify.training.callbacks.run_record"),
    *("camify.training.callbacks.predictions", "camify.training.callbacks.selection"),
)
_PACKAGES = ("camify.", "pytorch_lightning.", "lightning_fabric.")
_LEFT_OUT = (
    "pytorch_lightning._graveyard.",  # placeholders that raise
    "pytorch_lightning.strategies.deepspeed.",  # unpickles its own checkpoints, and runs compilers
    "pytorch_lightning.loggers.litlogger.",  # sends to a service that is no option of camify
)
_SETTINGS = "settings"  # of Weights & Biases: they name programs
_COMMANDS = ("fit", "validate", "test", "predict")


@cache
def _classes() -> frozenset[str]:
    """The names of every class that a configuration may name, by any module that leads to it."""
    names = set()
    for module in _MODULES:
        imported = importlib.import_module(module)
        public = [getattr(imported, name) for name in getattr(imported, "__all__", ())]  # some are imported when asked
        for kind in [*vars(imported).values(), *public]:
            if not inspect.isclass(kind) or kind.__name__.startswith("_"):
                continue
            full = f"{kind.__module__}.{kind.__qualname__}"
            if full.startswith(_PACKAGES) and not full.startswith(_LEFT_OUT):
                parts = kind.__module__.split(".")
                names |= {".".join([*parts[:end], kind.__name__]) for end in range(1, len(parts) + 1)}
                names.add(f"{module}.{kind.__name__}")
    return frozenset(names)


def packages_allowed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without ``--allow PACKAGE``, and the packages.

    Raises:
        ConfigError: a package is missing or is none.
    """
    rest, packages = [], list[str]()
    waiting = iter(words)
    for word in waiting:
        option, equals, package = word.partition("=")
        if option != "--allow":
            rest.append(word)
            continue
        package = package if equals else next(waiting, "")
        if not all(part.isidentifier() for part in package.split(".")) or package.split(".")[0] == "jsonargparse":
            raise ConfigError(f"--allow {package}: give the name of a package, as in --allow my_package.")
        packages.append(package)
    return rest, packages


def allow_packages(packages: Sequence[str]) -> None:
    """Tell the parser what may be imported: the classes above and these packages, nothing else."""
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*_classes(), *packages],
        instantiate_subclass_spec_in_any=False,  # else any value of type Any could name a class
    )


def forbid_packages(packages: Sequence[str]) -> None:
    """Take the packages of ``allow_packages`` back: the parser's settings outlive the command."""
    if packages:
        set_parsing_settings(import_path_denylist=list(packages))


def check_loaded(content: Any, packages: Sequence[str]) -> Any:
    """What a file or an option says, as it was read; without ``weights_only: null``, which older runs wrote.

    Raises:
        ConfigError: it names a class that is not allowed, a function of one, or how checkpoints are to be read.
    """
    for mapping in _mappings(content):
        name = mapping.get("class_path")
        if isinstance(name, str) and "." in name and not _is_allowed(name, packages):
            raise ConfigError(_not_allowed(name))
        _refuse_programs(mapping)
    for text in _texts(content):
        owner = text.rpartition(".")[0]
        while owner:
            if owner in _classes():
                raise ConfigError(_not_allowed(text))
            owner = owner.rpartition(".")[0]
    return _without_weights_only(content)


def _without_weights_only(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    if content.get("weights_only") is not None:
        raise ConfigError(
            "weights_only: is no option. Checkpoints are always read as plain weights; a pickle is never run."
        )
    kept = {key: value for key, value in content.items() if key != "weights_only"}
    return {key: _without_weights_only(value) if key in _COMMANDS else value for key, value in kept.items()}


def _refuse_programs(mapping: Mapping[str, Any]) -> None:
    """Settings of Weights & Biases can name a program that it starts."""
    given = [mapping.get(key) for key in ("init_args", "dict_kwargs")]
    named = [part.get(_SETTINGS) for part in given if isinstance(part, Mapping | Namespace)]
    if str(mapping.get("class_path")).endswith("WandbLogger") and any(value is not None for value in named):
        raise ConfigError(
            "WandbLogger: its settings can name programs, so that a configuration may not give any. Set them in"
            " the environment: WANDB_..."
        )


def check_parsed(config: Any) -> None:
    """Check what the parser made of a configuration, before anything is built.

    Raises:
        ConfigError: what is named as a class is none.
    """
    for mapping in _mappings(config):
        name = mapping.get("class_path")
        if isinstance(name, str) and "." in name and not inspect.isclass(_named(name)):
            raise ConfigError(f"{name}: is no class. A configuration names classes, not functions.")
        _refuse_programs(mapping)


def import_refusal(message: str) -> ConfigError | None:
    """The error for a message of the parser that refuses to import something; None of other messages."""
    refused = re.search(r"Importing '([^']+)' is not allowed", " ".join(message.split()))
    return None if refused is None else ConfigError(_not_allowed(refused[1]))


def plain_checkpoint(path: Any, folder: Path) -> Path | None:
    """The checkpoint to go on from, a file. Those of sharded strategies are folders, which torch unpickles.

    Args:
        path: of ``ckpt_path``; ``"last"`` means ``last.ckpt`` of the folder.
        folder: of the run.

    Raises:
        ConfigError: it is a folder, or the run's folder holds a sharded checkpoint that Lightning would take by itself.
    """
    sharded = next((entry for entry in folder.glob("hpc_ckpt*") if entry.is_dir()), None)
    if sharded is not None:
        raise ConfigError(f"{sharded}: is a checkpoint in the form of a folder, which camify does not read. Move it.")
    if not path:
        return None
    file = folder / "last.ckpt" if path == "last" else Path(path)
    if file.is_dir():
        raise ConfigError(f"--ckpt_path {path}: is no file. Give a .ckpt file of a run, such as RUN/last.ckpt.")
    return file


# ---------------------------------------------------------------- names


def _is_allowed(name: str, packages: Sequence[str]) -> bool:
    return name in _classes() or any(f"{name}.".startswith(f"{package}.") for package in packages)


def _not_allowed(name: str) -> str:
    """Why a name is refused, and what to do."""
    top = name.split(".")[0]
    known = f"{top}.".startswith((*_PACKAGES, "jsonargparse.")) or top in sys.stdlib_module_names
    known = known or any(allowed.endswith(f".{top}") for allowed in _classes())
    own = "" if known else f" Is it your own? Let its package in on the command line: --allow {top[:100]}"
    return (
        f"{name[:200]}: not allowed: a configuration may name only classes of camify and Lightning (a"
        f" LightningDataModule of camify, callbacks, loggers, plugins, profilers, strategies).{own}"
    )


def _named(path: str) -> Any:
    """What a path that the parser has imported names; None where nothing has that name."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:end]))
        if module is not None:
            value: Any = module
            for part in parts[end:]:
                value = getattr(value, part, None)
            return value
    return None


def _mappings(content: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in nested values."""
    if isinstance(content, Namespace):
        content = vars(content)
    if isinstance(content, Mapping):
        yield content
    for value in content.values() if isinstance(content, Mapping) else content if _is_list(content) else ():
        yield from _mappings(value)


def _texts(content: Any) -> Iterator[str]:
    """Every text among nested values."""
    if isinstance(content, str):
        yield content
    for value in content.values() if isinstance(content, Mapping) else content if _is_list(content) else ():
        yield from _texts(value)


def _is_list(content: Any) -> bool:
    return isinstance(content, list | tuple | set)
