"""Exported files: ONNX and pt2 that give logits and maps to people without camify."""

from .as_network import network_of, resolve_any
from .check import Finding, check
from .exporting import FORMATS, Exported, export, open_exported
from .reduced import PRECISIONS as EXPORT_PRECISIONS
from .reduced import Loss
from .sources import cam_ready, from_lightning

__all__ = [
    "EXPORT_PRECISIONS",
    "FORMATS",
    "Exported",
    "Finding",
    "Loss",
    "cam_ready",
    "check",
    "export",
    "from_lightning",
    "network_of",
    "open_exported",
    "resolve_any",
]
