"""Exported files: ONNX and pt2 that give logits and maps to people without camify."""

from .exporting import FORMATS, Exported, export, open_exported
from .reduced import EXPORT_PRECISIONS, Loss

__all__ = [
    "EXPORT_PRECISIONS",
    "FORMATS",
    "Exported",
    "Loss",
    "export",
    "open_exported",
]
