"""Training: the fine-tuner, its schedule, its pictures and its record."""

from .fine_tuner import CAMFineTuner
from .overlays import CAMOverlayLogger
from .record import RunRecord

__all__ = ["CAMFineTuner", "CAMOverlayLogger", "RunRecord"]
