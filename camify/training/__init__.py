"""Fine-tuning: the module, its options, losses, stages, resuming and the CAM metrics of validation.

What happens beside training (pictures, record, export) is in ``callbacks``; the command line is in ``cli``.
A new option is a field in ``options.py``.
"""

from .callbacks.export_best import ExportBest
from .callbacks.measure_baselines import MeasureBaselines
from .callbacks.overlays import CAMOverlayLogger
from .callbacks.run_record import RunRecord
from .cam_metrics import CAM_METRICS
from .module import CAMFineTuner
from .options import (
    AugmentationOptions,
    CacheOptions,
    ConversionOptions,
    LossOptions,
    MetricsOptions,
    OptimizationOptions,
)
from .trackio_logger import TrackioLogger

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
    "TrackioLogger",
]
