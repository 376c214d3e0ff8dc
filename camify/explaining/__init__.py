"""Explaining image files: pictures, maps, boxes and figures for many of them."""

from .files import ExplainOptions, Summary, explain_files
from .images import image_files

__all__ = ["ExplainOptions", "Summary", "explain_files", "image_files"]
