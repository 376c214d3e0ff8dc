"""The command line: one file a group of verbs."""

from .main import main

__all__ = ["main"]
