"""Files that give logits and maps to people without camify: ONNX and pt2, also quantized; written and read.

The folder that camify itself loads is in ``checkpoint``. A new format is a file with a writer and a reader.
"""

from .export_file import FORMATS, Exported, export, open_exported
from .quantization import EXPORT_PRECISIONS, Loss

__all__ = [
    "EXPORT_PRECISIONS",
    "FORMATS",
    "Exported",
    "Loss",
    "export",
    "open_exported",
]
