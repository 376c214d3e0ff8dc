"""The command line: one file a group of verbs."""

from .commands import main

__all__ = ["main"]
