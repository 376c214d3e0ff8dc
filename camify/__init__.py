"""camify turns image classifiers into CAM-ready ones: converted, proven, watched while they learn, exported."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, methods, metrics
    from .errors import CamifyError, CheckpointError, ConfigError, ConstantMapWarning, ConversionError, DataError
    from .evaluation import evaluate
    from .exporting import export
    from .methods import explain
    from .model import CAMNet
    from .surgery import convert, fit_head, inspect
    from .training import CAMFineTuner, CAMOverlayLogger

    load = CAMNet.from_pretrained

__version__ = _version("camify")
__all__ = [
    "CAMFineTuner",
    "CAMNet",
    "CAMOverlayLogger",
    "CamifyError",
    "CheckpointError",
    "ConfigError",
    "ConstantMapWarning",
    "ConversionError",
    "DataError",
    "convert",
    "data",
    "evaluate",
    "explain",
    "export",
    "fit_head",
    "inspect",
    "load",
    "methods",
    "metrics",
]

_HOMES = {
    **dict.fromkeys(
        ("CamifyError", "CheckpointError", "ConfigError", "ConstantMapWarning", "ConversionError", "DataError"),
        "errors",
    ),
    **dict.fromkeys(("convert", "fit_head", "inspect"), "surgery"),
    **dict.fromkeys(("CAMFineTuner", "CAMOverlayLogger"), "training"),
    "CAMNet": "model",
    "evaluate": "evaluation",
    "explain": "methods",
    "export": "exporting",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: converting or loading a network does not import Lightning."""
    from importlib import import_module

    if name == "load":
        return import_module(".model", __name__).CAMNet.from_pretrained
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
