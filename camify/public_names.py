"""Public names of a package that are imported when somebody asks for them, so that importing it stays quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["imported_when_used"]


def imported_when_used(
    package: str, names: Sequence[str], modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) of a package.

    Args:
        package: its ``__name__``.
        names: its ``__all__``.
        modules: of names the module that has them, relative to the package; a public name without one is a module.

    Example:
        >>> get, names = imported_when_used("camify", ["CAMNet", "maps"], {"CAMNet": ".model"})
        >>> get("CAMNet").__module__, get("maps").__name__, {"CAMNet", "maps"} <= set(names())
        ('camify.model', 'camify.maps', True)
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(import_module(modules[name], package), name)
        if name in names:
            return import_module(f".{name}", package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names_of_package() -> list[str]:
        return sorted({*vars(import_module(package)), *names})

    return get, names_of_package
