"""Data: image folders with boxes, and the embedded shapes."""

from ..preprocessing import Preprocessing
from .folder import ImageFolderDataModule
from .samples import collate
from .shapes import ShapesDataModule

__all__ = ["ImageFolderDataModule", "Preprocessing", "ShapesDataModule", "collate"]
