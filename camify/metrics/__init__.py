"""CAM quality as torchmetrics."""

from . import functional
from .localization import MaxBoxAccuracy

__all__ = ["MaxBoxAccuracy", "functional"]
