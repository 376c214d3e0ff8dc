"""Images and their boxes for training and measuring: folders with ``boxes.csv``, and the generated shapes.

How an image becomes an input is ``preprocessing.py``; what a batch is, ``batch.py``.
A new reader is a file of its own with a data module and samples as ``samples.collate`` takes them.
"""

from ..preprocessing import Preprocessing
from .folder import ImageFolderDataModule
from .hugging_face import HuggingFaceDataModule
from .image_table import ImageTableDataModule
from .samples import collate
from .shapes import ShapesDataModule
from .torchvision_data import TorchvisionDataModule
from .web_dataset import WebDatasetDataModule

__all__ = [
    "HuggingFaceDataModule", "ImageFolderDataModule", "ImageTableDataModule", "Preprocessing", "ShapesDataModule",
    "TorchvisionDataModule", "WebDatasetDataModule", "collate",
]  # fmt: skip
