"""Training: the fine-tuner, its schedule, its pictures and its record."""

from .baselines import MeasureBaselines
from .cam_quality import CAM_METRICS
from .export import ExportBest
from .fine_tuner import CAMFineTuner
from .overlays import CAMOverlayLogger
from .record import RunRecord

__all__ = ["CAM_METRICS", "CAMFineTuner", "CAMOverlayLogger", "ExportBest", "MeasureBaselines", "RunRecord"]
