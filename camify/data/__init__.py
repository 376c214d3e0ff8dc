"""Images and their boxes for training and measuring: folders with ``boxes.csv``, and the generated shapes.

How an image becomes an input is ``preprocessing.py``; what a batch is, ``batch.py``.
A new reader is a file of its own with a data module and samples as ``samples.collate`` takes them.
"""

from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "HuggingFaceDataModule": ".hugging_face",
    "ImageFolderDataModule": ".folder",
    "ImageTableDataModule": ".image_table",
    "Preprocessing": "..preprocessing",
    "ShapesDataModule": ".shapes",
    "TorchvisionDataModule": ".torchvision_data",
    "WebDatasetDataModule": ".web_dataset",
    "collate": ".samples",
}


def __getattr__(name: str) -> Any:
    """Import a data module when it is asked for: Lightning is slow to import, and most commands do not need it."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
