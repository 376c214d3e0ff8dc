"""camify turns image classifiers into CAM-ready ones: converted, proven, watched while they learn, exported."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from .public_names import imported_when_used

if TYPE_CHECKING:
    from . import data, methods, metrics
    from .boxes import BoxRule
    from .conversion import choose_box_rule, convert, fit_head, fit_object_map, inspect
    from .errors import CamifyError, CheckpointError, ConfigError, ConstantMapWarning, ConversionError, DataError
    from .evaluation import evaluate
    from .exporters import export
    from .memory import keep_freed_memory
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
    "keep_freed_memory",
    "load",
    "methods",
    "metrics",
]

_MODULES = {
    **dict.fromkeys(
        ("CamifyError", "CheckpointError", "ConfigError", "ConstantMapWarning", "ConversionError", "DataError"),
        ".errors",
    ),
    **dict.fromkeys(("choose_box_rule", "convert", "fit_head", "fit_object_map", "inspect"), ".conversion"),
    **dict.fromkeys(("CAMFineTuner", "CAMOverlayLogger"), ".training"),
    "BoxRule": ".boxes",
    "CAMNet": ".model",
    "Preprocessing": ".preprocessing",
    "Task": ".task",
    "evaluate": ".evaluation",
    "explain": ".methods",
    "export": ".exporters",
    "keep_freed_memory": ".memory",
    "load": ".sources",
}

# Converting or loading a network does not import Lightning.
__getattr__, __dir__ = imported_when_used(__name__, __all__, _MODULES)
