"""Data: image folders with boxes, and the embedded shapes."""

from .folder import ImageFolderDataModule
from .samples import Preprocessing, collate
from .shapes import ShapesDataModule

__all__ = ["ImageFolderDataModule", "Preprocessing", "ShapesDataModule", "collate"]
