"""Where networks come from: every command, ``CAMFineTuner`` and ``load`` read a source with ``resolve``.

Nothing is converted here: that is ``conversion``. The format of camify's own folders is in ``checkpoint``.
A new kind of source is ``def load_mine(text: str, weights: bool) -> Source`` in a file of its own, and a row of
``resolve.LOADERS``: its form, whether a text is of that form, and the function that loads it.
"""

from .resolve import LOADERS, Loader, load, resolve, source_of
from .source import Source

__all__ = ["LOADERS", "Loader", "Source", "load", "resolve", "source_of"]
