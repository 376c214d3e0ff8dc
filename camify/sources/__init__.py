"""Where networks come from: ``resolve`` is the one door that every command, ``CAMFineTuner`` and ``load`` use.

A kind of source is one row of ``resolve.LOADERS``: its form, whether a text is of that form, and a function that loads.
To add one, write ``def load_mine(text: str, weights: bool) -> Source`` in a file of its own and put its row there.
"""

from .resolve import LOADERS, Loader, load, resolve
from .source import Source

__all__ = ["LOADERS", "Loader", "Source", "load", "resolve"]
