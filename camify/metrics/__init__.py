"""CAM quality as torchmetrics."""

from . import functional
from .localization import LocalizationAccuracy, MaxBoxAccuracy

__all__ = ["LocalizationAccuracy", "MaxBoxAccuracy", "functional"]
