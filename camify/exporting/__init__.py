"""Exported files: ONNX and pt2 that give logits and maps to people without camify."""

from .exporting import FORMATS, Exported, export, open_exported

__all__ = ["FORMATS", "Exported", "export", "open_exported"]
