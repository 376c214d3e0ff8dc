"""Where networks come from."""

from .resolve import Source, resolve

__all__ = ["Source", "resolve"]
