"""Explaining image files: pictures, maps, boxes and figures for many of them."""

from .files import ExplainOptions, Summary, explain_files
from .images import image_files
from .pace import PRECISIONS

__all__ = ["PRECISIONS", "ExplainOptions", "Summary", "explain_files", "image_files"]
