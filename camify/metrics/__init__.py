"""CAM quality as torchmetrics: does the map find the object, does the network use what it shows.

The figures are defined in ``functional``, image by image; the classes here add them up, also over processes.
Images and boxes are read in ``data`` and ``evaluation``. A new metric is a function in ``functional`` first.
"""

from typing import TYPE_CHECKING

from ..public_names import imported_when_used
from . import functional

if TYPE_CHECKING:
    from .faithfulness import ADCC, AverageDrop, AverageIncrease, Coherency, Complexity, DeletionAUC, InsertionAUC
    from .localization import LocalizationAccuracy, MaxBoxAccuracy
    from .pointing import EnergyPointingGame, GridPointingGame, PointingGame
    from .segmentation import PixelAveragePrecision

__all__ = [
    "ADCC", "AverageDrop", "AverageIncrease", "Coherency", "Complexity", "DeletionAUC", "EnergyPointingGame",
    "GridPointingGame", "InsertionAUC", "LocalizationAccuracy", "MaxBoxAccuracy", "PixelAveragePrecision",
    "PointingGame", "functional",
]  # fmt: skip

_MODULES = {
    **dict.fromkeys(
        ("ADCC", "AverageDrop", "AverageIncrease", "Coherency", "Complexity", "DeletionAUC", "InsertionAUC"),
        ".faithfulness",
    ),
    **dict.fromkeys(("LocalizationAccuracy", "MaxBoxAccuracy"), ".localization"),
    **dict.fromkeys(("EnergyPointingGame", "GridPointingGame", "PointingGame"), ".pointing"),
    "PixelAveragePrecision": ".segmentation",
}

# torchmetrics is slow to import, and commands need the functions alone.
__getattr__, __dir__ = imported_when_used(__name__, __all__, _MODULES)
