"""Exported files: ONNX and pt2 that give logits and maps to people without camify."""

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
