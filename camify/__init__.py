"""camify turns image classifiers into CAM-ready ones: converted, proven, watched while they learn, exported."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, methods, metrics
    from .boxes import BoxRule
    from .conversion import choose_box_rule, convert, fit_head, fit_object_map, inspect
    from .errors import CamifyError, CheckpointError, ConfigError, ConstantMapWarning, ConversionError, DataError
    from .evaluation import evaluate
    from .exporters import export
    from .methods import explain
    from .model import CAMNet
    from .preprocessing import Preprocessing
    from .sources import load
    from .task import Task
    from .training import CAMFineTuner, CAMOverlayLogger

__version__ = _version("camify")
__all__ = [
    "BoxRule",
    "CAMFineTuner",
    "CAMNet",
    "CAMOverlayLogger",
    "CamifyError",
    "CheckpointError",
    "ConfigError",
    "ConstantMapWarning",
    "ConversionError",
    "DataError",
    "Preprocessing",
    "Task",
    "choose_box_rule",
    "convert",
    "data",
    "evaluate",
    "explain",
    "export",
    "fit_head",
    "fit_object_map",
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
    **dict.fromkeys(("choose_box_rule", "convert", "fit_head", "fit_object_map", "inspect"), "conversion"),
    **dict.fromkeys(("CAMFineTuner", "CAMOverlayLogger"), "training"),
    "BoxRule": "boxes",
    "CAMNet": "model",
    "Preprocessing": "preprocessing",
    "Task": "task",
    "evaluate": "evaluation",
    "explain": "methods",
    "export": "exporters",
    "load": "sources",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: converting or loading a network does not import Lightning."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
