"""The command line: one file a group of verbs; ``train.py`` is that of Lightning.

Nothing is computed here. A new verb is a function and its options in ``commands.py`` or ``export.py``.
"""

from .commands import main

__all__ = ["main"]
