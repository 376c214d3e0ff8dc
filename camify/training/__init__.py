"""Training: the fine-tuner, its options, its pictures and its record."""

from .baselines import MeasureBaselines
from .cam_quality import CAM_METRICS
from .export import ExportBest
from .fine_tuner import CAMFineTuner
from .options import (
    AugmentationOptions,
    CacheOptions,
    ConversionOptions,
    LossOptions,
    MetricsOptions,
    OptimizationOptions,
)
from .overlays import CAMOverlayLogger
from .record import RunRecord

__all__ = [
    "CAM_METRICS",
    "AugmentationOptions",
    "CAMFineTuner",
    "CAMOverlayLogger",
    "CacheOptions",
    "ConversionOptions",
    "ExportBest",
    "LossOptions",
    "MeasureBaselines",
    "MetricsOptions",
    "OptimizationOptions",
    "RunRecord",
]
