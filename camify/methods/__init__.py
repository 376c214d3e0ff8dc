"""Explanation methods."""

from .cam import CAM
from .explanation import METHODS, explain

__all__ = ["CAM", "METHODS", "explain"]
