"""The command line: one file a group of verbs; ``train.py`` holds those that Lightning runs.

Nothing is computed here: each verb calls the package that does the work, such as ``evaluation`` or ``conversion``.
A new verb is a function and its options in ``commands.py``, or in a file beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ..memory import keep_freed_memory

__all__ = ["main"]


def main(args: Sequence[str] | None = None, *, module: str = "commands") -> None:
    """Run the camify command, or what another module of this package has as its own ``main``.

    Its modules are imported now: Ctrl-C in these seconds leaves with 130 and no traceback, as it does later.

    Args:
        args: None takes the process's own, which then is this command's alone: `keep_freed_memory`.
        module: of this package.
    """
    if args is None:
        keep_freed_memory()
    try:
        import_module(f".{module}", __name__).main(args)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
