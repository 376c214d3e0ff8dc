"""The command line: one file a group of verbs; ``train.py`` holds those that Lightning runs.

Nothing is computed here: each verb calls the package that does the work, such as ``evaluation`` or ``conversion``.
A new verb is a function and its options in ``commands.py``, or in a file beside it.
"""

from .commands import main

__all__ = ["main"]
