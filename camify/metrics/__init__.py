"""CAM quality as torchmetrics: does the map find the object, does the network use what it shows.

The figures are defined in ``functional``, image by image; the classes here add them up, also over processes.
Images and boxes are read in ``data`` and ``evaluation``. A new metric is a function in ``functional`` first.
"""

from typing import TYPE_CHECKING, Any

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

_HOMES = {
    **dict.fromkeys(("LocalizationAccuracy", "MaxBoxAccuracy"), "localization"),
    **dict.fromkeys(("EnergyPointingGame", "GridPointingGame", "PointingGame"), "pointing"),
    "PixelAveragePrecision": "segmentation",
}


def __getattr__(name: str) -> Any:
    """Import a metric when it is asked for: torchmetrics is slow to import, and commands need the functions alone."""
    from importlib import import_module

    if name in __all__:
        return getattr(import_module(f".{_HOMES.get(name, 'faithfulness')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
