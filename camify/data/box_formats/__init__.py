"""Boxes of other formats, in and out: readers, one place that makes pixels of the upright image, and writers.

A reader is a file of its own that gives ``ForeignBoxes``, in its format's convention, and a line in ``KINDS``.
"""

from .importing import ImportedBoxes, import_boxes
from .kinds import KINDS
from .upright import ImageSizes

__all__ = ["KINDS", "ImageSizes", "ImportedBoxes", "import_boxes"]
