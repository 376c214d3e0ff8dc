"""Images and their boxes for training and measuring: folders with ``boxes.csv``, and the generated shapes.

How an image becomes an input is ``preprocessing.py``; what a batch is, ``batch.py``.
A new reader is a file of its own with a data module and samples as ``samples.collate`` takes them.
"""

from typing import TYPE_CHECKING

from ..public_names import imported_when_used

if TYPE_CHECKING:
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

_MODULES = {
    "HuggingFaceDataModule": ".hugging_face",
    "ImageFolderDataModule": ".folder",
    "ImageTableDataModule": ".image_table",
    "Preprocessing": "..preprocessing",
    "ShapesDataModule": ".shapes",
    "TorchvisionDataModule": ".torchvision_data",
    "WebDatasetDataModule": ".web_dataset",
    "collate": ".samples",
}

# Lightning is slow to import, and most commands do not need it.
__getattr__, __dir__ = imported_when_used(__name__, __all__, _MODULES)
